"""Ctrl-C and SIGTERM, which Slurm, Kubernetes and `kill` send: the program ends cleanly."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

REPEAT = 1.0
"""Seconds within which a second Ctrl-C counts as the first, because launchers pass on what the terminal already sent,
and after which a SIGTERM without effect is raised again."""


def signal_of(error: BaseException) -> str | None:
    """The signal that ended the program with this exception, or None."""
    if isinstance(error, KeyboardInterrupt):
        return "SIGINT"
    terminated = isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM
    return "SIGTERM" if terminated else None


def leave(number: int) -> NoReturn:
    """End the program as a signal does, but by unwinding the stack: its exit code is 130 (Ctrl-C) or 143."""
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


@contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """SIGTERM unwinds the stack like an exit, so that files are closed and processes ended.

    The signal is raised again until the stack is unwound to here, because a bare `except:` in a library can swallow
    it. Cleanup that takes longer than REPEAT belongs outside.
    """
    arrived = threading.Event()

    def remind() -> None:
        if not arrived.wait(REPEAT):
            os.kill(os.getpid(), signal.SIGTERM)

    def end(number: int, _: object) -> None:
        threading.Thread(target=remind, daemon=True).start()
        leave(number)

    with _handling({signal.SIGTERM: end}):
        try:
            yield
        finally:
            arrived.set()


class Request:
    """Defers a Ctrl-C or SIGTERM until the current work is done.

    Attributes:
        signal: The number of the signal, None before there is one.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0

    @contextmanager
    def noted(self, told: Callable[[], None]) -> Iterator[None]:
        """Record the first signal and call `told`; a second Ctrl-C ends the program immediately."""

        def note(number: int, _: object) -> None:
            if self.signal is None:
                self.signal, self._since = number, time.monotonic()
                told()
            elif number == signal.SIGINT and time.monotonic() - self._since > REPEAT:
                leave(number)

        with _handling({signal.SIGTERM: note, signal.SIGINT: note}):
            yield

    def leave(self) -> NoReturn:
        """End the program for the recorded signal, or for one that only another process of the run received."""
        leave(self.signal or signal.SIGTERM)


def tell(text: str) -> None:
    """A line on standard error from a signal handler, where `print` is not reentrant."""
    os.write(2, f"\n{text}\n".encode())


@contextmanager
def _handling(handlers: dict[signal.Signals, Callable[[int, object], None]]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only that one receives signals
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
