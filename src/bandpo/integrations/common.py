"""Shared by all frameworks' modules: the rule from its settings, bounds as clip offsets, metrics as floats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bandpo.core.diagnostics import clip_statistics
from bandpo.core.needs import check_needs
from bandpo.core.registry import make_rule
from bandpo.core.rules import ClipRule
from bandpo.core.tokens import Tokens


def read_rule(options: Mapping[str, Any] | None, supplier: str = "bandpo.policy_loss") -> ClipRule:
    """The clip rule that a framework's settings describe.

    Args:
        options: `name` (a key of `bandpo.core.rules.RULES`, or module:Class; band if absent) and that rule's options,
            for example {"name": "band", "radius": 0.05, "divergence": "kl"}. None or {} is Band with its defaults.
        supplier: The framework, as `bandpo.core.tokens.SUPPLIERS` calls it.

    Raises:
        ValueError: If options is not a mapping, names an unknown rule or option or a bad value, or the rule needs
            something that the framework cannot supply.
    """
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        raise ValueError(f"rule is {options!r}; allowed: a mapping such as {{name: band, radius: 0.05}}")
    given = {str(key): list(value) if _is_pair(value) else value for key, value in options.items()}
    control = frozenset({"control"} if given.pop("control", None) is not None else ())
    rule = make_rule(str(given.pop("name", "band")), **given)
    check_needs(rule.all_needs | control, supplier, type(rule).__name__)
    return rule


def _is_pair(value: Any) -> bool:
    """A list of any kind, OmegaConf's included."""
    return hasattr(value, "__len__") and not isinstance(value, (str, Mapping))


def clip_metrics(logps: Tensor, tokens: Tokens, rule: ClipRule, prefix: str) -> dict[str, float]:
    """What the rule did to a batch (docs/metrics.md), as floats: one read-back from the device for all of them.

    Args:
        logps: Log-probs under the policy being trained, shape (B, T) or (tokens,).
        tokens: The batch under the anchor policy, with advantages and mask.
        rule: The clip rule.
        prefix: Put before each metric's name.
    """
    metrics = clip_statistics(logps.detach(), tokens, rule).metrics()
    values = torch.stack([value.to(torch.float64) for value in metrics.values()]).tolist()
    return {f"{prefix}{name}": value for name, value in zip(metrics, values, strict=True)}
