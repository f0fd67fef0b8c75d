"""Alarms: early warnings for common training failures, in words.

Every alarm turns the logged metrics into one number, its severity: 1 at the limit, more beyond it. It fires at 1
and clears below `AlarmConfig.clear`, so it fires once, however long the problem lasts. docs/alarms.md lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator

from bandpo.settings import Strict
from bandpo.words import nearest

Row = Mapping[str, Any]  # one log line of the trainer

SAMPLER_GAP = "sampling/sampling_logp_difference/mean"
FIRST_DISTANCE = "band/first_distance"
CONTROL_STUCK = "band/control_stuck"
LEAST_REWARD = 0.1
"""A rise of the reward is compared with its first values, or with this if they are smaller."""


class AlarmConfig(Strict):
    """When the alarms of docs/alarms.md fire, and which of them stop the run.

    Attributes:
        window: Log lines over which low entropy, ratios and the cap are watched; the first `window` are the baseline.
        rollouts: Rollouts over which high entropy, groups, lengths and the sampler are watched.
        clear: An alarm clears when its severity falls below this fraction of the threshold.
        entropy_low: Entropy collapses below this many nats per token and this fraction of the baseline.
        entropy_low_share: See `entropy_low`.
        entropy_high: Entropy explodes above this many nats per token and this multiple of the first rollouts', if the
            reward does not rise.
        entropy_high_factor: See `entropy_high`.
        cap_fraction: Share of tokens beyond the rule's cap.
        first_distance: Mean |log-ratio| in nats of a rollout's first update, when no weight has moved yet.
        sampler_difference: Mean |log-prob of the trainer - log-prob of the sampler| in nats.
        sampler_unseen: The same when every ratio is 1, so that no rule sees it.
        zero_variance: Share of groups whose rewards are all equal, in each of the rollouts.
        truncated: Share of completions that reached the length limit, in each of the rollouts.
        stop: Whether alarms stop the run, or the names of the alarms that do.
    """

    window: int = Field(default=8, ge=1)
    rollouts: int = Field(default=4, ge=1)
    clear: float = Field(default=0.8, gt=0, le=1)
    entropy_low: float = Field(default=0.1, gt=0)
    entropy_low_share: float = Field(default=0.25, gt=0)
    entropy_high: float = Field(default=1.0, gt=0)
    entropy_high_factor: float = Field(default=1.2, gt=0)
    cap_fraction: float = Field(default=0.01, gt=0)
    first_distance: float = Field(default=0.02, gt=0)
    sampler_difference: float = Field(default=0.1, gt=0)
    sampler_unseen: float = Field(default=0.03, gt=0)
    zero_variance: float = Field(default=0.99, gt=0)
    truncated: float = Field(default=0.95, gt=0)
    stop: bool | list[str] = False

    @field_validator("stop", mode="before")
    @classmethod
    def _known_alarms(cls, value: Any) -> Any:
        known = [alarm.name for alarm in ALARMS]
        if not isinstance(value, bool | list):
            raise ValueError(f"{value!r} is neither true, false nor a list of alarms: {', '.join(known)}")
        for name in value if isinstance(value, list) else []:
            if name not in known:
                raise ValueError(f"unknown alarm {name!r}{nearest(name, known)}; known: {', '.join(known)}")
        return value

    def stops(self, name: str) -> bool:
        return self.stop if isinstance(self.stop, bool) else name in self.stop


@dataclass(frozen=True)
class Reading:
    """What an alarm computes from the rows: its severity, and the values behind it."""

    severity: float
    figures: dict[str, float]


@dataclass(frozen=True)
class Alarm:
    """A kind of failure.

    Attributes:
        name: As in `AlarmConfig.stop`.
        keys: Metrics it needs; it sees only rows that have them all.
        measure: Severity from these rows, oldest first (of a long run, its first and its last rows), or None
            if unknown, which leaves the alarm as it was.
        meaning: One sentence on what the problem is.
        advice: What to try, most promising first.
    """

    name: str
    keys: tuple[str, ...]
    measure: Callable[[Sequence[Row], AlarmConfig], Reading | None]
    meaning: str
    advice: tuple[str, ...]


@dataclass(frozen=True)
class Event:
    """An alarm that fired or cleared at a step; `meaning` and `advice` are those of the alarm that fired."""

    step: int
    alarm: str
    event: str  # "fired" or "cleared"
    figures: dict[str, float]
    meaning: str = ""
    advice: tuple[str, ...] = ()

    def text(self) -> str:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.figures.items())
        head = f"alarm {self.alarm} {self.event} at update {self.step} ({figures})"
        if not self.meaning:
            return head
        return "\n  ".join([f"{head}: {self.meaning}", *(f"- {advice}" for advice in self.advice)])


def _mean(rows: Sequence[Row], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def _gain(first: Sequence[Row], last: Sequence[Row]) -> float:
    """By how much the reward has risen, relative to its first values."""
    start, now = _mean(first, "reward"), _mean(last, "reward")
    return max(0.0, now - start) / max(abs(start), LEAST_REWARD)


def entropy_collapse(rows: Sequence[Row], config: AlarmConfig) -> Reading | None:
    """Entropy below an absolute level and below a share of its first values."""
    if len(rows) < 2 * config.window:
        return None
    start, now = _mean(rows[: config.window], "entropy"), _mean(rows[-config.window :], "entropy")
    limit = min(config.entropy_low, config.entropy_low_share * start)
    return Reading(limit / max(now, 1e-12), {"entropy": now, "at the start": start})


def entropy_explosion(rows: Sequence[Row], config: AlarmConfig) -> Reading | None:
    """Entropy above an absolute level and above a multiple of its first values, less the reward's gain."""
    if len(rows) < 2 * config.rollouts:
        return None
    first, last = rows[: config.rollouts], rows[-config.rollouts :]
    start, now = _mean(first, "entropy"), _mean(last, "entropy")
    limit = max(config.entropy_high, config.entropy_high_factor * start)
    figures = {"entropy": now, "at the start": start, "reward": _mean(last, "reward")}
    return Reading(now / limit - _gain(first, last), figures)


