"""A pool of processes that end with this one: jobs run in parallel, each once its needs are met."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from bandpo.interrupts import ends_on_sigterm
from bandpo.progress import make_progress
from bandpo.runs.run_dir import RunDirectory

POLL = 0.2  # seconds
GRACE = 20.0  # seconds in which interrupted runs may save a checkpoint; Kubernetes gives us 30 in total
PR_SET_PDEATHSIG = 1


@dataclass
class Job:
    """A process to run.

    Attributes:
        title: Shown in the progress display.
        command: Command line.
        output: What it writes; its log is named after it.
        needs: Paths that must exist before it can start.
        updates: How many lines its metrics.jsonl will have; 0 if it writes none.
        finished: Called when it succeeded.
        failed: Called with the reason when it did not.
    """

    title: str
    command: list[str]
    output: Path
    needs: list[Path] = field(default_factory=list)
    updates: int = 0
    finished: Callable[[], None] = lambda: None
    failed: Callable[[str], None] = lambda reason: None

    @property
    def ready(self) -> bool:
        return all(path.exists() for path in self.needs)


@dataclass
class Started:
    """A job whose process runs."""

    job: Job
    process: subprocess.Popen[bytes]
    slot: int
    since: float
    bar: TaskID


class Pool:
    """Runs jobs in processes that end with this one.

    Args:
        workers: Number of parallel processes.
        logs: Folder for their output.
        environment: Slot -> variables to set for the processes there.
        seconds_left: Given how long jobs took, the ages of the running ones and the number of waiting ones, the time
            that is left in seconds; None if it cannot be estimated.
    """

    def __init__(
        self,
        workers: int,
        logs: Path,
        environment: Callable[[int], dict[str, str]],
        seconds_left: Callable[[list[float], list[float], int], float | None],
        console: Console,
    ) -> None:
        self.workers = workers
        self.logs = logs
        self.environment = environment
        self.seconds_left = seconds_left
        self.console = console
        self.took: list[float] = []  # of all jobs so far

    def run(self, jobs: list[Job], later: int = 0) -> list[Job]:
        """Run jobs in this order, each once its needs are met.

        Args:
            later: Number of jobs that the caller will run afterwards; only affects the time left.

        Returns:
            The jobs that could not start, because a prerequisite is missing.
        """
        waiting = list(jobs)
        active: list[Started] = []
        progress = make_progress(self.console)
        progress.live.auto_refresh = False  # no second thread: processes are forked here
        with progress:
            total = progress.add_task("all", total=len(jobs), figures="")
            try:
                with ends_on_sigterm():
                    while active or any(job.ready for job in waiting):
                        for started in [started for started in active if started.process.poll() is not None]:
                            active.remove(started)
                            progress.remove_task(started.bar)
                            self._end(started)
                            self.took.append(time.monotonic() - started.since)
                        while len(active) < self.workers and (job := next((j for j in waiting if j.ready), None)):
                            waiting.remove(job)
                            slot = min(set(range(self.workers)) - {started.slot for started in active})
                            active.append(self._start(job, slot, progress))
                        self._show(progress, total, active, waiting, later)
                        time.sleep(POLL)
            finally:
                self._end_all(active)
        return waiting

    def _end_all(self, active: list[Started]) -> None:
        """End processes early: by SIGTERM, on which a run saves a checkpoint, then by SIGKILL."""
        try:
            for started in active:
                started.process.terminate()
            if active:
                self.console.print(f"ending {len(active)} processes, within {GRACE:g} s", highlight=False)
            deadline = time.monotonic() + GRACE
            for started in active:
                with suppress(subprocess.TimeoutExpired):
                    started.process.wait(max(0.0, deadline - time.monotonic()))
        finally:  # also after a second Ctrl-C
            for started in active:
                with suppress(ProcessLookupError):
                    os.killpg(started.process.pid, signal.SIGKILL)  # its own workers too
            for started in active:
                started.process.wait()

    def _show(self, progress: Progress, total: TaskID, active: list[Started], waiting: list[Job], later: int) -> None:
        now = time.monotonic()
        for started in active:
            progress.update(started.bar, completed=_lines(RunDirectory(started.job.output).metrics))
        left = self.seconds_left(self.took, [now - started.since for started in active], len(waiting) + later)
        text = "" if left is None else f"about {max(1, round(left / 60))} min left"
        done = len(self.took)
        progress.update(total, completed=done, total=done + len(active) + len(waiting) + later, figures=text)
        progress.refresh()

    def _start(self, job: Job, slot: int, progress: Progress) -> Started:
        log = self._log(job)
        log.parent.mkdir(parents=True, exist_ok=True)
        job.output.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            process = subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment(slot)},
                start_new_session=True,
                preexec_fn=partial(die_with, os.getpid()),
            )
        bar = progress.add_task(job.title, total=job.updates or None, figures="")
        return Started(job, process, slot, time.monotonic(), bar)

    def _log(self, job: Job) -> Path:
        return self.logs / f"{'-'.join(job.output.relative_to(self.logs.parent).parts)}.log"

    def _end(self, started: Started) -> None:
        job = started.job
        took = f"{time.monotonic() - started.since:.0f} s"
        if started.process.returncode == 0:
            self.console.print(f"{job.title}: done in {took}", highlight=False, markup=False)
            job.finished()
            return
        reason = self._reason(started)
        message = f"{job.title}: failed after {took}: {reason}"
        self.console.print(message, style="red", highlight=False, markup=False)
        job.failed(reason)

    def _reason(self, started: Started) -> str:
        code = started.process.returncode
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        with suppress(OSError, ValueError):
            status = json.loads(RunDirectory(started.job.output).status.read_text(encoding="utf-8"))
            if status["status"] in ("failed", "interrupted"):
                return str(status.get("error", "interrupted"))
        lines = self._log(started.job).read_text(encoding="utf-8", errors="replace").split("\n")
        errors = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()]
        return errors[-1].removeprefix("error: ") if errors else f"exit status {code}"


def die_with(parent: int) -> None:
    """In a new process: be killed when the parent ends, for whatever reason (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended while this process was being created
            os.kill(os.getpid(), signal.SIGKILL)


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
