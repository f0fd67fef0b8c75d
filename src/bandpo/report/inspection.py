"""What clip rules would do to logged tokens, how far the policies are apart, and whether p can be trusted.

Pure functions of a `TokenLog` and of rules; every share is of tokens that count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from bandpo.core.band import binary_divergence
from bandpo.core.rivals import Clip
from bandpo.core.rules import Band, ClipRule
from bandpo.lab.simulation import EDGES
from bandpo.report.token_logs import Floats, TokenLog
from bandpo.report.why import bin_of

DIVERGENCES = ("kl", "tv", "chi2")
PROBABILITIES = (0.001, 0.01, 0.1, 0.3, 0.5, 0.8, 0.9)
POSITIONS = (0, 1, 4, 16, 64, 256, 1024, 4096)  # starts of the position ranges
LISTED = 8  # token strings that are listed
STRONG = 5.0  # standard errors
FEWEST = 100  # tokens required for a mean
MASS_LOST, ENTROPY_LOST = 0.005, 0.02  # shares below which even a significant difference does not matter


@dataclass(frozen=True)
class Edge:
    """The ratio to which the rules are applied.

    Attributes:
        new, anchor: Columns: ratio = exp(new - anchor).
        text: A sentence that describes it.
    """

    new: str
    anchor: str
    text: str


def choose_edge(log: TokenLog) -> Edge | None:
    """current / anchor if both are logged; else anchor / sampler; None if neither is available."""
    if log.has("logps", "old_logps").any():
        return Edge("logps", "old_logps", "ratio = current policy / anchor")
    if log.has("old_logps", "sampling_logps").any():
        text = (
            "no log-probs of a current policy: ratio = anchor / sampler, what a rule centered on the sampler would "
            "see in the first update after the rollout"
        )
        return Edge("old_logps", "sampling_logps", text)
    return None


@dataclass(frozen=True)
class Judged:
    """Every token of the edge under every rule.

    Attributes:
        rules: The R rules by name.
        where: Indices of the M tokens in the log.
        log_ratio: Shape (M,).
        old: Log-prob under the anchor, shape (M,).
        advantages: Shape (M,); sign of the log-ratio if none was logged, so that outside counts as clipped.
        clipped: Tokens that lose their gradient, shape (R, M).
        skipped: Rule -> why it cannot be applied to this log.
    """

    rules: dict[str, ClipRule]
    where: NDArray[np.int64]
    log_ratio: Floats
    old: Floats
    advantages: Floats
    clipped: NDArray[np.bool_]
    skipped: dict[str, str]

    @classmethod
    def nothing(cls) -> Judged:
        """For a log without ratios."""
        none = np.zeros(0, np.float32)
        return cls({}, np.zeros(0, np.int64), none, none, none, np.zeros((0, 0), bool), {})

    @property
    def pushed(self) -> NDArray[np.bool_]:
        """Tokens whose advantage pushes the ratio further from 1, shape (M,): those that a rule can clip."""
        return (self.advantages * self.log_ratio) > 0


def judge(log: TokenLog, edge: Edge, rules: Mapping[str, ClipRule]) -> Judged:
    """Apply the rules to the tokens that have both log-probs of the edge and an advantage other than 0."""
    keep = log.has(edge.new, edge.anchor) & ~(log.columns["advantages"] == 0)
    where = np.flatnonzero(keep)
    old = log.columns[edge.anchor][where]
    log_ratio = log.columns[edge.new][where] - old
    logged = log.columns["advantages"][where]
    advantages = np.where(np.isfinite(logged), logged, np.sign(log_ratio)).astype(np.float32)
    kept: dict[str, ClipRule] = {}
    skipped: dict[str, str] = {}
    rows = []
    for name, rule in rules.items():
        parts, start = [], 0
        try:
            for chunk in log.chunks(keep):
                some = advantages[start : start + len(chunk)]
                tokens = log.rule_tokens(chunk, edge.anchor, some)
                inside = rule.inside(torch.from_numpy(log.columns[edge.new][chunk]), tokens)
                moved = torch.from_numpy(log_ratio[start : start + len(chunk)])
                parts.append(rule.clipped(inside, moved, torch.from_numpy(some)).numpy())
                start += len(chunk)
        except ValueError as error:
            skipped[name] = str(error).partition(": this call")[0]
            continue
        kept[name] = rule
        rows.append(np.concatenate(parts) if parts else np.zeros(0, bool))
    return Judged(kept, where, log_ratio, old, advantages, np.array(rows, bool).reshape(len(kept), -1), skipped)


@dataclass(frozen=True)
class RuleRow:
    """What a rule would have clipped.

    Attributes:
        rule: Its name.
        clipped, below, above: Number of tokens, in total and by side of the ratio.
        share: `clipped` as a share of the tokens with an advantage other than 0.
        share_by_probability: The same in each bin of the anchor's probability (`EDGES`); None for an empty bin.
        epsilon: A fixed clip 1 +- epsilon that clips as many of these tokens; None if none does.
    """

    rule: str
    clipped: int
    below: int
    above: int
    share: float
    share_by_probability: tuple[float | None, ...]
    epsilon: float | None


def rule_rows(judged: Judged) -> list[RuleRow]:
    bins, count = bin_of(judged.old, EDGES), len(EDGES) - 1
    totals = np.bincount(bins, minlength=count)
    distances = np.sort(np.abs(np.expm1(judged.log_ratio[judged.pushed].astype(np.float64))))[::-1]
    rows = []
    for name, clipped in zip(judged.rules, judged.clipped, strict=True):
        above = int((clipped & (judged.log_ratio > 0)).sum())
        number = int(clipped.sum())
        by_bin = np.bincount(bins[clipped], minlength=count)
        shares = tuple(float(c / n) if n else None for c, n in zip(by_bin, totals, strict=True))
        share = number / max(1, len(judged.where))
        epsilon = _threshold(distances, number)
        rows.append(RuleRow(name, number, number - above, above, share, shares, epsilon))
    return rows


def _threshold(falling: NDArray[np.float64], count: int) -> float | None:
    """A number that `count` of these falling values exceed: between two neighbors, or just above the largest.

    None if there is none, for example if neighbors are equal.
    """
    if not len(falling) or count > len(falling):
        return None
    low = 0.0 if count == len(falling) else float(falling[count])
    if count == 0:
        return low * (1 + 1e-6) if math.isfinite(low) else None
    middle = (low + float(falling[count - 1])) / 2
    return middle if low < middle < math.inf else None


@dataclass(frozen=True)
class Moves:
    """What changes from one rule to another, in tokens: `freed` are clipped only by `of`, `held` only by `to`."""

    of: str
    to: str
    freed: int
    held: int
    both: int
    neither: int


def moves(judged: Judged, of: str) -> list[Moves]:
    """From rule `of` to every other rule."""
    names = list(judged.rules)
    first = judged.clipped[names.index(of)]
    return [
        Moves(
            of, to, int((first & ~x).sum()), int((x & ~first).sum()), int((first & x).sum()), int((~first & ~x).sum())
        )
        for to, x in zip(names, judged.clipped, strict=True)
        if to != of
    ]


@dataclass(frozen=True)
class SameShare:
    """The radius of a Band that clips as many of these tokens as `rule` does.

    Attributes:
        radius: In the divergence's units; None if no radius fits.
        share, wanted: Share of the tokens that this radius clips, and that the rule does.
    """

    divergence: str
    rule: str
    radius: float | None
    share: float | None
    wanted: float


def same_share(judged: Judged, rule: str) -> list[SameShare]:
    """For each of `DIVERGENCES`, the radius that clips the share of `rule`.

    A token that its advantage pushes outward is clipped if its binary divergence g(p, r) exceeds the radius, so
    the radius is a quantile of g; the tokens it clips are then counted with the rule itself.
    """
    count = int(judged.clipped[list(judged.rules).index(rule)].sum())
    total = max(1, len(judged.where))
    old = torch.from_numpy(judged.old[judged.pushed])
    new = old + torch.from_numpy(judged.log_ratio[judged.pushed])
    rows = []
    for divergence in DIVERGENCES:
        falling = np.sort(binary_divergence(new.clamp(max=0), old, divergence).double().numpy())[::-1]
        radius = _threshold(falling, count)
        share = None
        if radius is not None and radius > 0:
            share = int((~Band(radius, divergence).inside(new.clamp(max=0), old)).sum()) / total
        rows.append(SameShare(divergence, rule, radius if share is not None else None, share, count / total))
    return rows


@dataclass(frozen=True)
class SameBound:
    """At old probability p, the radii of Bands with the upper bound 1 + epsilon; None if p (1 + epsilon) >= 1.

    Attributes:
        radii: Divergence -> radius.
        upper: Divergence -> upper bound of the ratio minus 1 under that Band's default radius: the reverse direction.
    """

    p: float
    epsilon: float
    radii: dict[str, float | None]
    upper: dict[str, float]


def same_bounds(epsilon: float, probabilities: Sequence[float] = PROBABILITIES) -> list[SameBound]:
    """Radius for epsilon, and epsilon for a radius, token by token: the radius is g(p, 1 + epsilon)."""
    old = torch.tensor(probabilities, dtype=torch.float64).log()
    new = old + math.log1p(epsilon)
    radii = {d: binary_divergence(new.clamp(max=0), old, d).tolist() for d in DIVERGENCES}
    uppers = {d: (Band(divergence=d).bounds(old).upper - 1).tolist() for d in DIVERGENCES}
    return [
        SameBound(
            p,
            epsilon,
            {d: radii[d][i] if new[i] < 0 else None for d in DIVERGENCES},
            {d: uppers[d][i] for d in DIVERGENCES},
        )
        for i, p in enumerate(probabilities)
    ]


@dataclass(frozen=True)
class RatioRow:
    """How far two policies are apart on the tokens that have both log-probs.

    Attributes:
        ratio: Such as "current / anchor".
        tokens: Number of tokens that have both.
        kl: Mean of r - 1 - log r: an estimate of KL(denominator || numerator) in nats per token, never negative,
            if the tokens were sampled from the denominator.
        largest: Largest |log r|.
        below, above: Shares with r < 0.8 and r > 1.2.
        same: Whether the two columns are identical: no correction, or the same numbers logged twice.
    """

    ratio: str
    tokens: int
    kl: float
    largest: float
    below: float
    above: float
    same: bool


EDGES_OF_TRIANGLE = {
    "current / anchor": ("logps", "old_logps"),
    "anchor / sampler": ("old_logps", "sampling_logps"),
    "current / sampler": ("logps", "sampling_logps"),
}


def ratio_rows(log: TokenLog) -> list[RatioRow]:
    """The three ratios separately, as far as their log-probs are logged."""
    rows = []
    for name, (new, old) in EDGES_OF_TRIANGLE.items():
        x = _gap(log, new, old)
        if not len(x):
            continue
        with np.errstate(over="ignore"):
            kl = float(np.mean(np.expm1(x) - x))
        below, above = float(np.mean(x < math.log(0.8))), float(np.mean(x > math.log(1.2)))
        rows.append(RatioRow(name, len(x), kl, float(np.abs(x).max()), below, above, bool((x == 0).all())))
    return rows


@dataclass(frozen=True)
class Evidence:
    """One test of whether the tokens were drawn from the full distribution of the log-probs.

    Attributes:
        test: What is compared.
        verdict: "truncated" (some tokens could not be drawn), "narrowed" (that, or a temperature below 1),
            "flattened", "whole" or "cannot tell".
        strength: "strong", "weak" or "none".
        text: The numbers, and what else could explain them.
    """

    test: str
    verdict: str
    strength: str
    text: str


@dataclass(frozen=True)
class Sampling:
    """The verdict of all evidence together."""

    verdict: str
    text: str
    evidence: list[Evidence]


P_MEANS = (
    "p is then not the probability that the sampler used: rules that read p (Band, DCPO) judge a different "
    "distribution. Sample with top_p=1, top_k off, min_p=0, temperature 1, or log processed log-probs on both sides"
)


def sampling(log: TokenLog) -> Sampling:
    """Whether the log-probs look as if sampling was truncated (top-p, top-k, min-p) or sharpened (temperature)."""
    found = [_kept_mass(log), _surprisal(log), _certain(log)]
    evidence = [one for one in found if one is not None]
    strong = [one for one in evidence if one.strength == "strong"]
    weak = [one for one in evidence if one.strength == "weak" and one.verdict != "whole"]
    verdicts = {one.verdict for one in strong}
    if verdicts - {"whole"}:
        verdict = next(v for v in ("truncated", "narrowed", "flattened") if v in verdicts)
        return Sampling(verdict, f"looks {verdict}. {P_MEANS}", evidence)
    if weak:
        return Sampling("cannot tell", f"cannot tell; weak signs that it was {weak[0].verdict}. {P_MEANS}", evidence)
    if strong:
        return Sampling("whole", "no sign of truncated sampling in these log-probs", evidence)
    if evidence:
        return Sampling("cannot tell", "cannot tell: these numbers are inconclusive", evidence)
    need = f"entropies, or the sampler's log-probs besides the anchor's, for {FEWEST} tokens or more"
    return Sampling("cannot tell", f"cannot tell; that would require {need}", evidence)


def _gap(log: TokenLog, new: str, old: str) -> NDArray[np.float64]:
    """new - old on the tokens that have both."""
    keep = log.has(new, old)
    return log.columns[new][keep].astype(np.float64) - log.columns[old][keep]


def _kept_mass(log: TokenLog) -> Evidence | None:
    """The mean of anchor / sampler under the sampler is the anchor's mass on what the sampler can draw, at most 1."""
    name, x = "anchor", _gap(log, "old_logps", "sampling_logps")
    if not x.any():  # anchor and sampler are identical
        name, x = "current", _gap(log, "logps", "sampling_logps")
    if len(x) < FEWEST or not x.any():
        return None
    test = f"mean of {name} / sampler"
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = np.exp(x)
        mean, error = float(ratio.mean()), float(ratio.std() / math.sqrt(len(ratio)))
        z = (mean - 1) / error if error > 0 else math.nan
    numbers = f"{mean:.4f} +- {error:.4f} over {len(x):,} tokens; 1 if the sampler can draw every token"
    if not math.isfinite(z):
        return Evidence(test, "cannot tell", "none", f"{numbers}; the ratios are too large to average")
    if z < -STRONG and mean < 1 - MASS_LOST:
        higher = float(np.mean(x[np.abs(x) > 1e-3] < 0))
        text = (
            f"{numbers}. About {1 - mean:.1%} of that policy's mass is out of reach of the sampler, whose log-probs "
        )
        text += f"are renormalized ({higher:.0%} of those that differ are higher)"
        if name == "anchor":
            return Evidence(test, "truncated", "strong", text)
        return Evidence(test, "truncated", "weak", f"{text}; or the policy has been trained on these tokens since")
    narrow = error < MASS_LOST
    text = numbers if narrow else f"{numbers}; the error is too large to tell"
    return Evidence(test, "whole" if narrow else "cannot tell", "weak" if narrow else "none", text)