def _still(rows: Sequence[Row], config: AlarmConfig) -> tuple[float, float | None] | None:
    """(share of log lines with every ratio 1, mean gap to the sampler), once the weights moved in half of them."""
    last = rows[-config.window :]
    # If no group has a gradient, or the learning rate is still 0, a ratio of 1 means nothing.
    moved = sum(row.get("grad_norm", 1.0) != 0 and row.get("learning_rate", 1.0) != 0 for row in last)
    if len(last) < config.window or 2 * moved < len(last):
        return None
    still = sum(row["band/ratio_max"] == row["band/ratio_min"] == 1 for row in last)
    sampled = [row for row in last if row.get(SAMPLER_GAP) is not None]  # the first update of each rollout
    return still / len(last), _mean(sampled, SAMPLER_GAP) if sampled else None


def nothing_clips(rows: Sequence[Row], config: AlarmConfig) -> Reading | None:
    """Share of log lines whose ratios are all exactly 1, unless `off_policy_unseen` covers them."""
    found = _still(rows, config)
    if found is None:
        return None
    share, gap = found
    if gap is not None and gap >= config.sampler_unseen:
        share = 0.0
    return Reading(share, {"share of log lines with every ratio 1": share})


def off_policy_unseen(rows: Sequence[Row], config: AlarmConfig) -> Reading | None:
    """Gap between trainer and sampler, if every ratio is nevertheless 1."""
    found = _still(rows, config)
    if found is None:
        return None
    share, gap = found
    if gap is None:
        return None
    figures = {"share of log lines with every ratio 1": share, "mean gap to the sampler in nats": gap}
    return Reading(min(share, gap / config.sampler_unseen), figures)


def first_update_moved(rows: Sequence[Row], config: AlarmConfig) -> Reading | None:
    """Smallest mean |log-ratio|, among the last rollouts, of the first update, before any weight has moved."""
    last = rows[-config.rollouts :]
    if len(last) < config.rollouts:
        return None
    distance = min(row[FIRST_DISTANCE] for row in last)
    return Reading(distance / config.first_distance, {"mean |log-ratio| in nats": distance})


def cap_binds(rows: Sequence[Row], config: AlarmConfig) -> Reading | None:
    """Share of tokens beyond the cap."""
    if len(rows) < config.window:
        return None
    share = _mean(rows[-config.window :], "band/cap_fraction")
    return Reading(share / config.cap_fraction, {"share of tokens beyond the cap": share})


def control_limit(rows: Sequence[Row], config: AlarmConfig) -> Reading | None:
    """Whether a controller has found its target out of reach and has not held it since."""
    last = rows[-config.rollouts :]
    if len(last) < config.rollouts:
        return None
    figures = {"measured": last[-1]["band/control_measured"], "number": last[-1]["band/control_value"]}
    return Reading(min(row[CONTROL_STUCK] for row in last), figures)


