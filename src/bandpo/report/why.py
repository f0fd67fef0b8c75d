"""Why do two rules learn differently? Counterfactual clipping of the same recorded tokens.

Everything here is a pure function of a recorded batch (`bandpo.training.batches.TokenBatch`) and of rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bandpo.core.checks import DEFAULT_RADIUS
from bandpo.core.rivals import DCPO, Clip, NoClip
from bandpo.core.rules import Band, ClipRule
from bandpo.core.tokens import Tokens
from bandpo.lab.simulation import EDGES
from bandpo.training.batches import TokenBatch

# The rules that a report compares, under their common names.
RIVALS: dict[str, ClipRule] = {
    "GRPO clip 0.2": Clip(),
    "Clip-Higher 0.2/0.28": Clip(0.2, 0.28),
    "DCPO": DCPO(),
    f"Band KL {DEFAULT_RADIUS:g}": Band(),
    f"Band TV {DEFAULT_RADIUS:g}": Band(divergence="tv"),
    f"Band chi2 {DEFAULT_RADIUS:g}": Band(divergence="chi2"),
}
SIDES = ("below", "above")
SIGNS = ("negative", "positive")
RECORDED = frozenset({"advantages", "mask", "positions"})  # what a recorded batch gives a rule beyond the log-probs


def name_rule(rule: ClipRule) -> str:
    """A short label from a rule's class and fields, such as 'Clip 0.2/0.28' or 'Band KL 0.05, cap 10'.

    The class, then the divergence and the size (`radius`, or `low` and `high`), then every other field that differs
    from its default. It is generic: a new rule is named by its own fields.
    """
    options: tuple[Field[Any], ...] = fields(rule) if is_dataclass(rule) else ()
    values: dict[str, Any] = {field.name: getattr(rule, field.name) for field in options}
    divergence = values.pop("divergence", None)
    size = [values.pop(name) for name in ("radius", "low", "high") if name in values]
    others = [
        field.name if values[field.name] is True else f"{field.name} {_option(values[field.name])}"
        for field in options
        if _differs(field, values)
    ]
    kind = re.sub(r"(?<=[a-z])[A-Z]", lambda letter: f" {letter[0].lower()}", type(rule).__name__)
    words = [kind, *([] if divergence is None else [_divergence(divergence)]), "/".join(map(_option, size))]
    return ", ".join([" ".join(filter(None, words)), *others])


def _differs(field: Field[Any], values: Mapping[str, Any]) -> bool:
    return field.name in values and field.default is not MISSING and values[field.name] != field.default


def _divergence(divergence: Any) -> str:
    name = divergence if isinstance(divergence, str) else str(divergence.name)
    return name.upper() if name in ("kl", "tv") else name


def _option(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(map(_option, value))
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def with_rivals(rules: Mapping[str, ClipRule]) -> dict[str, ClipRule]:
    """`rules`, and the `RIVALS` missing from them, without rules that have no bounds."""
    bounded = {name: rule for name, rule in rules.items() if rule != NoClip()}
    return {**bounded, **{name: rule for name, rule in RIVALS.items() if rule not in bounded.values()}}


@dataclass(frozen=True)
class Outside:
    """Which tokens of a batch lie outside a rule's bounds, shape (B, T) each.

    Attributes:
        above: The ratio exceeds the upper bound.
        below: The ratio is below the lower bound.
        clipped: The loss gives the token no gradient: above with A > 0, or below with A < 0; for a two-sided rule any
            token outside whose advantage is not 0.
    """

    above: NDArray[np.bool_]
    below: NDArray[np.bool_]
    clipped: NDArray[np.bool_]


def outside(rule: ClipRule, batch: TokenBatch) -> Outside:
    """Apply a rule to logged tokens; masked tokens are never outside."""
    logps, old_logps = torch.from_numpy(batch.logps), torch.from_numpy(batch.old_logps)
    advantages, mask = torch.tensor(batch.advantages), torch.from_numpy(batch.mask)
    inside = rule.inside(logps, Tokens(old_logps, advantages, mask))
    clipped = rule.clipped(inside, logps - old_logps, advantages) & mask
    beyond = batch.mask & ~inside.numpy()
    rising = batch.logps > batch.old_logps
    return Outside(beyond & rising, beyond & ~rising, clipped.numpy())


@dataclass(frozen=True)
class ClipCounts:
    """How many tokens each rule would have clipped, by old probability, side and sign of the advantage.

    Attributes:
        rules: R names.
        edges: N + 1 edges of the bins.
        outside: Tokens outside the bounds, shape (R, N, 2, 2): rule, bin, side (`SIDES`), sign (`SIGNS`). For a rule
            that is not two-sided, (below, negative) and (above, positive) are clipped; the other two pull the ratio
            back.
        clipped: Tokens without a gradient, shape (R, N, 2): rule, bin, sign.
        tokens: All tokens with an advantage, shape (N, 2): bin, sign.
    """

    rules: tuple[str, ...]
    edges: tuple[float, ...]
    outside: NDArray[np.int64]
    clipped: NDArray[np.int64]
    tokens: NDArray[np.int64]


def count_clipped(
    rules: Mapping[str, ClipRule], batches: Sequence[TokenBatch], edges: Sequence[float] = EDGES
) -> ClipCounts:
    """Count, over all batches, what each rule would have clipped. Tokens of advantage 0 have no gradient to lose.

    Raises:
        ValueError: If the edges do not rise from 0 to 1.
    """
    edges = _check_edges(edges)
    bins = len(edges) - 1
    beyond = np.zeros((len(rules), bins, 2, 2), np.int64)
    clipped = np.zeros((len(rules), bins, 2), np.int64)
    tokens = np.zeros((bins, 2), np.int64)
    for batch in batches:
        place = bin_of(batch.old_logps, edges)
        signs = batch.mask & (batch.advantages < 0), batch.mask & (batch.advantages > 0)
        for j, sign in enumerate(signs):
            tokens[:, j] += np.bincount(place[sign], minlength=bins)
        for i, rule in enumerate(rules.values()):
            found = outside(rule, batch)
            for j, sign in enumerate(signs):
                clipped[i, :, j] += np.bincount(place[found.clipped & sign], minlength=bins)
                for s, side in enumerate((found.below, found.above)):
                    beyond[i, :, s, j] += np.bincount(place[side & sign], minlength=bins)
    return ClipCounts(tuple(rules), edges, beyond, clipped, tokens)


@dataclass(frozen=True)
class Gains:
    """How the probability of tokens changed since the rollout, by old probability, for one sign of the advantage.

    Attributes:
        edges: N + 1 edges of the bins.
        tokens: Tokens in each bin, shape (N,).
        mean: Mean of p_new - p_old, shape (N,); NaN if there is no token.
        log_ratio: Mean of log(p_new / p_old) in nats, shape (N,); NaN if there is no token.
    """

    edges: tuple[float, ...]
    tokens: NDArray[np.int64]
    mean: NDArray[np.float64]
    log_ratio: NDArray[np.float64]


def probability_gain(batches: Sequence[TokenBatch], positive: bool = True, edges: Sequence[float] = EDGES) -> Gains:
    """What tokens of positive (or negative) advantage gained under the rule that the run was trained with.

    A rule that starves rare good tokens shows here as a small gain in the lowest bins.
    """
    edges = _check_edges(edges)
    bins = len(edges) - 1
    tokens, gain, log_ratio = np.zeros(bins, np.int64), np.zeros(bins), np.zeros(bins)
    for batch in batches:
        kept = batch.mask & ((batch.advantages > 0) if positive else (batch.advantages < 0))
        place = bin_of(batch.old_logps, edges)[kept]
        new, old = batch.logps[kept].astype(np.float64), batch.old_logps[kept].astype(np.float64)
        tokens += np.bincount(place, minlength=bins)
        gain += np.bincount(place, np.exp(new) - np.exp(old), bins)
        log_ratio += np.bincount(place, new - old, bins)
    with np.errstate(invalid="ignore"):
        return Gains(edges, tokens, gain / tokens, log_ratio / tokens)


@dataclass(frozen=True)
class PositionEntropy:
    """Mean entropy along the completion.

    Attributes:
        start: First position of each range, from 0, shape (K,).
        entropy: Mean over the range's tokens in nats, shape (K,).
        tokens: Number of tokens in each range, shape (K,).
    """

    start: NDArray[np.int64]
    entropy: NDArray[np.float64]
    tokens: NDArray[np.int64]


def entropy_by_position(batch: TokenBatch, stretches: int = 32) -> PositionEntropy:
    """Mean entropy over the position in the completion, in at most `stretches` ranges of equal length."""
    length = batch.mask.shape[1]
    width = -(-length // stretches)
    place = np.broadcast_to(np.arange(length) // width, batch.mask.shape)[batch.mask]
    tokens = np.bincount(place)
    sums = np.bincount(place, batch.entropy[batch.mask].astype(np.float64))
    filled = np.flatnonzero(tokens)
    return PositionEntropy(filled * width, sums[filled] / tokens[filled], tokens[filled])


@dataclass(frozen=True)
class Verdict:
    """One token under every rule.

    Attributes:
        text: The token.
        old_p: Its probability at the rollout.
        p: Its probability just before the recorded update.
        entropy: Entropy of the policy at its position, in nats.
        clipped: For each rule, whether the token gets no gradient.
    """

    text: str
    old_p: float
    p: float
    entropy: float
    clipped: tuple[bool, ...]


def side_by_side(rules: Mapping[str, ClipRule], batch: TokenBatch, row: int) -> list[Verdict]:
    """The tokens of completion `row` under every rule, in the rules' order."""
    clipped = np.stack([outside(rule, batch).clipped[row] for rule in rules.values()], -1)
    return [
        Verdict(
            str(batch.texts[batch.tokens[row, t]]),
            float(np.exp(batch.old_logps[row, t])),
            float(np.exp(batch.logps[row, t])),
            float(batch.entropy[row, t]),
            tuple(clipped[t].tolist()),
        )
        for t in np.flatnonzero(batch.mask[row])
    ]


def telling_rows(rules: Mapping[str, ClipRule], batch: TokenBatch, count: int) -> list[int]:
    """Completions on whose tokens the rules disagree most (number of tokens clipped by some rules, not by all)."""
    clipped = np.stack([outside(rule, batch).clipped for rule in rules.values()])
    disputed = (clipped.any(0) & ~clipped.all(0)).sum(1)
    return [int(row) for row in np.argsort(-disputed, kind="stable")[:count]]


def bin_of(logps: NDArray[np.float32], edges: Sequence[float]) -> NDArray[np.int64]:
    """Index of the bin that each token's probability falls into."""
    inner = np.searchsorted(np.asarray(edges), np.exp(logps.astype(np.float64)), side="right") - 1
    return np.clip(inner, 0, len(edges) - 2)


def bin_labels(edges: Sequence[float]) -> list[str]:
    return [f"{low:g} to {high:g}" for low, high in pairwise(edges)]


def _check_edges(edges: Sequence[float]) -> tuple[float, ...]:
    found = tuple(edges)
    if len(found) < 2 or found[0] != 0 or found[-1] != 1 or any(a >= b for a, b in pairwise(found)):
        raise ValueError(f"edges are {found}; allowed: increasing probabilities from 0 to 1")
    return found
