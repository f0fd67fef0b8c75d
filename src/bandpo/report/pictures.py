"""Pictures of what rules do, to any token and to recorded ones (needs the `report` extra)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from bandpo.core.rules import ClipRule
from bandpo.report.drawing import Area, Line, Panel, Picture
from bandpo.report.why import ClipCounts, Gains, PositionEntropy, bin_labels


def _style(name: str, place: int, styles: Mapping[str, int] | None) -> int:
    """The number that the page assigned to it, if any, so that a method looks the same in all pictures."""
    return place if styles is None else styles.get(name, place)


def bounds_picture(rules: Mapping[str, ClipRule], styles: Mapping[str, int] | None = None) -> Picture:
    """Ratio bounds, the probability they allow, and its change, over the old probability.

    Args:
        rules: Label -> rule.
        styles: Label -> index of its series; by default its position in `rules`.
    """
    logps = torch.linspace(math.log(1e-4), math.log(0.9995), 160, dtype=torch.float64)
    p = logps.exp()
    ratio: list[Line] = [Line("simplex edge, r = 1/p", p.tolist(), (1 / p).tolist(), style=None)]
    reach: list[Line] = [Line("", p.tolist(), p.tolist(), style=None)]
    change: list[Line] = [Line("", p.tolist(), (1 - p).tolist(), style=None)]
    for place, (name, rule) in enumerate(rules.items()):
        limits, style = rule.bounds(logps), _style(name, place, styles)
        for side in (limits.upper, limits.lower):
            for lines, y in ((ratio, side), (reach, side * p), (change, side * p - p)):
                lines.append(Line(name, p.tolist(), y.tolist(), style=style))
    old = "old probability p"
    return Picture(
        "bounds",
        "What each rule allows",
        [
            Panel("Ratio bounds", old, ratio, y_label="ratio r", log_x=True, log_y=True, y_limits=(0.02, 200)),
            Panel(
                "Allowed new probability",
                old,
                reach,
                y_label="new probability r p",
                log_x=True,
                log_y=True,
                y_limits=(1e-5, 1.3),
            ),
            Panel(
                "Change of its probability", old, change, y_label="change r p - p", log_x=True, y_limits=(-0.45, 0.45)
            ),
        ],
        caption="Each rule has two curves, its upper and its lower bound. Dotted gray: the simplex edge; no change.",
        alt=_bounds_alt(rules),
    )


def _bounds_alt(rules: Mapping[str, ClipRule]) -> str:
    logps = torch.tensor([0.01, 0.9], dtype=torch.float64).log()
    parts = []
    for name, rule in rules.items():
        limits = rule.bounds(logps)
        (low, high), (low9, high9) = zip(limits.lower.tolist(), limits.upper.tolist(), strict=True)
        parts.append(f"{name} {low:.3g} to {high:.3g} at p = 0.01, {low9:.3g} to {high9:.3g} at p = 0.9")
    return "Ratio bounds: " + "; ".join(parts) + "."


def regions_picture(rules: Mapping[str, ClipRule], points: Sequence[tuple[float, float]] = ()) -> Picture:
    """Where in the plane of old probability and ratio a rule removes the gradient, one panel per rule.

    Args:
        points: (old probability, ratio) of recorded tokens, drawn into every panel.
    """
    logps = torch.linspace(math.log(1e-4), math.log(0.9995), 160, dtype=torch.float64)
    p = logps.exp().tolist()
    edge = [1 / x for x in p]
    bottom, top = 0.02, 200.0
    panels = []
    for name, rule in rules.items():
        limits = rule.bounds(logps)
        upper = [min(max(u, bottom), e, top) for u, e in zip(limits.upper.tolist(), edge, strict=True)]
        lower = [min(max(value, bottom), top) for value in limits.lower.tolist()]
        ceiling = [min(e, top) for e in edge]
        panels.append(
            Panel(
                name,
                "old probability p",
                [Line("simplex edge, r = 1/p", p, edge, style=None)],
                [
                    Area("A > 0: no gradient", p, upper, ceiling, style=1),
                    Area("A < 0: no gradient", p, [bottom] * len(p), lower, style=0),
                ],
                points=points,
                y_label="ratio r",
                log_x=True,
                log_y=True,
                x_limits=(1e-4, 1),
                y_limits=(bottom, top),
            )
        )
    return Picture(
        "regions",
        "Where each rule removes the gradient",
        panels,
        caption="A token in a shaded region gets no gradient if its advantage has that sign; the other sign "
        "pulls it back." + (" Dots: recorded tokens of this run." if points else ""),
        alt="For each rule, the regions above its upper and below its lower ratio bound against the old "
        f"probability: {', '.join(rules)}.",
    )


def clipped_picture(counts: ClipCounts, styles: Mapping[str, int] | None = None) -> Picture:
    """Share of the tokens of each old probability that a rule would have clipped, by the advantage's sign."""
    labels = bin_labels(counts.edges)
    with np.errstate(invalid="ignore"):
        shares = counts.clipped / counts.tokens
    panels = [
        Panel(
            title,
            "old probability",
            [
                Line(name, range(len(labels)), shares[i, :, sign].tolist(), style=_style(name, i, styles))
                for i, name in enumerate(counts.rules)
            ],
            ticks=labels,
            percent=True,
            y_limits=(0, None),
        )
        for sign, title in ((1, "A > 0 and above the upper bound"), (0, "A < 0 and below the lower bound"))
    ]
    totals = counts.clipped.sum((1, 2)) / max(1, counts.tokens.sum())
    return Picture(
        "clipped",
        "Which tokens each rule would have clipped",
        panels,
        caption=f"Share of the recorded tokens ({counts.tokens.sum():,} with an advantage) that would get no "
        "gradient. They come from these runs under their own rules; under another rule a run would have "
        "sampled other tokens.",
        alt="Share of all recorded tokens clipped: "
        + "; ".join(f"{name} {share:.2%}" for name, share in zip(counts.rules, totals, strict=True))
        + ".",
    )


