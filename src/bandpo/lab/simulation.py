"""Settings and results of `bandpo.lab.bandit`: settings in YAML, validated strictly, and typed results."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, TypeAdapter, ValidationError, model_validator

from bandpo.files import write_atomic
from bandpo.settings import Strict, apply_overrides, explain, find_yaml, parse_mapping, yaml_names
from bandpo.words import nearest

SIMULATIONS = resources.files("bandpo") / "simulations"
EDGES = (0.0, 0.001, 0.01, 0.1, 0.3, 0.7, 0.95, 1.0)
"""Edges of the bins of the old probability; a bin holds its lower edge, the last one also 1."""
METRICS = ("success", "entropy_deciding", "entropy_neutral", "spread", "clip_fraction_low", "clip_fraction_high")
DIGITS = 6  # significant digits of the numbers in a file


class Expected(Strict):
    """Numbers that a simulation should reproduce.

    Attributes:
        metric: A series of `RuleRun`.
        values: Label of the rule -> number.
        rollout: Number of rollouts after which they hold; null is the mean over the run.
        success: Alternative to `rollout`: where the success first reaches this value, interpolated between rollouts.
        prompts: Prompts in the run that the numbers come from; determines their sampling error.
        rounding: Half a unit of their last digit.
    """

    metric: Literal[METRICS]  # type: ignore[valid-type]
    values: dict[str, float] = Field(min_length=1)
    rollout: int | None = Field(default=None, ge=0)
    success: float | None = Field(default=None, gt=0, lt=1)
    prompts: int = Field(ge=2)
    rounding: float = Field(default=0.005, ge=0)


class Change(Strict):
    """What changes from a rollout on; null is as before.

    Attributes:
        learning_rate: New learning rate.
        target: New target of every controller.
    """

    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    target: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class Simulation(Strict):
    """A batch of tabular softmax policies (prompts, positions, vocabulary), trained once under each rule.

    Attributes:
        description: One line.
        prompts: Number of independent prompts, each with its own logits.
        positions: Tokens per completion; all get the advantage of their completion.
        vocabulary: Tokens to choose from at each position.
        exponent: A token's initial logit is -exponent ln(1 + rank); the token's id is its rank.
        deciding: Number of leading positions that decide the reward, 1 if all of them hold a right answer. With 0 the
            reward is a fair coin, and all positions are neutral.
        answers: Number of right answers at each deciding position, drawn separately for every prompt; or the list of
            their ranks.
        first_rank: Smallest rank that is drawn.
        group: Completions per prompt and rollout.
        rollouts: Number of rollouts.
        updates: Updates per rollout, each on the full rollout.
        lag: Staleness in rollouts of the sampling policy, on which the trust region is centered, relative to the
            one that is trained.
        advantage: "mean": R - mean; "mean/std": that over (std + 1e-4), std with n - 1.
        optimizer: "gradient": gradient ascent. Adam with a second moment per logit ("adam"), one per token of the
            vocabulary, shared by prompts and positions ("adam-token"), or a single one ("adam-shared").
        learning_rate: Learning rate of the optimizer.
        seed: Seed of answers, samples and coins, which are the same under every rule.
        rules: Label -> a rule as in recipes: {name: band, radius: 0.05}, optionally with a controller:
            {name: band, control: {metric: entropy, target: 2.5}}.
        changes: Rollouts done -> what changes from then on, as a disturbance for controllers.
        expected: Numbers that it should reproduce.

    Raises:
        ValueError: One sentence that names the setting, its value and what is allowed.
    """

    description: str = ""
    prompts: int = Field(default=512, ge=2)
    positions: int = Field(default=1, ge=1)
    vocabulary: int = Field(default=64, ge=2)
    exponent: float = Field(default=1.5, ge=0, allow_inf_nan=False)
    deciding: int = Field(default=0, ge=0)
    answers: int | list[int] = 1
    first_rank: int = Field(default=0, ge=0)
    group: int = Field(default=16, ge=2)
    rollouts: int = Field(default=60, ge=1)
    updates: int = Field(default=16, ge=1)
    lag: int = Field(default=0, ge=0)
    advantage: Literal["mean", "mean/std"] = "mean/std"
    optimizer: Literal["gradient", "adam", "adam-token", "adam-shared"] = "gradient"
    learning_rate: float = Field(default=0.3, gt=0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0)
    rules: dict[str, dict[str, JsonValue]] = Field(default={"band": {"name": "band"}}, min_length=1)
    changes: dict[int, Change] = Field(default_factory=dict)
    expected: list[Expected] = Field(default_factory=list)

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise ValueError(explain(error, type(self))) from None

    @model_validator(mode="after")
    def _possible(self) -> Simulation:
        if self.deciding > self.positions:
            raise ValueError(f"deciding is {self.deciding}; allowed: 0 to positions, {self.positions}")
        if isinstance(self.answers, list):
            ranks = set(self.answers)
            if len(ranks) < max(len(self.answers), 1) or min(ranks) < 0 or max(ranks) >= self.vocabulary:
                last = self.vocabulary - 1
                raise ValueError(f"answers are {self.answers}; allowed: distinct ranks from 0 to {last}")
        elif not 1 <= self.answers <= self.vocabulary - self.first_rank:
            raise ValueError(
                f"answers is {self.answers}; allowed: 1 to {self.vocabulary - self.first_rank}, the ranks from "
                f"{self.first_rank} up in a vocabulary of {self.vocabulary}"
            )
        for label, rule in self.rules.items():
            if not isinstance(rule.get("name"), str):
                raise ValueError(f"rules.{label} has no name; write it as {{name: band, radius: 0.05}}")
        for rollout, change in self.changes.items():
            if not 0 < rollout < self.rollouts:
                raise ValueError(f"changes has {rollout}; allowed: a rollout from 1 to {self.rollouts - 1}")
            if change.target is not None and not any("control" in rule for rule in self.rules.values()):
                raise ValueError(f"changes.{rollout} has a target, but no rule has a control")
        for label in {label for cells in self.expected for label in cells.values} - set(self.rules):
            raise ValueError(f"expected has an unknown rule {label!r}{nearest(label, self.rules)}")
        return self


def load_simulation(name: str, overrides: list[str] | None = None) -> Simulation:
    """A simulation by name or by the path of a .yaml file, with `key=value` overrides.

    Raises:
        ValueError: For an unknown name, key or value; one sentence.
    """
    data = parse_mapping(find_yaml("simulation", name, SIMULATIONS)[0], f"simulation {name!r}")
    if overrides:
        # Numbers found under other settings are not expected under these.
        data.pop("expected", None)
        apply_overrides(data, overrides)
    return Simulation(**data)


def simulation_names() -> list[str]:
    return yaml_names(SIMULATIONS)


@dataclass(frozen=True)
class Series:
    """Means over prompts and their standard errors over prompts, one entry per rollout."""

    mean: list[float]
    error: list[float]


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The entropy ledger (`bandpo.lab.bandit.entropy_change`), one entry per rollout: nats, means over positions.

    Attributes:
        let_in_high: First-order change of the entropy due to the tokens with A > 0 that kept their gradient.
        let_in_low: The same for A < 0.
        kept_out_high: What the tokens that the rule clipped above a ratio of 1 would have added.
        kept_out_low: The same below.
        realized: The actual change.
    """

    let_in_high: list[float]
    let_in_low: list[float]
    kept_out_high: list[float]
    kept_out_low: list[float]
    realized: list[float]

    @property
    def predicted(self) -> list[float]:
        """let_in_high + let_in_low, to be compared with `realized`."""
        return [a + b for a, b in zip(self.let_in_high, self.let_in_low, strict=True)]


