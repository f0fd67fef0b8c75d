"""Controllers: adjust one number of a clip rule once per rollout, so that a measured quantity holds a target."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

from torch import Tensor

from bandpo.core.checks import check_number
from bandpo.core.registry import RULES, make_rule
from bandpo.core.rules import ClipRule
from bandpo.words import nearest

HELD = 0.05
"""Relative distance from the target that counts as holding it."""
FLOOR = 0.7
"""Where a floor that is not set starts: under Band KL .05 the entropy of neutral tokens barely drifts there
(docs/simulator.md)."""
PATIENCE = 10
"""Rollouts on one side of the target, without coming nearer, after which it is reported as out of reach."""


class Metric(NamedTuple):
    """A metric that can be held: the rule's number that moves it, in which direction, and `Control`'s defaults."""

    number: str
    sign: int  # of the metric's answer to a larger number
    gain: float
    integral: float


METRICS = {
    "entropy": Metric("floor", 1, 20.0, 1.0),
    "clip_fraction": Metric("radius", -1, 0.0, 0.4),
    "divergence": Metric("radius", 1, 0.0, 0.4),
}


@dataclass(frozen=True)
class Control:
    """What to hold, as a rule's option `control` sets it: {metric: entropy, target: 0.5}.

    Args:
        metric: "entropy" (nats per token of the policy that samples, held by the rule's floor), or by the rule's
            radius "clip_fraction" (share of the tokens that lost their gradient) or "divergence" (mean realized one),
            both means over the updates on a rollout.
        target: Value of the metric to hold, > 0.
        gain: How far the coordinate of the number moves for a relative error of 1; None is the metric's default.
        integral: How far it moves further with each rollout of a relative error of 1.
        limits: (smallest, largest) number; None is (0, 0.99) for the floor, and a twentieth to twenty times the
            rule's own radius for the radius.
        smoothing: Weight of the past in the running mean of what is measured, from 0 to below 1.

    Raises:
        ValueError: Names the value and what is allowed.
    """

    metric: str
    target: float
    gain: float | None = None
    integral: float | None = None
    limits: tuple[float, float] | None = None
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(
                f"control: unknown metric {self.metric!r}{nearest(str(self.metric), METRICS)}; known: "
                f"{', '.join(METRICS)}"
            )
        tiny, huge = sys.float_info.min, sys.float_info.max
        check_number("control", "target", self.target, tiny, huge, "a finite number > 0")
        check_number("control", "smoothing", self.smoothing, 0.0, 1 - 2**-53, "a number from 0 to below 1")
        for name in ("gain", "integral"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(METRICS[self.metric], name))
            check_number("control", name, getattr(self, name), 0.0, huge, "a finite number >= 0")
        if self.gain == self.integral == 0:
            raise ValueError("control: gain and integral are both 0, so nothing would move; allowed: one of them 0")


@dataclass
class State:
    """A controller's state: only numbers, which JSON keeps to the last bit."""

    integral: float  # in the number's coordinate, as `value`
    value: float
    smoothed: float | None = None
    total: float = 0.0  # of what was measured since the last move
    count: int = 0
    waited: int = 0  # rollouts on one side of the target, not held
    before: float = 0.0  # distance from the target, ten rollouts ago at most
    told: bool = False


class Controller:
    """Adjusts the floor or the radius of a rule by PI control, at most once per rollout.

    With e = +-ln(target / measured), clamped to [-1, 1], so that a larger number brings the metric nearer to the
    target for e > 0,

        x = I + gain e,     I <- I + integral e

    in the coordinate x = -ln(1 - floor), the logarithm of the width that is left below a ratio of 1, or ln(radius);
    I starts from the rule's own number (from FLOOR, if no floor is set), and a pair of radii keeps its
    proportion. At a limit I stops if it would move further out (anti-windup).

    Args:
        control: What to hold.
        rule: What to move; its number is the start value.

    Raises:
        ValueError: For a rule without that number, or with one that differs from token to token, and for limits that
            are reversed, are numbers the rule could not have, or do not contain its own.
    """

    def __init__(self, control: Control, rule: ClipRule) -> None:
        self.control, self.metric = control, METRICS[control.metric]
        number, name = self.metric.number, type(rule).__name__
        if number not in _numbers(type(rule)):
            able = ", ".join(key for key, one in RULES.items() if number in _numbers(one))
            raise ValueError(
                f"control of {control.metric!r} moves the {number}, which clip rule {name} does not have; rules that "
                f"have it: {able}"
            )
        start = getattr(rule, number)
        if number == "radius":
            self._pair: Any = start if isinstance(start, tuple) else (start, start)
            if any(isinstance(x, Tensor) for x in self._pair) or getattr(rule, "table", False):
                raise ValueError("control of the radius needs a radius that is a number, and table=False")
            start = self._pair[0]
        defaults = (0.0, 0.99) if number == "floor" else (start / 20, start * 20)
        low, high = _checked_limits(defaults if control.limits is None else control.limits, number, start)
        if start is None:
            start = min(max(FLOOR, low), high)
        self._rule = rule
        self._low, self._high = self._to(low), self._to(high)
        self.state = State(self._to(start), self._to(start))
        self.measured: float | None = None

    def _to(self, number: float) -> float:
        return -math.log1p(-float(number)) if self.metric.number == "floor" else math.log(number)

    def _from(self, coordinate: float) -> float:
        return -math.expm1(-coordinate) if self.metric.number == "floor" else math.exp(coordinate)

    @property
    def value(self) -> float:
        """The current floor, or the current radius (of a pair the lower side's)."""
        return self._from(self.state.value)

    @property
    def rule(self) -> ClipRule:
        """The rule with its current number."""
        if self.metric.number == "floor":
            return replace(self._rule, floor=self.value)  # type: ignore[type-var]
        low, high = self._pair
        scale = self.value / low
        pair = self.value, high * scale
        return replace(self._rule, radius=pair[0] if low is high else pair)  # type: ignore[type-var]

    @property
    def stuck(self) -> bool:
        """Whether the target has turned out to be out of reach, and has not been held since."""
        return self.state.told and self.state.waited >= PATIENCE

    def add(self, measured: float) -> None:
        """One measurement of the rollout; the next move uses their mean."""
        if math.isfinite(measured):
            self.state.total += measured
            self.state.count += 1

    def move(self) -> str | None:
        """Move the number according to the measurements since the last move; without any it stays.

        Returns:
            A message, once, when the target turns out to be out of reach; else None.
        """
        state, control = self.state, self.control
        if not state.count:
            return None
        self.measured = state.total / state.count
        state.total, state.count = 0.0, 0
        past = self.measured if state.smoothed is None else state.smoothed
        state.smoothed = control.smoothing * past + (1 - control.smoothing) * self.measured
        ratio = control.target / max(state.smoothed, sys.float_info.min)
        error = self.metric.sign * min(max(math.log(min(ratio, math.e)), -1.0), 1.0)
        assert control.gain is not None
        assert control.integral is not None
        integral = state.integral + control.integral * error
        wanted = integral + control.gain * error
        state.value = min(max(wanted, self._low), self._high)
        outside = (wanted > self._high and error > 0) or (wanted < self._low and error < 0)
        if not outside:
            state.integral = integral
        return self._tell(error)

    def _tell(self, error: float) -> str | None:
        state = self.state
        if abs(error) <= HELD:
            state.waited = 0
            return None
        if error * state.before < 0:
            state.waited = 0
        if state.waited % PATIENCE == 0:
            state.before = error
        state.waited += 1
        stuck = state.waited % PATIENCE == 0 and abs(error) > 0.9 * abs(state.before)
        told, state.told = state.told, state.told or stuck
        if told or not stuck:
            return None
        return (
            f"control cannot reach its target: {self.control.metric} is {self.measured:.4g} and not "
            f"{self.control.target:.4g}, no nearer than {PATIENCE} rollouts ago, with the {self.metric.number} at "
            f"{self.value:.4g} within the limits {self._from(self._low):.4g} to {self._from(self._high):.4g}; "
            "it keeps trying"
        )

    def state_dict(self) -> dict[str, Any]:
        """The state that a checkpoint has to keep."""
        return asdict(self.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.state = State(**state)


def _numbers(rule: object) -> set[str]:
    """The options of a rule's class that a controller could move."""
    return {name for name in getattr(rule, "__dataclass_fields__", {}) if name in ("floor", "radius")}


def _checked_limits(limits: Any, number: str, start: float | None) -> tuple[float, float]:
    floor = number == "floor"
    least, most = (0.0, 1 - 2**-53) if floor else (sys.float_info.min, sys.float_info.max)
    allowed = "a number from 0 to below 1" if floor else "a finite number > 0"
    if not isinstance(limits, (list, tuple)) or len(limits) != 2:
        raise ValueError(f"control: limits are {limits!r}; allowed: two numbers, [smallest, largest]")
    for limit in limits:
        check_number("control", f"limit of the {number}", limit, least, most, allowed)
    low, high = limits
    if not low < high:
        raise ValueError(f"control: limits are {list(limits)}; allowed: [smallest, largest] with smallest < largest")
    if start is not None and not low <= start <= high:
        raise ValueError(
            f"control: the rule's {number} is {start:g}; allowed: a number within limits, [{low:g}, {high:g}]"
        )
    return low, high


def make_controlled(name: str, control: Any = None, **options: Any) -> tuple[ClipRule, Controller | None]:
    """The rule of a name and options, as `make_rule`, and the controller that its option `control` sets, if any.

    Raises:
        ValueError: As `make_rule`, `Control` and `Controller`.
    """
    rule = make_rule(name, **options)
    if control is None:
        return rule, None
    known = [field.name for field in fields(Control)]
    if not isinstance(control, Mapping):
        raise ValueError(f"control is {control!r}; allowed: a mapping such as {{metric: entropy, target: 0.5}}")
    for key in control:
        if key not in known:
            raise ValueError(f"control has no option {key!r}{nearest(str(key), known)}; it takes: {', '.join(known)}")
    for key in ("metric", "target"):
        if key not in control:
            raise ValueError(f"control has no {key}; write it as {{metric: entropy, target: 0.5}}")
    return rule, Controller(Control(**control), rule)