def gains_picture(gains: Mapping[str, tuple[Gains, Gains]], styles: Mapping[str, int] | None = None) -> Picture:
    """What tokens gained since their rollout, for each run: (positive, negative advantage)."""
    panels = []
    for j, sign in enumerate(("A > 0", "A < 0")):
        lines = [
            Line(name, range(len(pair[j].mean)), pair[j].log_ratio.tolist(), style=_style(name, i, styles))
            for i, (name, pair) in enumerate(gains.items())
        ]
        labels = bin_labels(next(iter(gains.values()))[j].edges)
        panels.append(
            Panel(f"Tokens with {sign}", "old probability", lines, y_label="mean log ratio (nats)", ticks=labels)
        )
    return Picture(
        "gains",
        "How far tokens of each probability moved",
        panels,
        caption="Mean of log(p/old p) just before the last update of recorded rollouts: did rare good tokens gain?",
        alt="Mean log ratio of tokens with positive advantage, from the lowest to the highest old probability: "
        + "; ".join(
            f"{name} " + ", ".join("none" if math.isnan(v) else f"{v:.3f}" for v in pair[0].log_ratio)
            for name, pair in gains.items()
        )
        + ".",
    )


def entropy_picture(entropies: Mapping[str, PositionEntropy], styles: Mapping[str, int] | None = None) -> Picture:
    """Mean entropy over the position in the completion, one line per run or update."""
    lines = [
        Line(name, (e.start + 0.0).tolist(), e.entropy.tolist(), style=_style(name, i, styles))
        for i, (name, e) in enumerate(entropies.items())
    ]
    return Picture(
        "entropy",
        "Entropy along the completion",
        [
            Panel(
                "Entropy by position",
                "position in the completion (tokens)",
                lines,
                y_label="nats",
                y_limits=(0, None),
            )
        ],
        caption="Mean over the recorded completions that reach the position.",
        alt="Mean entropy: "
        + "; ".join(
            f"{name} {np.average(e.entropy, weights=e.tokens):.3f} nats"
            for name, e in entropies.items()
            if len(e.tokens)
        )
        + ".",
    )