@dataclass
class ControlRun:
    """What a controller (`bandpo.core.control`) did, one entry per rollout.

    Attributes:
        value: The number that it controls, floor or radius, during the updates on this rollout.
        measured: The measurement that it used; null before the first one.
        target: Its target.
        warning: The message that the target cannot be reached, once that is known.
    """

    value: list[float]
    measured: list[float | None]
    target: list[float]
    warning: str | None = None

    def errors(self, start: int, end: int) -> list[float]:
        """Relative distances of the measurements from the target in the rollouts `start` to `end` - 1."""
        seen = zip(self.measured[start:end], self.target[start:end], strict=True)
        return [measured / target - 1 for measured, target in seen if measured is not None]


@dataclass(frozen=True, kw_only=True)
class RuleRun:
    """A simulation under one rule.

    Series of states have one entry before the first rollout and one after each; all others have one per rollout.

    Attributes:
        rule: As in recipes.
        success: Probability that a completion is right; null without deciding positions.
        entropy_deciding: Entropy of the deciding positions in nats per token; null if there are none.
        entropy_neutral: The same for the others.
        spread: Entropy within the right answers, -sum q ln q with q = pi / pi(right), mean over deciding positions.
        clip_fraction_low: Share of the tokens, over the updates on a rollout, that lost their gradient below a ratio
            of 1.
        clip_fraction_high: The same above 1.
        clip_low_by_probability: The same for each bin of the old probability (`EDGES`), as a share of its tokens;
            null for a bin without tokens.
        clip_high_by_probability: The same above 1.
        divergence: KL(policy that sampled || policy after the updates) per position in nats, exact.
        ledger: Contributions to the change of entropy.
        ledger_deciding: The same for the deciding positions only; null if there are none.
        ledger_neutral: The same for the others.
        ledger_by_probability: The first four columns of `ledger` split by bin of the tokens' old probability:
            column -> rollout -> bin; null under Adam, whose momentum holds tokens of earlier rollouts.
        seconds: Wall time.
        control: History of the rule's controller; null without one.
    """

    rule: dict[str, JsonValue]
    success: Series | None
    entropy_deciding: Series | None
    entropy_neutral: Series | None
    spread: Series | None
    clip_fraction_low: Series
    clip_fraction_high: Series
    clip_low_by_probability: list[list[float | None]]
    clip_high_by_probability: list[list[float | None]]
    divergence: Series
    ledger: Ledger
    ledger_deciding: Ledger | None = None
    ledger_neutral: Ledger | None = None
    ledger_by_probability: dict[str, list[list[float]]] | None = None
    seconds: float
    control: ControlRun | None = None


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """The content of a simulation's JSON file.

    Attributes:
        name: Name of the simulation.
        settings: Everything that determines it.
        runs: Label of the rule -> result.
    """

    name: str
    settings: Simulation
    runs: dict[str, RuleRun]

    @classmethod
    def load(cls, path: Path) -> SimulationResult:
        """Read the file.

        Raises:
            ValueError: If it was not written by `save`; names the key.
        """
        try:
            return _RESULT.validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    def dump(self) -> str:
        """The text of the file: strict JSON, numbers of `DIGITS` significant digits."""
        return json.dumps(_rounded(_RESULT.dump_python(self, mode="json")), allow_nan=False) + "\n"

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        write_atomic(path, self.dump())


