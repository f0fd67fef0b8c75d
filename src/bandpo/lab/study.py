"""A study: which methods are compared, on which recipe, with which seeds. One YAML file, validated strictly."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from itertools import product
from pathlib import Path

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from bandpo.evaluation.result import PART, part_name
from bandpo.evaluation.sampling import slices
from bandpo.runs.config import RunConfig, load_config
from bandpo.settings import (
    Strict,
    apply_override,
    explain,
    find_yaml,
    flatten,
    parse_mapping,
    parse_value,
    yaml_names,
)
from bandpo.words import nearest

STUDIES = resources.files("bandpo") / "studies"
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+=-]*")
MATCH = "match"
DECIDING = "mean, greedy, reward, entropy, entropy[FROM:TO] or pass@K"
_METRIC = re.compile(rf"mean|greedy|reward|entropy|pass@[1-9]\d*|{PART.pattern}")

Settings = dict[str, JsonValue]  # of a run, nested as in a recipe or with dotted keys


class Match(Strict):
    """A matched control: settings chosen so that a metric of its runs matches another method's.

    Attributes:
        method: Label of the method whose metric is to be matched.
        key: The setting to choose, or several that all get the same value. The metric must rise or fall with it.
        range: Smallest and largest value to try, both positive; values are tried on a logarithmic scale.
        metric: A metric of the trainer, averaged over the pilot run.
    """

    method: str
    key: str | list[str]
    range: tuple[float, float]
    metric: str = "band/clip_fraction"

    @field_validator("range")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] < value[1]:
            raise ValueError(f"range is {list(value)}; allowed: two numbers 0 < smallest < largest")
        return value

    @property
    def keys(self) -> list[str]:
        return [self.key] if isinstance(self.key, str) else self.key


class Pilot(Strict):
    """The short runs that choose the settings of matched controls.

    Attributes:
        seed: Seed of pilot runs only, so that no run that counts is used to choose.
        trials: Bisections after both ends of the range; each is one run.
        tolerance: The search ends early within this relative distance of the target.
        overrides: How pilot runs differ from the study's runs; they are never evaluated.
    """

    seed: int = 1000
    trials: int = Field(default=5, ge=1)
    tolerance: float = Field(default=0.1, gt=0)
    overrides: Settings = Field(default_factory=dict)


class Budget(Strict):
    """Resources of one run on the machine where the study was tuned; sets the parallelism and the first estimate.

    Attributes:
        seconds: Wall time.
        memory: GB of memory (of the machine, on a CPU).
    """

    seconds: float | None = Field(default=None, gt=0)
    memory: float = Field(default=2.0, gt=0)


class Study(Strict):
    """Everything that determines a study.

    Attributes:
        description: One line.
        recipe: Base recipe by name, or a .yaml file.
        overrides: Settings of all runs that differ from the recipe: nested, or with dotted keys.
        methods: Label -> the method's settings; an additional `match` makes it a matched control.
        reference: Label of the method that the others are compared with.
        seeds: Seeds of initial weights, data order and sampling; runs with the same seed start from the same weights.
        sweep: Axis -> values of the setting of that name, or -> {label: settings}. Every combination is run.
        metric: The deciding metric: mean, greedy, entropy, entropy[FROM:TO] (see `eval.cuts`) or pass@K of the
            held-out problems after training, or reward.
        budget: See `Budget`.
        pilot: See `Pilot`.
        start: Directory of a study with `keep: true`: each run starts from the final model of that study's run
            of the same method, point and seed.
        keep: Whether finished runs keep their checkpoints and models.
        launch: Command before `train`, e.g. [accelerate, launch, -m, bandpo]; empty starts this Python.
        workers: Runs in parallel; null decides by the machine.
    """

    description: str = ""
    recipe: str
    overrides: Settings = Field(default_factory=dict)
    methods: dict[str, Settings] = Field(min_length=1)
    reference: str
    seeds: list[int] = Field(min_length=1)
    sweep: dict[str, list[JsonValue] | dict[str, Settings]] = Field(default_factory=dict)
    metric: str = "mean"
    budget: Budget = Budget()
    pilot: Pilot = Pilot()
    start: str | None = None
    keep: bool = False
    launch: list[str] = Field(default_factory=list)
    workers: int | None = Field(default=None, ge=1)

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        if not _METRIC.fullmatch(value):
            raise ValueError(f"metric is {value!r}; allowed: {DECIDING}")
        return value

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value):
            raise ValueError(f"seeds are {value}; allowed: distinct seeds")
        return value

    @model_validator(mode="after")
    def _labels(self) -> Study:
        labels = [*self.methods, *self.sweep, *(label for axis in self.sweep for label in self.axis(axis))]
        for label in labels:
            if not LABEL.fullmatch(label):
                raise ValueError(f"label {label!r}; allowed: letters, digits, spaces and . _ + = -")
        folders = [run.folder for run in self.runs()]
        if len(set(folders)) < len(folders):
            raise ValueError("two labels differ only in spaces and underscores")
        if self.reference not in self.methods:
            raise ValueError(
                f"reference {self.reference!r} is not a method{nearest(self.reference, self.methods)}; methods: "
                f"{', '.join(self.methods)}"
            )
        for label in self.methods:
            match = self.match(label)
            if match is None:
                continue
            if match.method not in self.methods or self.match(match.method) is not None:
                raise ValueError(f"methods.{label}.match.method is {match.method!r}; allowed: an unmatched method")
            if self.start is not None:
                raise ValueError(f"methods.{label}.match: a pilot run has no model in {self.start!r} to start from")
        return self

    def match(self, label: str) -> Match | None:
        """How a method is matched to another one, if it is."""
        found = self.methods[label].get(MATCH)
        if found is None:
            return None
        try:
            return Match.model_validate(found)
        except ValidationError as error:
            raise ValueError(f"methods.{label}.match: {explain(error, Match)}") from error

    def axis(self, name: str) -> dict[str, Settings]:
        """Label -> settings of one axis of the sweep."""
        values = self.sweep[name]
        return values if isinstance(values, dict) else {str(value): {name: value} for value in values}

    def points(self) -> list[dict[str, str]]:
        """Every point of the sweep, axis -> label; one empty point without a sweep."""
        return [
            dict(zip(self.sweep, labels, strict=True))
            for labels in product(*(self.axis(name) for name in self.sweep))
        ]

    def runs(self) -> list[Run]:
        """In the order of metrics.json."""
        return [Run(method, point, seed) for point in self.points() for method in self.methods for seed in self.seeds]

    def settings(self, method: str, point: dict[str, str]) -> Settings:
        """Dotted key -> value for all runs of a method at a point of the sweep."""
        own = {key: value for key, value in self.methods[method].items() if key != MATCH}
        return collapse(self.overrides, own, *(self.axis(name)[label] for name, label in point.items()))


@dataclass(frozen=True)
class Run:
    """One run of a study; a pilot run has a `trial`."""

    method: str
    point: dict[str, str] = field(hash=False)
    seed: int
    trial: str = ""

    @property
    def folder(self) -> Path:
        """Its run directory within the study's."""
        place = [",".join(f"{name}={label}" for name, label in self.point.items())] if self.point else []
        parts = [self.method, *place, self.trial or str(self.seed)]
        return Path("pilots" if self.trial else "runs", *(part.replace(" ", "_") for part in parts))

    @property
    def title(self) -> str:
        place = " ".join(f"{name}={label}" for name, label in self.point.items())
        return " ".join(filter(None, [self.method, place, self.trial or f"seed {self.seed}"]))


