"""Run a study: a process per run, as many in parallel as the machine can handle; nothing is run twice."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import yaml
from rich.console import Console

from bandpo.files import locked, write_atomic, write_json
from bandpo.lab.calibration import conclude, next_values
from bandpo.lab.collect import collect_run, entries_per_run, mean_of, read_environment
from bandpo.lab.metrics import (
    METRICS,
    Calibration,
    Environment,
    FinishedRun,
    RunResult,
    StudyResult,
    dump_calibration,
    load_calibration,
)
from bandpo.lab.pool import Job, Pool
from bandpo.lab.study import (
    Run,
    Settings,
    Study,
    as_overrides,
    collapse,
    initial_folder,
    run_config,
    run_settings,
    start_model,
)
from bandpo.machine import cores
from bandpo.runs.config import load_config
from bandpo.runs.run_dir import RunDirectory

THREADS = "OMP_NUM_THREADS"
GPUS = "CUDA_VISIBLE_DEVICES"


def machine_workers(study: Study) -> tuple[int, list[str]]:
    """How many runs the machine can handle at a time, and its GPUs: one per GPU, else per core as memory allows."""
    import psutil
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(GPUS, "").split(",") if name.strip()]
    gpus = named[:count] or [str(i) for i in range(count)]
    if study.launch:  # the launcher decides what each run uses
        return study.workers or 1, []
    memory = int(psutil.virtual_memory().available / 1e9 / study.budget.memory)
    return study.workers or max(1, len(gpus) or min(cores(), memory)), gpus


def process_environment(slot: int, workers: int, gpus: list[str]) -> dict[str, str]:
    """Variables for the process in a slot: its share of the cores unless the user set one, and its GPU."""
    variables = {"PYTHONUNBUFFERED": "1"}
    if not os.environ.get(THREADS):
        variables[THREADS] = str(max(1, cores() // workers))
    if gpus:
        variables[GPUS] = gpus[slot % len(gpus)]
    return variables


def busy_line() -> str | None:
    """A sentence on other load on this machine; None if it is negligible."""
    if not hasattr(os, "getloadavg"):
        return None
    load = os.getloadavg()[0]
    if load <= cores():
        return None
    return (
        f"the machine is busy: load average {load:.1f} on {cores()} cores; runs will take longer, and fewer "
        f"--workers or {THREADS}=1 may be faster"
    )


class StudyRunner:
    """A study in its directory.

    Args:
        study: What to run.
        name: Name of the study, as given.
        directory: Its directory; a study that is already there is resumed.
        console: For progress and messages.

    Raises:
        ValueError: If the directory contains something else.
    """

    def __init__(self, study: Study, name: str, directory: Path, console: Console) -> None:
        if directory.exists() and any(directory.iterdir()) and not (directory / "study.yaml").is_file():
            raise ValueError(f"{str(directory)!r} is not the directory of a study; choose another --output")
        absent = [run.title for run in study.runs() if study.start and not start_model(study, run).is_dir()]
        if absent:
            raise ValueError(
                f"start is {study.start!r}, which has no model of {len(absent)} of {len(study.runs())} runs, "
                f"{absent[0]} among them; allowed: the directory of a finished study that was run with keep=true"
            )
        self.study = study
        self.name = name
        self.directory = directory.resolve()  # commands and weights must not depend on the working directory
        self.console = console
        self.records: dict[tuple[str, int], RunResult] = {}
        self.calibration: dict[str, Calibration] = {}
        self.environment: Environment | None = None
        if (directory / METRICS).exists():
            result = StudyResult.load(directory / METRICS)
            self.environment = result.environment
            self.records = {_key(Run(run.method, run.point, run.seed)): run for run in result.runs}
        if (directory / "calibration.json").exists():
            text = (directory / "calibration.json").read_text(encoding="utf-8")
            self.calibration = load_calibration(json.loads(text))
        self.workers, self.gpus = machine_workers(study)

    # What to do

    def calibrated(self, run: Run) -> Settings | None:
        """Settings chosen for a matched control: {} for other methods, None until they are known."""
        if run.trial or self.study.match(run.method) is None:
            return {}
        found = self.calibration.get(_label(run))
        return None if found is None or found.value is None else dict.fromkeys(found.keys, found.value)

    def settings(self, run: Run, extra: Settings) -> Settings:
        """Dotted key -> value, starting from the shared weights; their path is relative to the study's directory."""
        settings = run_settings(self.study, run, extra)
        initial = initial_folder(load_config(self.study.recipe, as_overrides(settings)))
        if initial is None:
            return settings
        return collapse(settings, {"model.scratch": None, "model.path": str(initial), "warmup": None})

    def command(self, run: Run, settings: Settings, directory: Path | None) -> list[str]:
        """The command of a run; with `directory` None as metrics.json keeps it, relative to the study's directory."""
        path = str(settings.get("model.path", ""))
        if directory is not None and path.startswith("initial/"):
            settings = {**settings, "model.path": str(directory / path)}
        if directory is None and self.study.start is not None:
            settings = {**settings, "model.path": os.path.relpath(path, self.directory)}
        output = run.folder if directory is None else directory / run.folder
        launch = self.study.launch or [sys.executable, "-m", "bandpo"]
        start = ["bandpo"] if directory is None and not self.study.launch else launch
        return [*start, "train", self.study.recipe, *as_overrides(settings), "--output", str(output), "--resume"]

    def state(self, run: Run) -> str:
        """finished, failed or waiting.

        Raises:
            ValueError: If it finished with other settings.
        """
        record = self.records.get(_key(run))
        if record is None:
            return "waiting"
        extra = self.calibrated(run)
        if record.status == "finished" and extra is not None:
            command = shlex.join(self.command(run, self.settings(run, extra), None))
            if record.command != command:
                raise ValueError(
                    f"{run.title} was run as {record.command!r}, but the study now has {command!r}; choose another "
                    "--output"
                )
        return record.status

    def finished(self, run: Run, extra: Settings) -> bool:
        """Whether its run directory contains it.

        Raises:
            ValueError: If it was started with other settings.
        """
        directory = RunDirectory(self.directory / run.folder)
        if not (directory.status.is_file() and directory.finished()):
            return False
        settings = self.settings(run, extra)
        if str(settings.get("model.path", "")).startswith("initial/"):  # the study may have been moved
            started = yaml.safe_load(directory.config.read_text(encoding="utf-8"))
            settings = {**settings, "model.path": started["model"]["path"]}
        given = load_config(self.study.recipe, as_overrides(settings)).model_dump(mode="json")
        directory.check_config(given)
        return True

    # Running

    def run(self) -> StudyResult:
        """Run what is not finished; the content of metrics.json."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with locked(self.directory):
            left = [run for run in self.study.runs() if self.state(run) != "finished"]
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
        return self.result()

    def _work(self, left: list[Run]) -> None:
        """Calibrate matched controls, then run all runs."""
        if (line := busy_line()) is not None:
            self.console.print(line, style="yellow", highlight=False, markup=False)
        self._check_problems(left)
        environment = partial(process_environment, workers=self.workers, gpus=self.gpus)
        pool = Pool(self.workers, self.directory / "logs", environment, self.seconds_left, self.console)
        # Seeds outermost, so that partial results cover all methods.
        left.sort(key=lambda run: self.study.seeds.index(run.seed))
        self._calibrate(pool, left)
        ready = [run for run in left if self.calibrated(run) is not None]
        skipped = pool.run(self._initial_jobs(ready) + [self._run_job(run) for run in ready])
        titles = [job.title for job in skipped] + [run.title for run in left if run not in ready]
        for title in titles:
            self.console.print(f"{title}: skipped, a prerequisite failed", style="red", highlight=False)

    def _check_problems(self, runs: list[Run]) -> None:
        """Raise the ValueError of a task without problems here, not in each run."""
        configs = (run_config(self.study, run) for run in runs)
        for config in {config.task.model_dump_json(): config for config in configs}.values():
            config.problems()

    def _initial_jobs(self, runs: list[Run]) -> list[Job]:
        """Jobs that create the weights that these runs start from, if they do not exist yet."""
        jobs: dict[Path, Job] = {}
        for run in runs:
            settings = run_settings(self.study, run)
            folder = initial_folder(load_config(self.study.recipe, as_overrides(settings)))
            if folder is None or folder in jobs or (self.directory / folder).exists():
                continue
            target = self.directory / folder
            recipe = [self.study.recipe, *as_overrides(settings)]
            jobs[folder] = Job(
                f"initial weights of seed {run.seed}",
                [sys.executable, "-m", "bandpo.lab.initial", str(target), *recipe],
                target,
            )
        return list(jobs.values())

    def _job(self, run: Run, extra: Settings, **callbacks: Callable[..., None]) -> Job:
        settings = self.settings(run, extra)
        path = str(settings.get("model.path", ""))
        config = run_config(self.study, run, extra)
        return Job(
            run.title,
            self.command(run, settings, self.directory),
            self.directory / run.folder,
            needs=[self.directory / path] if path.startswith("initial/") else [],
            updates=max(0, config.train.get("max_steps", 0)),
            **callbacks,
        )

    def _run_job(self, run: Run) -> Job:
        extra = self.calibrated(run)
        assert extra is not None
        return self._job(run, extra, finished=partial(self._finish, run), failed=partial(self._fail, run))

    def _keep(self, run: Run) -> None:
        path = self.directory / run.folder
        started = read_environment(RunDirectory(path))
        self.environment = replace(started, processor=processor(), cores=cores(), workers=self.workers)
        training = collect_run(path, entries_per_run(len(self.study.runs())))
        known = {**vars(self._head(run)), **vars(training), "status": "finished", "commit": started.commit}
        self.records[_key(run)] = FinishedRun(**known)
        if not self.study.keep:
            self._slim(path)

    def _finish(self, run: Run) -> None:
        self._keep(run)
        self.write()

    def _fail(self, run: Run, reason: str) -> None:
        self.records[_key(run)] = replace(self._head(run), status="failed", error=reason)
        self.write()

    def _head(self, run: Run) -> RunResult:
        """What is known of a run before it starts."""
        command = shlex.join(self.command(run, self.settings(run, self.calibrated(run) or {}), None))
        return RunResult(method=run.method, point=run.point, seed=run.seed, status="waiting", command=command)

    def _slim(self, path: Path) -> None:
        for folder in (RunDirectory(path).checkpoints, RunDirectory(path).model):
            shutil.rmtree(folder, ignore_errors=True)

    # Matched controls

    def _calibrate(self, pool: Pool, runs: list[Run]) -> None:
        """Run pilots until every matched control among these has its setting, or a pilot that it needs has failed."""
        controls = {_label(run): run for run in runs if self.calibrated(run) is None}
        started: set[Path] = set()
        while True:
            pilots = {pilot.folder: (pilot, extra) for run in controls.values() for pilot, extra in self._pilots(run)}
            new = [found for folder, found in pilots.items() if folder not in started]
            if not new:
                return
            started |= pilots.keys()
            jobs = self._initial_jobs([pilot for pilot, _ in new])
            pool.run(jobs + [self._job(pilot, extra) for pilot, extra in new], later=len(runs))

    def _pilots(self, run: Run) -> list[tuple[Run, Settings]]:
        """The pilot runs that can start for a matched control, with their settings; none once it has its own."""
        match, label = self.study.match(run.method), _label(run)
        assert match is not None
        found = self.calibration.get(label, Calibration())
        target, trials = found.target, list(found.pilots)
        if target is None:
            pilot = Run(match.method, run.point, self.study.pilot.seed, "target")
            if not self.finished(pilot, {}):
                return [(pilot, {})]
            target = self._measure(pilot, match.metric)
        waiting: list[tuple[Run, Settings]] = []
        while not waiting and (values := next_values(match, self.study.pilot, target, trials)):
            for value in values:
                pilot = Run(run.method, run.point, self.study.pilot.seed, f"{value:g}")
                extra: Settings = dict.fromkeys(match.keys, value)
                if self.finished(pilot, extra):
                    trials.append((value, self._measure(pilot, match.metric)))
                else:
                    waiting.append((pilot, extra))
        self.calibration[label] = conclude(match, target, trials, over=not waiting)
        write_json(self.directory / "calibration.json", dump_calibration(self.calibration), indent=1)
        return waiting

    def _measure(self, pilot: Run, metric: str) -> float:
        path = self.directory / pilot.folder
        value = mean_of(path, metric)
        self._slim(path)
        return value

    # Results

    def result(self) -> StudyResult:
        """The content of metrics.json, in which paths are relative to the study's directory."""
        start = self.study.start
        begun = {} if start is None else {"start": os.path.relpath(start, self.directory)}
        return StudyResult(
            name=self.name,
            study=self.study.model_copy(update=begun),
            environment=self.environment,
            calibration=self.calibration,
            runs=[
                self.records.get(
                    _key(run), RunResult(method=run.method, point=run.point, seed=run.seed, status="waiting")
                )
                for run in self.study.runs()
            ],
        )

    def write(self) -> None:
        """Write metrics.json."""
        self.result().save(self.directory / METRICS)

    def seconds_left(self, took: list[float], ages: list[float], waiting: int) -> float | None:
        """Estimate of the time left from the mean time of a run; None if none is known."""
        if not took and self.study.budget.seconds is None:
            return None
        each = sum(took) / len(took) if took else self.study.budget.seconds or 0.0
        return (sum(max(each - age, 0) for age in ages) + each * waiting) / self.workers


def _label(run: Run) -> str:
    """A method at a point of the sweep."""
    return " ".join([run.method, *(f"{axis}={label}" for axis, label in run.point.items())])


def _key(run: Run) -> tuple[str, int]:
    return _label(run), run.seed


def processor() -> str:
    """The processor's name, if the system reports it."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    import platform

    return platform.processor()
