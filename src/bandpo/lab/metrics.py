"""metrics.json: all data behind the tables and figures of a study, as dataclasses.

The file holds the fields of `StudyResult` under their own names. `bandpo.lab.schema` writes docs/metrics_json.md from
the docstrings here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from bandpo.files import write_atomic
from bandpo.lab.study import Settings, Study

METRICS = "metrics.json"
FORMAT = 2

Series = list[float | None]  # one number per entry; null if the method does not report it


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Versions and hardware of the runs.

    Attributes:
        python: Version of Python.
        packages: Package -> version.
        commit: Commit of the source tree, with a "+" if the tree had changes; null if unknown.
        platform: Operating system and architecture.
        gpus: Names of the GPUs.
        processor: Name of the CPU; empty if unknown.
        cores: CPU cores that the study could use; null if unknown.
        workers: Runs in parallel; null for a single run.
        threads: CPU threads of each run.
    """

    python: str
    packages: dict[str, str]
    commit: str | None
    platform: str
    gpus: list[str]
    processor: str = ""
    cores: int | None = None
    workers: int | None = None
    threads: int


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the pilot runs of a matched control found.

    Attributes:
        keys: Settings that were chosen, all with the same value.
        metric: Metric of the trainer, averaged over a pilot run, that was to be matched.
        matches: Label of the method whose metric was to be matched.
        target: That method's metric; null before its own pilot run has finished.
        pilots: [value of the setting, metric] of each pilot run.
        value: The value that was chosen; null until the search is over.
        reached: The metric at that value.
    """

    keys: list[str] = field(default_factory=list)
    metric: str = ""
    matches: str = ""
    target: float | None = None
    pilots: list[tuple[float, float]] = field(default_factory=list)
    value: float | None = None
    reached: float | None = None


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """One entry per rollout.

    Attributes:
        step: The update that followed it, from 1.
        reward: Mean reward of its completions.
        uniform: Share of groups whose rewards are all equal.
        length: Mean length of its completions in tokens.
        truncated: Share of completions that were cut off.
        tokens: Tokens that the trainer has seen so far, prompts included.
    """

    step: list[int]
    reward: Series
    uniform: Series
    length: Series
    truncated: Series
    tokens: Series


@dataclass(frozen=True, kw_only=True)
class Updates:
    """One entry per `bin` updates, at most 64 (fewer in a study of more than 93 runs); means unless noted.

    Attributes:
        bin: Updates per entry.
        step: Last update of the entry.
        entropy: Of the policy, in nats per token.
        clip_fraction_low: Share of tokens without a gradient because A < 0 and the ratio is below the lower bound.
        clip_fraction_high: Share of tokens without a gradient because A > 0 and the ratio is above the upper bound;
            for CISPO, whose tokens keep their gradient, the share of capped weights.
        divergence: Mean binary divergence of the tokens, measured in the rule's divergence.
        grad_norm: Norm of the gradient before clipping it.
        ratio_max: Largest ratio in the entry.
        ratio_min: Smallest ratio in the entry.
        seconds: Training time so far, rollouts included, evaluations not.
    """

    bin: int
    step: list[int]
    entropy: Series
    clip_fraction_low: Series
    clip_fraction_high: Series
    divergence: Series
    grad_norm: Series
    ratio_max: Series
    ratio_min: Series
    seconds: Series


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Graded completions of the held-out problems, which are the same for all runs.

    Attributes:
        samples: Completions per problem.
        temperature: Sampling temperature.
        correct: Number of correct samples, one entry per problem.
        greedy: 1 if the greedy completion is correct, else 0, one entry per problem; [] if not requested.
        entropy: Mean entropy in nats per token.
        length: Mean length in tokens.
        truncated: Share of completions that were cut off.
        distinct: Mean number of different right answers among a problem's samples; absent unless the task has many.
        spread: Mean entropy of the right answers in nats, with the Miller-Madow correction; absent as above.
        parts: Token positions -> mean entropy there, "0:6" and "6:" where `eval.cuts` is [6]; absent without cuts.
    """

    samples: int
    temperature: float
    correct: list[int]
    greedy: list[int]
    entropy: float | None
    length: float | None
    truncated: float | None
    distinct: float | None = None
    spread: float | None = None
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BeforeAfter:
    """The held-out problems before and after training.

    Attributes:
        before: Before the first update.
        after: After the last update.
    """

    before: HeldOut
    after: HeldOut


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run, whatever its status.

    Attributes:
        method: Label in `study.methods`.
        point: Its point in the sweep, axis -> label; {} without a sweep.
        seed: Seed of the run.
        status: Whether it finished, failed or is waiting.
        command: The command that ran it, paths relative to the study's directory.
        error: Why it failed; absent otherwise.
    """

    method: str
    point: dict[str, str]
    seed: int
    status: Literal["finished", "failed", "waiting"]
    command: str = ""
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What a finished run recorded; in the file these keys are next to those of `RunResult`.

    Attributes:
        rule: The clip rule as used, calibrated values included.
        seconds: Wall time of the run's last process, evaluations included.
        stopped_by: The alarm that ended the run early; null if none did.
        updates_per_rollout: Updates between two rollouts.
        alarms: [update, alarm, "fired" or "cleared"].
        rollouts: Series with one entry per rollout.
        updates: Series with one entry per update or per few updates.
        evaluation: Held-out problems; null if the recipe does not evaluate.
    """

    rule: Settings
    seconds: float
    stopped_by: str | None
    updates_per_rollout: int
    alarms: list[tuple[int, str, str]]
    rollouts: Rollouts
    updates: Updates
    evaluation: BeforeAfter | None


