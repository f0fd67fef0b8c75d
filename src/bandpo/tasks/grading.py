"""Grading in worker processes that cannot hang or crash the trainer.

Model output is hostile input to a computer algebra system: 10^{10^{10}}, deep nesting and megabytes of brackets
loop for hours or exhaust the memory. A worker grades one answer under a time and a memory limit; a worker that
exceeds them is killed and replaced.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bandpo.machine import cores

Kind = Literal["math", "reasoning-gym"]

DEFAULT_TIME_LIMIT = 5.0
"""Seconds to grade one answer."""
MEMORY_LIMIT = 4 << 30
"""Bytes of address space of a worker."""
MAX_WORKERS = 8

_GRACE = 0.5  # seconds past the limit until a worker that ignores it is killed
_START_LIMIT = 120.0  # seconds for a worker's imports, on a busy disk
_WORKER = Path(__file__).with_name("grading_worker.py")
_NEEDS: dict[str, str] = {"math": "bandpo[train]", "reasoning-gym": "bandpo[gym]"}


class Score(NamedTuple):
    """The reward of a completion, and whether grading it hit a limit (the reward is then 0)."""

    value: float
    timed_out: bool = False


class _DiedError(Exception):
    """A worker ended or stopped responding."""


class _Worker:
    def __init__(self, kind: Kind) -> None:
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        # -P: the worker's directory must not be searched for modules, or our files would hide installed ones.
        # A separate session, because the training process must handle Ctrl-C.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), kind, str(MEMORY_LIMIT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **single},
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.stdin, False)
        self.kind = kind
        self.ready = False

    def ask(self, request: dict[str, Any], limit: float) -> Score:
        """Grade one answer.

        Raises:
            _DiedError: If the worker ended or stopped responding.
        """
        if not self.ready:
            self._start()
        reply = self._exchange(json.dumps({**request, "limit": limit}).encode() + b"\n", limit + _GRACE)
        return Score(0.0, True) if reply.get("timed_out") else Score(reply["value"])

    def _start(self) -> None:
        try:
            reply = self._exchange(b"", _START_LIMIT)
        except _DiedError as error:
            code = self.process.poll()
            raise RuntimeError(f"a grading process did not start within {_START_LIMIT:g} s (exit {code})") from error
        if "missing" in reply:
            raise ImportError(
                f"grading needs an extra: pip install '{_NEEDS[self.kind]}' ({reply['missing']})", name=self.kind
            )
        self.ready = True

    def _exchange(self, data: bytes, limit: float) -> dict[str, Any]:
        """Send `data`, then read one line, both within `limit` seconds."""
        deadline = time.monotonic() + limit
        view, received = memoryview(data), b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.stdout, selectors.EVENT_READ)
            if view:
                selector.register(self.stdin, selectors.EVENT_WRITE)
            while not received.endswith(b"\n"):
                events = selector.select(max(0.0, deadline - time.monotonic()))
                if not events:
                    raise _DiedError
                for key, _ in events:
                    try:
                        if key.fd == self.stdin:
                            view = view[os.write(self.stdin, view) :]
                            if not view:
                                selector.unregister(self.stdin)
                        elif part := os.read(self.stdout, 65536):
                            received += part
                        else:
                            raise _DiedError
                    except BlockingIOError:
                        continue
                    except BrokenPipeError:
                        raise _DiedError from None
        reply: dict[str, Any] = json.loads(received)
        return reply

    def close(self, kill: bool = True) -> None:
        if kill:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


class Grader:
    """Worker processes of one kind, started when they are needed.

    Args:
        kind: What they grade: 'math' or 'reasoning-gym'.
        workers: Maximum number; None is one per CPU that this process may use, up to MAX_WORKERS. The scores do
            not depend on it.
    """

    def __init__(self, kind: Kind, workers: int | None = None) -> None:
        self.kind = kind
        self.workers = workers or min(cores(), MAX_WORKERS)
        self._free: list[_Worker] = []
        self._every: list[_Worker] = []
        self._changed = threading.Condition()

    def grade(self, requests: Sequence[dict[str, Any]], time_limit: float = DEFAULT_TIME_LIMIT) -> list[Score]:
        """A score for each request, in order, graded in parallel; equal requests are graded once.

        Args:
            requests: Keyword arguments of the grader of this kind in `grading_worker`.
            time_limit: Seconds for each; a request that needs more, or more memory than MEMORY_LIMIT, or that ends
                its worker, scores 0 and counts as timed out.

        Raises:
            ImportError: If a package that the grader needs is not installed.
        """
        keys = [json.dumps(request) for request in requests]
        unique = dict(zip(keys, requests, strict=True))
        pool = ThreadPoolExecutor(min(self.workers, len(unique)) or 1, thread_name_prefix="grading")
        try:
            scores = pool.map(lambda request: self._one(request, time_limit), unique.values())
            scored = dict(zip(unique, scores, strict=True))
        finally:
            pool.shutdown(cancel_futures=True)
        return [scored[key] for key in keys]

    def close(self) -> None:
        """Kill the workers; the next request starts new ones."""
        with self._changed:
            for worker in self._every:
                worker.close()
            self._every.clear()
            self._free.clear()

    def forget(self) -> None:
        """Forget the workers without ending them: they belong to the process that this one was forked from."""
        for worker in self._every:
            worker.close(kill=False)
        self._every, self._free, self._changed = [], [], threading.Condition()

    def _one(self, request: dict[str, Any], time_limit: float) -> Score:
        worker = self._take()
        try:
            score = worker.ask(request, time_limit)
        except _DiedError:
            self._replace(worker)
            return Score(0.0, timed_out=True)
        except BaseException:
            self._drop(worker)
            raise
        self._give_back(worker)
        return score

    def _take(self) -> _Worker:
        with self._changed:
            while True:
                # If it was killed from outside while idle, that is not the answer's fault.
                while self._free:
                    worker = self._free.pop()
                    if worker.process.poll() is None:
                        return worker
                    self._every.remove(worker)
                    worker.close()
                if len(self._every) < self.workers:
                    self._every.append(_Worker(self.kind))
                    return self._every[-1]
                self._changed.wait()

    def _give_back(self, worker: _Worker) -> None:
        with self._changed:
            self._free.append(worker)
            self._changed.notify()

    def _drop(self, worker: _Worker) -> None:
        with self._changed:
            worker.close()
            if worker in self._every:
                self._every.remove(worker)
            self._changed.notify()

    def _replace(self, worker: _Worker) -> None:
        self._drop(worker)
        with self._changed:
            if len(self._every) < self.workers:  # imports while the others work
                self._every.append(_Worker(self.kind))
                self._free.insert(0, self._every[-1])
                self._changed.notify()


_shared: dict[Kind, Grader] = {}


def shared_grader(kind: Kind) -> Grader:
    """This process's grader of a kind, closed when it ends."""
    return _shared.setdefault(kind, Grader(kind))


def _close_all() -> None:
    for grader in _shared.values():
        grader.close()


def _forget_all() -> None:
    for grader in _shared.values():
        grader.forget()
    _shared.clear()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