def sampler_drift(rows: Sequence[Row], config: AlarmConfig) -> Reading | None:
    """Mean distance between the trainer's and the sampler's log-probs of the same tokens."""
    last = rows[-config.rollouts :]
    if len(last) < config.rollouts:
        return None
    difference = _mean(last, SAMPLER_GAP)
    figures = {"mean difference in nats": difference}
    if last[-1].get("sampling/importance_sampling_ratio/mean") is not None:
        figures["mean importance weight"] = last[-1]["sampling/importance_sampling_ratio/mean"]
    return Reading(difference / config.sampler_difference, figures)


def zero_variance(rows: Sequence[Row], config: AlarmConfig) -> Reading | None:
    """Smallest share, among the last rollouts, of groups whose rewards are all equal."""
    last = rows[-config.rollouts :]
    if len(last) < config.rollouts:
        return None
    # If dynamic sampling replaces groups, the groups that the update sees count.
    share = min(row.get("dynamic_sampling/uniform_after", row["frac_reward_zero_std"]) for row in last)
    return Reading(share / config.zero_variance, {"share of groups": share, "reward": _mean(last, "reward")})


def truncated(rows: Sequence[Row], config: AlarmConfig) -> Reading | None:
    """Smallest share, among the last rollouts, of truncated completions, less the reward's gain.

    A reward well above its first values shows that truncation does no harm. If every completion is truncated, a
    rise keeps the alarm from firing, but does not clear it: the next ones are truncated too.
    """
    last = rows[-config.rollouts :]
    if len(last) < config.rollouts:
        return None
    share = min(row["completions/clipped_ratio"] for row in last)
    first = rows[: config.rollouts]
    figures = {"share of completions": share, "reward": _mean(last, "reward"), "at the start": _mean(first, "reward")}
    return Reading(max(config.clear if share == 1 else 0.0, share / config.truncated - _gain(first, last)), figures)


ALARMS: tuple[Alarm, ...] = (
    Alarm(
        "entropy_collapse",
        ("entropy",),
        entropy_collapse,
        "the policy has become nearly deterministic, so groups repeat one answer and little is left to learn",
        (
            "rule.radius=[lower, upper] with a smaller lower or a larger upper radius (of clip: rule.low, "
            "rule.high), because clipping below raises entropy and clipping above lowers it",
            "a smaller train.learning_rate, or fewer updates per rollout",
        ),
    ),
    Alarm(
        "entropy_explosion",
        ("entropy", "reward"),
        entropy_explosion,
        "entropy rises and the reward does not, so the policy drifts toward random text",
        (
            "rule.radius=[lower, upper] with a smaller upper radius (of clip: rule.high), or rule.cap=10: the upper "
            "side is where rare tokens grow",
            "a smaller train.learning_rate, or a longer train.warmup_steps",
        ),
    ),
    Alarm(
        "nothing_clips",
        ("band/ratio_max", "band/ratio_min"),
        nothing_clips,
        "every update is to the policy that sampled the tokens, so no clip rule can act",
        (
            "several updates per rollout: train.steps_per_generation or train.num_iterations above "
            "train.gradient_accumulation_steps",
            "if several updates do follow a rollout: a larger train.learning_rate, or model.dtype=float32, "
            "because small updates of half-precision weights round to zero",
        ),
    ),
    Alarm(
        "off_policy_unseen",
        ("band/ratio_max", "band/ratio_min"),
        off_policy_unseen,
        "trainer and sampler disagree about the sampled tokens, but the trust region is centered on the policy that "
        "is being updated, so every ratio is 1 and the clip rule sees none of it",
        (
            "a trust region around the sampler: train.anchor=sampler with "
            "train.vllm_importance_sampling_correction=false",
            "several updates per rollout: train.steps_per_generation or train.num_iterations above "
            "train.gradient_accumulation_steps",
        ),
    ),
    Alarm(
        "first_update_moved",
        (FIRST_DISTANCE,),
        first_update_moved,
        "the first update of each rollout finds ratios other than 1 although no weight has moved, so the clip rule "
        "acts on noise",
        (
            "dropout off in training: train.disable_dropout=true",
            "the same kernel, dtype and padding for the old log-probs and the update, and model.dtype=float32 to "
            "see whether rounding is the cause",
        ),
    ),
    Alarm(
        "cap_binds",
        ("band/cap_fraction",),
        cap_binds,
        "many tokens are beyond the cap, so it, not the radius, is the trust region of rare tokens",
        (
            "a larger rule.cap, or rule.cap=null",
            "a smaller upper radius, rule.radius=[lower, upper], if the ratios are meant to stay below the cap",
        ),
    ),
    Alarm(
        "control_limit",
        (CONTROL_STUCK, "band/control_measured", "band/control_value"),
        control_limit,
        "the controller came no nearer to its target in 10 rollouts on one side of it, so it cannot reach it",
        (
            "a target nearer to the measured value, or wider rule.control.limits",
            "for an entropy that is too low: a larger upper radius, rule.radius=[lower, upper], since the floor only "
            "spares what the lower side would take",
        ),
    ),
    Alarm(
        "sampler_drift",
        (SAMPLER_GAP,),
        sampler_drift,
        "trainer and sampler disagree about the probability of the sampled tokens, so the data are off-policy "
        "before the first update",
        (
            "a trust region around the sampler: train.anchor=sampler with "
            "train.vllm_importance_sampling_correction=false",
            "truncated importance weights: train.vllm_importance_sampling_mode=token_truncate",
        ),
    ),
    Alarm(
        "zero_variance",
        ("frac_reward_zero_std", "reward"),
        zero_variance,
        "in every group all completions earn the same reward, so all advantages are 0 and nothing is learned",
        (
            "problems of another difficulty: easier ones if the reward is near 0, harder ones if it is near 1 "
            "(or a longer warmup)",
            "a larger train.num_generations, or train.dynamic_sampling=2: up to two rounds that replace such groups",
        ),
    ),
    Alarm(
        "truncated",
        ("completions/clipped_ratio", "reward"),
        truncated,
        "nearly all completions reach the length limit and the reward does not rise, so most answers are cut off",
        (
            "a larger train.max_completion_length",
            "a prompt, or a warmup, that teaches the model to stop after its answer",
        ),
    ),
)