def _surprisal(log: TokenLog) -> Evidence | None:
    """E[-log p] = H at every position if tokens are drawn from p itself; the summed difference is a martingale."""
    for logps, entropy in (("old_logps", "old_entropy"), ("logps", "entropy")):
        keep = log.has(logps, entropy)
        if keep.sum() >= FEWEST:
            break
    else:
        return None
    test = "surprisal - entropy"
    p, h = log.columns[logps][keep].astype(np.float64), log.columns[entropy][keep].astype(np.float64)
    gap = -p - h
    total, error, mean_h = float(gap.mean()), float(math.sqrt((gap**2).sum()) / len(gap)), float(h.mean())
    if error == 0 or mean_h <= 0:
        return None
    z = total / error
    drift = _drift(log, logps, keep)
    numbers = f"mean -log p {-p.mean():.4f}, mean entropy {mean_h:.4f} nats, z = {z:+.1f}"
    if abs(z) < STRONG or abs(total) < ENTROPY_LOST * mean_h:
        narrow = error < ENTROPY_LOST * mean_h
        text = numbers if narrow else f"{numbers}; too few tokens to see a difference of {ENTROPY_LOST:.0%}"
        return Evidence(test, "whole" if narrow else "cannot tell", "strong" if narrow else "none", text)
    verdict = "narrowed" if total < 0 else "flattened"
    cause = (
        "top-p, top-k, min-p or a temperature below 1" if total < 0 else "a temperature above 1, or a stale sampler"
    )
    if abs(total) <= drift:
        text = f"{numbers}; the policy has moved by {drift:.3f} nats per token since sampling, which can explain it"
        return Evidence(test, verdict, "weak", text)
    return Evidence(test, verdict, "strong", f"{numbers}: {cause}")


