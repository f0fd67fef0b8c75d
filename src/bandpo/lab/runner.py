"""Run a study: every run a process of its own, as many at a time as the machine bears, never one twice."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import Progress, TaskID

from bandpo.files import write_atomic
from bandpo.lab.calibration import describe, next_values
from bandpo.lab.metrics import FORMAT, METRICS, collect_run, mean_of, read_metrics, write_metrics
from bandpo.lab.study import Run, Study, as_overrides, collapse, initial_folder, run_config, run_settings
from bandpo.machine import cores
from bandpo.progress import make_progress
from bandpo.runs.config import load_config
from bandpo.runs.run_dir import RunDirectory

POLL = 0.2  # seconds
PR_SET_PDEATHSIG = 1


@dataclass
class Job:
    """A process to run.

    Attributes:
        title: For the progress display.
        command: With all arguments.
        output: What it makes; its log is named after it.
        needs: Paths that must exist before it can start.
        updates: How many lines its metrics.jsonl will have; 0 if it writes none.
        finished: Called when it succeeded; returns the jobs that have become possible.
        failed: Called with the reason when it did not.
    """

    title: str
    command: list[str]
    output: Path
    needs: list[Path] = field(default_factory=list)
    updates: int = 0
    finished: Callable[[], list[Job]] = list
    failed: Callable[[str], None] = lambda reason: None


@dataclass
class Started:
    job: Job
    process: subprocess.Popen[bytes]
    slot: int
    since: float
    bar: TaskID


# Processes


def die_with(parent: int) -> None:
    """In a new process: be killed as soon as its parent is gone, however that happens (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it went while this process was made
            os.kill(os.getpid(), signal.SIGKILL)


class Pool:
    """Runs jobs in processes that end with this one.

    Args:
        workers: Processes at a time.
        logs: Folder of what they print.
        environment: Slot -> variables of the processes there.
        seconds_left: Given how long jobs took, the running ones' ages and the number of waiting ones, the time left.
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

    def run(self, jobs: list[Job]) -> list[Job]:
        """Run jobs in this order as far as each one's needs allow.

        Returns:
            Those that could not start, since what they need was not made.
        """
        waiting = list(jobs)
        active: list[Started] = []
        took: list[float] = []
        progress = make_progress(self.console)
        progress.live.auto_refresh = False  # no second thread: processes are forked here
        with progress, ends_on_sigterm():
            total = progress.add_task("all", total=len(jobs), figures="")
            try:
                while active or any(_ready(job) for job in waiting):
                    for one in [one for one in active if one.process.poll() is not None]:
                        active.remove(one)
                        progress.remove_task(one.bar)
                        waiting[:0] = self._end(one)
                        took.append(time.monotonic() - one.since)
                    while len(active) < self.workers and (job := next(filter(_ready, waiting), None)) is not None:
                        waiting.remove(job)
                        slot = min(set(range(self.workers)) - {one.slot for one in active})
                        active.append(self._start(job, slot, progress))
                    now = time.monotonic()
                    for one in active:
                        progress.update(one.bar, completed=_lines(RunDirectory(one.job.output).metrics))
                    left = self.seconds_left(took, [now - one.since for one in active], len(waiting))
                    figures = "" if left is None else f"about {max(1, round(left / 60))} min left"
                    progress.update(
                        total, completed=len(took), total=len(took) + len(active) + len(waiting), figures=figures
                    )
                    progress.refresh()
                    time.sleep(POLL)
            finally:
                for one in active:
                    with suppress(ProcessLookupError):
                        os.killpg(one.process.pid, signal.SIGKILL)  # its own workers too
                for one in active:
                    one.process.wait()
        return waiting

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

    def _end(self, one: Started) -> list[Job]:
        took = f"{time.monotonic() - one.since:.0f} s"
        if one.process.returncode == 0:
            self.console.print(f"{one.job.title}: done in {took}", highlight=False, markup=False)
            return one.job.finished()
        reason = self._reason(one)
        message = f"{one.job.title}: failed after {took}: {reason}"
        self.console.print(message, style="red", highlight=False, markup=False)
        one.job.failed(reason)
        return []

    def _reason(self, one: Started) -> str:
        code = one.process.returncode
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        with suppress(OSError, ValueError):
            status = json.loads(RunDirectory(one.job.output).status.read_text(encoding="utf-8"))
            if status["status"] == "failed":
                return str(status["error"])
        lines = self._log(one.job).read_text(encoding="utf-8", errors="replace").split("\n")
        errors = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()]
        return errors[-1].removeprefix("error: ") if errors else f"exit status {code}"


def _ready(job: Job) -> bool:
    return all(path.exists() for path in job.needs)


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


@contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """SIGTERM unwinds the stack like an exit, so that processes are ended."""

    def leave(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Raise ValueError if another process works on this study."""
    with (directory / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another `bandpo compare` works on {str(directory)!r}") from None
        yield


def machine_workers(study: Study) -> tuple[int, list[int]]:
    """How many runs at a time this machine bears, and its GPUs: one run a GPU, else one a core while memory lasts."""
    import psutil
    import torch

    gpus = list(range(torch.cuda.device_count()))
    if study.launch:  # it decides by itself what each run uses
        return study.workers or 1, []
    memory = int(psutil.virtual_memory().available / 1e9 / study.budget.memory)
    return study.workers or max(1, len(gpus) or min(cores(), memory)), gpus


# The study


class StudyRunner:
    """A study in its directory.

    Args:
        study: What to run.
        name: How it was called.
        directory: Where; if it holds this study already, that is gone on with.

    Raises:
        ValueError: If the directory holds something else.
    """

    def __init__(self, study: Study, name: str, directory: Path, console: Console) -> None:
        if directory.exists() and any(directory.iterdir()) and not (directory / "study.yaml").is_file():
            raise ValueError(f"{str(directory)!r} is not the directory of a study; choose another --output")
        self.study = study
        self.name = name
        self.directory = directory.resolve()  # commands and weights are then the same from anywhere
        self.console = console
        self.records: dict[tuple[str, str], dict[str, Any]] = {}
        self.calibration: dict[str, Any] = {}
        self.environment: dict[str, Any] = {}
        if (directory / METRICS).exists():
            metrics = read_metrics(directory / METRICS)
            self.environment = metrics["environment"]
            self.records = {_key(record): record for record in metrics["runs"]}
        if (directory / "calibration.json").exists():
            self.calibration = json.loads((directory / "calibration.json").read_text(encoding="utf-8"))
        self.workers, self.gpus = machine_workers(study)

    # What there is to do

    def calibrated(self, run: Run) -> dict[str, Any] | None:
        """Settings that a matched control was given: {} for other methods, None while they are not known."""
        if run.trial or self.study.match(run.method) is None:
            return {}
        found = self.calibration.get(_place(run), {})
        return dict.fromkeys(found["keys"], found["value"]) if "value" in found else None

    def settings(self, run: Run, extra: dict[str, Any]) -> dict[str, Any]:
        """Dotted key -> value, starting from the shared weights; their path is relative to the study's directory."""
        settings = run_settings(self.study, run, extra)
        initial = initial_folder(load_config(self.study.recipe, as_overrides(settings)))
        if initial is None:
            return settings
        return collapse(settings, {"model.scratch": None, "model.path": str(initial), "warmup": None})

    def command(self, run: Run, settings: dict[str, Any], directory: Path | None) -> list[str]:
        """The command of a run; with `directory` None as metrics.json keeps it, relative to the study's directory."""
        if directory is not None and str(settings.get("model.path", "")).startswith("initial/"):
            settings = {**settings, "model.path": str(directory / settings["model.path"])}
        output = run.folder if directory is None else directory / run.folder
        launch = self.study.launch or [sys.executable, "-m", "bandpo"]
        start = ["bandpo"] if directory is None and not self.study.launch else launch
        return [*start, "train", self.study.recipe, *as_overrides(settings), "--output", str(output), "--resume"]

    def state(self, run: Run) -> str:
        """finished, failed or waiting.

        Raises:
            ValueError: If it finished with other settings.
        """
        record = self.records.get((_place(run), str(run.seed)))
        if record is None:
            return "waiting"
        extra = self.calibrated(run)
        if record["status"] == "finished" and extra is not None:
            command = shlex.join(self.command(run, self.settings(run, extra), None))
            if record["command"] != command:
                raise ValueError(
                    f"{run.title} was run as {record['command']!r}, the study now says {command!r}; choose another "
                    "--output"
                )
        return str(record["status"])

    def finished(self, run: Run, extra: dict[str, Any]) -> bool:
        """Whether its run directory holds it.

        Raises:
            ValueError: If that was started with other settings.
        """
        directory = RunDirectory(self.directory / run.folder)
        if not (directory.status.is_file() and directory.finished()):
            return False
        given = load_config(self.study.recipe, as_overrides(self.settings(run, extra))).model_dump(mode="json")
        started = yaml.safe_load(directory.config.read_text(encoding="utf-8"))
        if str(given["model"]["path"]).startswith("initial/"):  # the study may have been moved
            given["model"]["path"] = started["model"]["path"]
        directory.check_config(given)
        return True

    # Doing it

    def run(self) -> dict[str, Any]:
        """Run what is not finished; the content of metrics.json."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with locked(self.directory):
            runs = self.study.runs()
            left = [run for run in runs if self.state(run) != "finished"]
            dump = yaml.safe_dump(self.study.model_dump(mode="json"), sort_keys=False)
            write_atomic(self.directory / "study.yaml", dump)
            for run in list(left):  # killed between the end of a run and metrics.json
                extra = self.calibrated(run)
                if extra is not None and self.finished(run, extra):
                    self._keep(run)
                    left.remove(run)
            self.write()
            if left:
                self._work(left)
        return self.metrics()

    def _work(self, left: list[Run]) -> None:
        # Seeds in the outer order: what is there at any time compares all methods.
        left.sort(key=lambda run: self.study.seeds.index(run.seed))
        matched = {_place(run): run for run in left if self.calibrated(run) is None}
        known = [run for run in left if self.calibrated(run) is not None]
        self._pending = {
            place: [run for run in left if _place(run) == place] for place in matched
        }  # runs that wait for a calibration
        self._issued: set[Path] = set()
        jobs = self._initial_jobs(left)
        jobs += [job for run in matched.values() for job in self._pilots(run)]
        jobs += [self._run_job(run) for run in known]
        threads = max(1, cores() // self.workers)

        def environment(slot: int) -> dict[str, str]:
            found = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
            if self.gpus and not self.study.launch:
                found["CUDA_VISIBLE_DEVICES"] = str(self.gpus[slot % len(self.gpus)])
            return found

        pool = Pool(self.workers, self.directory / "logs", environment, self.seconds_left, self.console)
        stuck = [job.title for job in pool.run(jobs)]
        for title in stuck + [run.title for runs in self._pending.values() for run in runs]:
            self.console.print(f"{title}: cannot start, what it needs was not made", style="red", highlight=False)

    def _initial_jobs(self, left: list[Run]) -> list[Job]:
        runs = list(left)
        if self._pending:
            runs += [self._target(run) for run in left]
        jobs: dict[Path, Job] = {}
        for run in runs:
            settings = run_settings(self.study, run)
            folder = initial_folder(load_config(self.study.recipe, as_overrides(settings)))
            if folder is None or folder in jobs or (self.directory / folder).exists():
                continue
            target = self.directory / folder
            recipe = [self.study.recipe, *as_overrides(settings)]
            seed = self.study.pilot.seed if run.trial else run.seed
            jobs[folder] = Job(
                f"initial weights of seed {seed}",
                [sys.executable, "-m", "bandpo.lab.initial", str(target), *recipe],
                target,
            )
        return list(jobs.values())

    def _job(self, run: Run, extra: dict[str, Any], finished: Callable[[], list[Job]]) -> Job:
        settings = self.settings(run, extra)
        path = str(settings.get("model.path", ""))
        config = run_config(self.study, run, extra)
        return Job(
            run.title,
            self.command(run, settings, self.directory),
            self.directory / run.folder,
            needs=[self.directory / path] if path.startswith("initial/") else [],
            updates=max(0, config.train.get("max_steps", 0)),
            finished=finished,
            failed=partial(self._fail, run),
        )

    def _run_job(self, run: Run) -> Job:
        extra = self.calibrated(run)
        assert extra is not None
        return self._job(run, extra, partial(self._keep, run))

    def _keep(self, run: Run) -> list[Job]:
        path = self.directory / run.folder
        record = collect_run(path)
        started = json.loads(RunDirectory(path).environment.read_text(encoding="utf-8"))
        self.environment = {
            **{key: started[key] for key in ("python", "packages", "commit", "platform", "gpus")},
            "processor": processor(),
            "cores": cores(),
            "workers": self.workers,
            "threads": started["cpu_threads"],
        }
        self._record(run, {"status": "finished", "commit": started["commit"], **record})
        if not self.study.keep:
            self._slim(path)
        return []

    def _fail(self, run: Run, reason: str) -> None:
        if not run.trial:
            self._record(run, {"status": "failed", "error": reason})

    def _slim(self, path: Path) -> None:
        for folder in (RunDirectory(path).checkpoints, RunDirectory(path).model):
            shutil.rmtree(folder, ignore_errors=True)

    def _record(self, run: Run, found: dict[str, Any]) -> None:
        extra = self.calibrated(run) or {}
        command = shlex.join(self.command(run, self.settings(run, extra), None))
        self.records[_place(run), str(run.seed)] = {**_head(run), "command": command, **found}
        self.write()

    # Matched controls

    def _pilots(self, run: Run) -> list[Job]:
        """The pilot runs that can be started for a matched control; when none is left, its runs."""
        match, place = self.study.match(run.method), _place(run)
        assert match is not None
        target_run = self._target(run)
        found = self.calibration.setdefault(place, {"pilots": []})
        if "target" not in found:
            path = self.directory / target_run.folder
            if not self.finished(target_run, {}):
                return self._issue(target_run, {}, partial(self._pilots_of, match.method, run.point))
            found["target"] = mean_of(path, match.metric)
            self._slim(path)
        trials = [(value, figure) for value, figure in found["pilots"]]
        jobs = []
        for value in next_values(match, self.study.pilot, found["target"], trials):
            trial = Run(run.method, run.point, self.study.pilot.seed, f"{value:g}")
            path = self.directory / trial.folder
            extra = dict.fromkeys(match.keys, value)
            if self.finished(trial, extra):
                trials.append((value, mean_of(path, match.metric)))
                self._slim(path)
            else:
                jobs += self._issue(trial, extra, partial(self._pilots, run))
        grown = len(trials) > len(found["pilots"])
        over = not next_values(match, self.study.pilot, found["target"], trials)
        self.calibration[place] = describe(match, found["target"], trials, over)
        write_atomic(self.directory / "calibration.json", json.dumps(self.calibration, indent=1) + "\n")
        if over:
            return [self._run_job(one) for one in self._pending.pop(place, [])]
        return self._pilots(run) if grown and not jobs else jobs

    def _target(self, run: Run) -> Run:
        """The pilot run of the method that this run's is matched to."""
        match = self.study.match(run.method)
        return Run(match.method if match else run.method, run.point, self.study.pilot.seed, "target")

    def _issue(self, run: Run, extra: dict[str, Any], finished: Callable[[], list[Job]]) -> list[Job]:
        """The job of a pilot run, once."""
        if run.folder in self._issued:
            return []
        self._issued.add(run.folder)
        return [self._job(run, extra, finished)]

    def _pilots_of(self, method: str, point: dict[str, str]) -> list[Job]:
        """Those of every control that is matched to a method whose own pilot run has just ended."""
        jobs = []
        for runs in list(self._pending.values()):
            match = self.study.match(runs[0].method)
            if match is not None and match.method == method and runs[0].point == point:
                jobs += self._pilots(runs[0])
        return jobs

    # What there is

    def metrics(self) -> dict[str, Any]:
        runs = []
        for run in self.study.runs():
            waiting = {**_head(run), "status": "waiting"}
            runs.append(self.records.get((_place(run), str(run.seed)), waiting))
        return {
            "format": FORMAT,
            "name": self.name,
            "study": self.study.model_dump(mode="json"),
            "environment": self.environment,
            "calibration": self.calibration,
            "runs": runs,
        }

    def write(self) -> None:
        write_metrics(self.directory / METRICS, self.metrics())

    def seconds_left(self, took: list[float], ages: list[float], waiting: int) -> float | None:
        if not took and self.study.budget.seconds is None:
            return None
        each = sum(took) / len(took) if took else self.study.budget.seconds or 0.0
        return (sum(max(each - age, 0) for age in ages) + each * waiting) / self.workers


def _place(run: Run) -> str:
    return " ".join([run.method, *(f"{name}={label}" for name, label in run.point.items())])


def _key(record: dict[str, Any]) -> tuple[str, str]:
    return _place(Run(record["method"], record["point"], record["seed"])), str(record["seed"])


def _head(run: Run) -> dict[str, Any]:
    return {"method": run.method, "point": run.point, "seed": run.seed}


def processor() -> str:
    """The processor's name where the system tells it."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    import platform

    return platform.processor()