def collapse(*layers: Mapping[str, JsonValue]) -> Settings:
    """Settings merged in order, as dotted key -> value; a different `name` drops the options set before it.

    A later rule or task thus starts from its own defaults, as in a recipe.
    """
    result: Settings = {}
    for layer in layers:
        for key, value in sorted(flatten(layer), key=lambda pair: not pair[0].endswith(".name")):
            parent, _, last = key.rpartition(".")
            covered = f"{parent}." if last == "name" and result.get(key, value) != value else f"{key}."
            result = {k: v for k, v in result.items() if not k.startswith(covered)}
            result[key] = value
    return result


def as_overrides(settings: Settings) -> list[str]:
    """Dotted key -> value as the command line takes it; JSON is YAML."""
    return [f"{key}={_as_text(value)}" for key, value in settings.items()]


def _as_text(value: JsonValue) -> str:
    if isinstance(value, str) and re.fullmatch(r"[\w./:-]+", value) and parse_value(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def study_names() -> list[str]:
    return yaml_names(STUDIES)


def load_study(study: str, overrides: list[str] | None = None) -> Study:
    """Read a study by name or path, apply `key=value` overrides, validate it and every run in it.

    An override names a key of the study (seeds=[0, 1]), or a setting of all its runs (train.max_steps=40).

    Raises:
        ValueError: For an unknown study, key or value; if it is one method's, the message names the method.
    """
    text, path = find_yaml("study", study, STUDIES)
    data = parse_mapping(text, f"study {study!r}")
    recipe = data.get("recipe")
    if path is not None and isinstance(recipe, str) and recipe.endswith((".yaml", ".yml")):
        data["recipe"] = str(path.parent / Path(recipe).expanduser())
    for override in overrides or []:
        key = override.partition("=")[0].strip().split(".")[0]
        if key in Study.model_fields:
            apply_override(data, override, Study)
        elif key and key not in RunConfig.model_fields:
            known = dict.fromkeys([*Study.model_fields, *RunConfig.model_fields])
            raise ValueError(f"unknown key {key!r}{nearest(key, known)}; a study takes: {', '.join(known)}")
        else:
            common: Settings = {}
            apply_override(common, override, RunConfig)
            data["overrides"] = collapse(data.get("overrides") or {}, common)
    return validate_study(data)


def validate_study(data: Settings) -> Study:
    """Validate a study and the configuration of every method in it.

    Raises:
        ValueError: One sentence on the first problem.
    """
    try:
        study = Study.model_validate(data)
    except ValidationError as error:
        raise ValueError(explain(error, Study)) from error
    for method in study.methods:
        for point in study.points():
            try:
                _check(study, method, run_config(study, Run(method, point, study.seeds[0])))
            except ValueError as error:
                raise ValueError(f"method {method!r}: {error}") from error
    return study


def _check(study: Study, method: str, config: RunConfig) -> None:
    match = study.match(method)
    if match is not None:
        middle = {key: sum(match.range) / 2 for key in match.keys}
        load_config(study.recipe, as_overrides(collapse(study.settings(method, study.points()[0]), middle)))
    name, _, k = study.metric.partition("@")
    if config.eval is None:
        if study.metric != "reward":
            raise ValueError(f"metric {study.metric!r} needs an evaluation, and eval is null; allowed: reward")
    elif name == "pass" and int(k) > config.eval.samples:
        raise ValueError(f"metric is {study.metric!r}, but eval.samples is {config.eval.samples}")
    elif PART.fullmatch(study.metric) and study.metric not in map(part_name, slices(config.eval.cuts)):
        raise ValueError(f"metric is {study.metric!r}, but eval.cuts is {config.eval.cuts}")
    elif name == "greedy" and not config.eval.greedy:
        raise ValueError("metric is 'greedy', but eval.greedy is false")


def run_settings(study: Study, run: Run, calibrated: Settings | None = None) -> Settings:
    """Dotted key -> value of a run, its initial weights not yet shared.

    Args:
        calibrated: Settings chosen for a matched control.
    """
    layers: list[Settings] = [study.settings(run.method, run.point), calibrated or {}, {"seed": run.seed}]
    if study.start is not None:
        layers.append({"model.scratch": None, "model.path": str(start_model(study, run)), "warmup": None})
    if run.trial:
        layers += [study.pilot.overrides, {"eval": None, "seed": study.pilot.seed}]
    return collapse(*layers)


def start_model(study: Study, run: Run) -> Path:
    """Where the model of a study with `start` is."""
    assert study.start is not None
    return Path(study.start).resolve() / run.folder / "model"


def run_config(study: Study, run: Run, calibrated: Settings | None = None) -> RunConfig:
    return load_config(study.recipe, as_overrides(run_settings(study, run, calibrated)))


def initial_folder(config: RunConfig) -> Path | None:
    """Where the study keeps a run's initial weights; None if they are an unmodified model's.

    Runs share them if they agree in everything that determines them: model, task, warm-up and seed.
    """
    if config.model.scratch is None and config.warmup is None:
        return None
    dump = config.model_dump(mode="json", include={"model", "task", "warmup"})
    digest = hashlib.sha256(json.dumps(dump, sort_keys=True).encode()).hexdigest()[:8]
    return Path("initial", f"{config.seed}-{digest}")