def known_causes(args: Any, model: Any) -> dict[str, tuple[str, ...]]:
    """Likely causes, from the settings and the model of a run: name of the alarm -> sentences."""
    if args is None or model is None:
        return {}
    found = []
    if getattr(args, "anchor", "old") == "sampler":
        found.append(
            "fits this run: train.anchor=sampler takes ratios relative to the sampler's log-probs, so this is the "
            "gap between two engines, not a change of the policy"
        )
    dropout = sorted({module.p for module in model.modules() if type(module).__name__ == "Dropout" and module.p > 0})
    settings: dict[str, Any] = model.config.to_dict() if hasattr(model, "config") else {}
    named = {name: value for name, value in settings.items() if "drop" in name and isinstance(value, float) and value}
    if (dropout or named) and not getattr(args, "disable_dropout", False):
        shown = ", ".join([*(f"{name}={value:g}" for name, value in named.items()), *(f"p={p:g}" for p in dropout)])
        found.append(f"fits this run: dropout is on ({shown}), so each forward pass gives different log-probs")
    if not found:
        kernel = getattr(getattr(model, "config", None), "_attn_implementation", "unknown")
        found.append(
            "neither dropout nor the sampler's anchor fits this run, which leaves differences between the two "
            f"passes: attention kernel ({kernel}), dtype ({next(model.parameters()).dtype}), padding"
        )
    return {"first_update_moved": tuple(found)}


class Watch:
    """Follows the log lines of one run and reports which alarms fire and clear.

    Args:
        config: Limits.
        causes: Name of an alarm -> what is known of this run that would explain it (`known_causes`), printed first.
    """

    def __init__(self, config: AlarmConfig, causes: Mapping[str, tuple[str, ...]] | None = None) -> None:
        self.config = config
        self.causes = causes or {}
        self.firing: set[str] = set()
        self._ends = max(config.window, config.rollouts)  # only this many first and last rows are ever read
        self._rows: dict[str, list[Row]] = {alarm.name: [] for alarm in ALARMS}

    def add(self, row: Row) -> list[Event]:
        """The alarms that fire or clear with one more log line."""
        events = []
        for alarm in ALARMS:
            if any(row.get(key) is None for key in alarm.keys):
                continue
            rows = self._rows[alarm.name]
            rows.append(row)
            del rows[self._ends : -self._ends]
            reading = alarm.measure(rows, self.config)
            if reading is None:
                continue
            step = int(row.get("step", 0))
            if alarm.name not in self.firing and reading.severity >= 1:
                self.firing.add(alarm.name)
                advice = (*self.causes.get(alarm.name, ()), *alarm.advice)
                events.append(Event(step, alarm.name, "fired", reading.figures, alarm.meaning, advice))
            elif alarm.name in self.firing and reading.severity < self.config.clear:
                self.firing.remove(alarm.name)
                events.append(Event(step, alarm.name, "cleared", reading.figures))
        return events