_RESULT = TypeAdapter(SimulationResult)


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.{DIGITS}g}")
        case list():
            return [_rounded(item) for item in value]
        case dict():
            return {key: _rounded(item) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class Agreement:
    """An expected number and the observed one.

    Attributes:
        rule: Label.
        metric: Name of the series.
        place: Where on the curve, in words.
        expected: The number.
        seen: The observed number; null if the success was never reached.
        error: Standard error of their difference: both runs' sampling errors, and the rounding of the expected one.
    """

    rule: str
    metric: str
    place: str
    expected: float
    seen: float | None
    error: float | None

    @property
    def z(self) -> float | None:
        """The difference in standard errors."""
        if self.seen is None or self.error is None:
            return None
        return (self.seen - self.expected) / self.error


def agreements(result: SimulationResult) -> list[Agreement]:
    """Every expected number of the settings with the observed one."""
    found = []
    for cells in result.settings.expected:
        place = "mean over the run" if cells.rollout is None else f"after {cells.rollout}"
        if cells.success is not None:
            place = f"at success {cells.success:g}"
        for label, expected in cells.values.items():
            value = _at(result.runs[label], cells)
            error = None
            if value is not None:
                ratio = result.settings.prompts / cells.prompts
                error = math.sqrt(value[1] ** 2 * (1 + ratio) + cells.rounding**2 / 3)
            found.append(Agreement(label, cells.metric, place, expected, value[0] if value else None, error))
    return found


def _at(run: RuleRun, cells: Expected) -> tuple[float, float] | None:
    """(mean, standard error) of the series at that place; the error of a mean over the run is an upper bound."""
    series = getattr(run, cells.metric)
    if series is None:
        return None
    if cells.success is not None:
        successes = run.success.mean if run.success else []
        for i in range(1, len(successes)):
            if successes[i] >= cells.success > successes[i - 1]:
                share = (cells.success - successes[i - 1]) / (successes[i] - successes[i - 1])
                return series.mean[i - 1] + share * (series.mean[i] - series.mean[i - 1]), series.error[i]
        return None
    if cells.rollout is not None:
        return (series.mean[cells.rollout], series.error[cells.rollout]) if cells.rollout < len(series.mean) else None
    return sum(series.mean) / len(series.mean), sum(series.error) / len(series.error)


def ledger_totals(run: RuleRun, ledger: str = "ledger") -> dict[str, float]:
    """A ledger of the run (the name of its field) summed over the run: the fields of `Ledger`, and `predicted`."""
    names = [*(field.name for field in fields(Ledger)), "predicted"]
    return {name: sum(getattr(getattr(run, ledger), name)) for name in names}