def _drift(log: TokenLog, logps: str, keep: NDArray[np.bool_]) -> float:
    """Mean |log ratio| between the policy of `logps` and the nearest logged one to the sampler."""
    for other in ("sampling_logps", "old_logps"):
        both = keep & log.has(other)
        if other != logps and both.any():
            x = log.columns[logps][both].astype(np.float64) - log.columns[other][both]
            return float(np.abs(x).mean())
    return 0.0


def _certain(log: TokenLog) -> Evidence | None:
    """Tokens with log-prob exactly 0 under the sampler that are not certain under the anchor."""
    keep = log.has("old_logps", "sampling_logps")
    certain = keep & (log.columns["sampling_logps"] == 0)
    unsure = certain & (log.columns["old_logps"] < math.log(0.99))
    count, share = int(unsure.sum()), float(unsure.sum() / max(1, keep.sum()))
    if not keep.any() or count < 10 or share < 1e-3:
        return None
    text = f"{count:,} tokens ({share:.1%}) have a sampler log-prob of exactly 0 and an anchor p below 0.99: "
    text += "all other tokens had been cut off"
    return Evidence("certain only for the sampler", "truncated", "strong", text)


@dataclass(frozen=True)
class Place:
    """Where clipped tokens are: a token's text, or a range of positions.

    Attributes:
        clipped: Number of tokens that a rule clips here.
        share: As a share of all tokens that the rule clips.
        share_positive: As a share of all tokens with A > 0 that the rule clips; None if it clips none.
        own: Share of the tokens with this text (or in this range) that are clipped.
    """

    name: str
    clipped: int
    share: float
    share_positive: float | None
    own: float


