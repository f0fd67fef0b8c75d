"""Rules by name, as recipes, command lines and frameworks give them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bandpo.core.adaptive import AdaptiveBand, DisagreementBand, EntropyBand, PositionBand
from bandpo.core.rivals import DCPO, ESTR, IPO, RIPO, Clip, NoClip, RelaxedBand
from bandpo.core.rules import Band, ClipRule
from bandpo.core.tokens import Tokens
from bandpo.plugins import is_own, load_class
from bandpo.words import nearest

RULES: dict[str, Callable[..., ClipRule]] = {
    "band": Band,
    "adaptive-band": AdaptiveBand,
    "entropy-band": EntropyBand,
    "position-band": PositionBand,
    "disagreement-band": DisagreementBand,
    "relaxed-band": RelaxedBand,
    "clip": Clip,
    "dcpo": DCPO,
    "ripo": RIPO,
    "dppo-tv": partial(Band, radius=0.15, divergence="tv"),
    "dppo-kl": partial(Band, radius=0.05, divergence="kl"),
    "ipo": IPO,
    "estr": ESTR,
    "none": NoClip,
}
"""Name -> what builds the rule from its options. DPPO's masks (arXiv 2602.04879; radii as in verl) are Band under
another name: docs/method.md."""


def make_rule(name: str, **options: Any) -> ClipRule:
    """Build a rule from its name and options, as a recipe or a command line gives them.

    Args:
        name: A key of RULES, or 'module:Class' for your own rule.

    Raises:
        ValueError: For an unknown name or option (names the nearest valid one), a bad value, or a class that is
            not a rule.
    """
    if is_own(name):
        make: Callable[..., ClipRule] = load_class(name, "clip rule", ClipRule)  # type: ignore[type-abstract]
    elif name in RULES:
        make = RULES[name]
    else:
        raise ValueError(
            f"unknown clip rule {name!r}{nearest(name, RULES)}; known rules: {', '.join(RULES)}, or module:Class"
        )
    known = list(inspect.signature(make).parameters)
    for option in options:
        if option not in known:
            raise ValueError(
                f"clip rule {name!r} has no option {option!r}{nearest(option, known)}; "
                f"it takes: {', '.join(known) or 'none'}"
            )
    rule = make(**options)
    if is_own(name):
        _try_out(rule, name)
    return rule


def _try_out(rule: ClipRule, name: str) -> None:
    """One call of each method on two tokens, so that a mistake in a custom rule shows before training."""
    old, one = torch.tensor([[-0.5, -3.0]]), torch.ones(1, 2)
    positions, groups = torch.arange(2).expand(1, 2), torch.zeros(1, 1, dtype=torch.long)
    tokens = Tokens(old, one, one.bool(), one, old, positions, groups, one)
    try:
        bounds, inside = rule.bounds(tokens), rule.inside(old, tokens)
        shapes = {tuple(x.shape) for x in (bounds.log_lower, bounds.log_upper, inside)}
    except Exception as error:
        raise ValueError(f"clip rule {name!r} fails on two tokens: {type(error).__name__}: {error}") from error
    if shapes != {(1, 2)}:
        raise ValueError(f"clip rule {name!r} gives shapes {sorted(shapes)} for tokens of shape (1, 2)")
    if not bool(inside.all()):
        raise ValueError(f"clip rule {name!r} excludes a ratio of 1, which every rule must allow")