@dataclass(frozen=True, kw_only=True)
class FinishedRun(TrainingRecord, RunResult):
    """A finished run.

    Attributes:
        commit: Commit of the source tree that it was run with.
    """

    commit: str | None = None


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """A study and its runs.

    Attributes:
        name: Name of the study.
        study: The study as run, as in its YAML (docs/lab.md); methods in display order.
        environment: Versions and hardware; null before the first run has finished.
        calibration: Label of a matched control, with its point in the sweep -> what its pilot runs found.
        runs: In the order of the study: point, method, seed.
        format: Version of this format.
    """

    name: str
    study: Study
    environment: Environment | None
    calibration: dict[str, Calibration]
    runs: list[RunResult]
    format: int = FORMAT

    @property
    def finished(self) -> list[FinishedRun]:
        return [run for run in self.runs if isinstance(run, FinishedRun)]

    @property
    def failed(self) -> list[RunResult]:
        return [run for run in self.runs if run.status == "failed"]

    @property
    def metric(self) -> str:
        """The study's metric in common notation: mean@n with its number of samples."""
        samples = {run.evaluation.after.samples for run in self.finished if run.evaluation}
        return f"mean@{samples.pop()}" if self.study.metric == "mean" and len(samples) == 1 else self.study.metric

    @classmethod
    def load(cls, path: Path) -> StudyResult:
        """The content of metrics.json, of this format or an older one.

        Raises:
            ValueError: If it is missing or damaged, or has another format.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{str(path)!r} does not exist; `bandpo compare STUDY --output DIR` writes it") from None
        except ValueError as error:
            raise ValueError(f"{str(path)!r} is damaged: {error}") from error
        if not isinstance(data, dict) or data.get("format") not in range(1, FORMAT + 1):
            raise ValueError(f"{str(path)!r} has another format; allowed: 1 to {FORMAT}")
        try:
            return cls.parse(data)
        except ValueError as error:
            raise ValueError(f"{str(path)!r} is damaged: {error}") from error

    @classmethod
    def parse(cls, data: dict[str, Any]) -> StudyResult:
        """A result from its JSON.

        Raises:
            ValueError: If a key is missing, a value has another type, or a run's method is not in the study; one
                sentence that names the place.
        """
        missing = [key for key in ("name", "study", "environment", "calibration", "runs") if key not in data]
        if missing:
            raise ValueError(f"{missing[0]}: Field required")
        _checked("runs", TypeAdapter(list[dict]), data["runs"])
        data = upgrade(data)
        study = _checked("study", TypeAdapter(Study), data["study"])
        runs = [_parse_run(f"runs.{i}", run) for i, run in enumerate(data["runs"])]
        for i, run in enumerate(runs):
            if run.method not in study.methods:
                raise ValueError(f"runs.{i}.method is {run.method!r}, which is not a method of the study")
        return cls(
            name=data["name"],
            study=study,
            environment=_checked("environment", _ENVIRONMENT, data["environment"]),
            calibration=load_calibration(data["calibration"]),
            runs=runs,
        )

    def dump(self) -> str:
        """The text of metrics.json: one line per run, so that versions of the file diff well."""
        head = {
            "format": self.format,
            "name": self.name,
            "study": self.study.model_dump(mode="json"),
            "environment": _ENVIRONMENT.dump_python(self.environment, mode="json"),
            "calibration": dump_calibration(self.calibration),
        }
        runs = ",\n".join(json.dumps(dump_run(run), separators=(",", ":"), allow_nan=False) for run in self.runs)
        return f'{json.dumps(head, indent=1, allow_nan=False)[:-2]},\n "runs": [\n{runs}\n]}}\n'

    def save(self, path: Path) -> None:
        """Write metrics.json atomically."""
        write_atomic(path, self.dump())


_ENVIRONMENT: TypeAdapter[Environment | None] = TypeAdapter(Environment | None)
_CALIBRATION = TypeAdapter(dict[str, Calibration])
_FINISHED: TypeAdapter[FinishedRun] = TypeAdapter(FinishedRun)
_UNFINISHED: TypeAdapter[RunResult] = TypeAdapter(RunResult)
T = TypeVar("T")


def _checked(where: str, adapter: TypeAdapter[T], data: object) -> T:
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, (where, *first["loc"])))
        raise ValueError(f"{key}: {first['msg'].removeprefix('Value error, ')}") from error


def _parse_run(where: str, data: dict[str, Any]) -> RunResult:
    if data.get("status") == "finished":
        return _checked(where, _FINISHED, data)
    return _checked(where, _UNFINISHED, data)


def load_calibration(data: object) -> dict[str, Calibration]:
    """`StudyResult.calibration` from its JSON, which is also in calibration.json.

    Raises:
        ValueError: If a value has another type.
    """
    return _checked("calibration", _CALIBRATION, data)


def dump_calibration(calibration: dict[str, Calibration]) -> dict[str, Any]:
    return _CALIBRATION.dump_python(calibration, mode="json")


def dump_run(run: RunResult) -> dict[str, Any]:
    """A run as JSON holds it, whole numbers of its series without a decimal point."""
    if isinstance(run, FinishedRun):
        data = _FINISHED.dump_python(run, mode="json")
        data |= {key: _whole(data[key]) for key in ("rollouts", "updates", "evaluation")}
        for held_out in (data["evaluation"] or {}).values():
            for name in ("distinct", "spread", "parts"):
                if held_out[name] in (None, {}):
                    del held_out[name]
    else:
        data = _UNFINISHED.dump_python(run, mode="json")
    return {key: value for key, value in data.items() if value or key not in ("command", "error")}


def _whole(value: Any) -> Any:
    match value:
        case float():
            return int(value) if value.is_integer() else value
        case list():
            return [_whole(item) for item in value]
        case dict():
            return {key: _whole(item) for key, item in value.items()}
    return value


def upgrade(data: dict[str, Any]) -> dict[str, Any]:
    """The content of metrics.json in today's format.

    Format 1 called the clip fractions of the updates clip_low and clip_high, and wrote {} for no environment.
    """
    if data["format"] == FORMAT:
        return data
    return {
        **data,
        "format": FORMAT,
        "environment": None if data["environment"] == {} else data["environment"],
        "runs": [
            {**run, "updates": dict(_renamed(run["updates"].items()))} if "updates" in run else run
            for run in data["runs"]
        ],
    }


_NAMES_OF_FORMAT_1 = {"clip_low": "clip_fraction_low", "clip_high": "clip_fraction_high"}


def _renamed(items: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, Any]]:
    return ((_NAMES_OF_FORMAT_1.get(key, key), value) for key, value in items)