def clipped_texts(log: TokenLog, judged: Judged, rule: str, limit: int = LISTED) -> list[Place]:
    """The token texts that a rule clips most, most frequent first."""
    return _places(judged, rule, log.tokens[judged.where], log.texts, limit)


def clipped_positions(log: TokenLog, judged: Judged, rule: str) -> list[Place]:
    """The same by position in the completion, in ranges."""
    place = np.searchsorted(POSITIONS, log.positions[judged.where], side="right") - 1
    ends = [f"{a}" if b == a + 1 else f"{a} to {b - 1}" for a, b in pairwise(POSITIONS)]
    found = _places(judged, rule, place, [*ends, f"from {POSITIONS[-1]}"], len(POSITIONS))
    return sorted(found, key=lambda one: int(one.name.removeprefix("from ").split()[0]))


def _places(judged: Judged, rule: str, kinds: NDArray[np.integer], names: Sequence[str], limit: int) -> list[Place]:
    clipped = judged.clipped[list(judged.rules).index(rule)]
    positive = judged.advantages > 0
    counts = np.bincount(kinds[clipped], minlength=len(names))
    up = np.bincount(kinds[clipped & positive], minlength=len(names))
    all_ = np.bincount(kinds, minlength=len(names))
    order = [int(i) for i in np.argsort(-counts, kind="stable")[:limit] if counts[i]]
    return [
        Place(
            names[i],
            int(counts[i]),
            float(counts[i] / counts.sum()),
            float(up[i] / up.sum()) if up.any() else None,
            float(counts[i] / all_[i]),
        )
        for i in order
    ]


@dataclass(frozen=True)
class RulePlaces:
    """Where one rule clips."""

    rule: str
    texts: list[Place]
    positions: list[Place]


@dataclass(frozen=True)
class Inspection:
    """Everything that `bandpo inspect` reports.

    Attributes:
        edge: What the ratio is, or why there is none.
        judged: Number of tokens with that ratio and an advantage other than 0.
        no_advantage: How many of them have no logged advantage.
        probabilities: Edges of the bins of `RuleRow.share_by_probability`.
        reference: The rule that the others are compared with.
    """

    edge: str
    judged: int
    no_advantage: int
    reference: str
    probabilities: tuple[float, ...]
    rules: list[RuleRow]
    skipped: dict[str, str]
    moves: list[Moves]
    same_share: list[SameShare]
    same_bounds: list[SameBound]
    ratios: list[RatioRow]
    sampling: Sampling
    places: list[RulePlaces]


def inspect_log(log: TokenLog, rules: Mapping[str, ClipRule], reference: str) -> Inspection:
    """Run the whole inspection.

    Args:
        rules: Rules by name, including `reference`, the rule in use, with which the others are compared.
    """
    edge = choose_edge(log)
    judged = Judged.nothing() if edge is None else judge(log, edge, rules)
    known, rule = reference in judged.rules, rules[reference]
    return Inspection(
        edge=edge.text if edge else "one log-prob per token, so no ratio: rules cannot be applied",
        judged=len(judged.where),
        no_advantage=int((~np.isfinite(log.columns["advantages"][judged.where])).sum()),
        reference=reference,
        probabilities=EDGES,
        rules=rule_rows(judged),
        skipped=judged.skipped,
        moves=moves(judged, reference) if known else [],
        same_share=same_share(judged, reference) if known else [],
        same_bounds=same_bounds(rule.high) if isinstance(rule, Clip) and rule.high > 0 else [],
        ratios=ratio_rows(log),
        sampling=sampling(log),
        places=[
            RulePlaces(name, clipped_texts(log, judged, name), clipped_positions(log, judged, name))
            for name in judged.rules
        ],
    )
