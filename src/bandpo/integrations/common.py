"""What every framework's module needs: the rule from its settings, bounds as clip offsets, metrics as floats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bandpo.core.checks import as_work_dtype
from bandpo.core.diagnostics import clip_statistics
from bandpo.core.rules import ClipRule, make_rule


def read_rule(options: Mapping[str, Any] | None) -> ClipRule:
    """The clip rule that a framework's settings describe.

    Args:
        options: `name` (band, clip, dcpo or none; band if absent) and that rule's options, for example
            {"name": "band", "radius": 0.05, "divergence": "kl"}. None or {} is Band with its defaults.

    Raises:
        ValueError: If options is not a mapping, or names an unknown rule or option, or a bad value.
    """
    if options is None:
        return make_rule("band")
    if not isinstance(options, Mapping):
        raise ValueError(f"rule is {options!r}, allowed is a mapping such as {{name: band, radius: 0.05}}")
    given = {str(key): list(value) if _is_pair(value) else value for key, value in options.items()}
    return make_rule(str(given.pop("name", "band")), **given)


def _is_pair(value: Any) -> bool:
    """A list of any kind, OmegaConf's included."""
    return hasattr(value, "__len__") and not isinstance(value, (str, Mapping))


@torch.no_grad()
def clip_range(rule: ClipRule, old_logps: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The rule's bounds as the offsets from 1 that PPO implementations clamp with.

    clamp(ratio, 1 - low, 1 + high) is the clamp to the rule's bounds: low = 1 - lower, high = upper - 1. Both
    come back from that subtraction unrounded where lower >= 1/2, lower by at most 2^-25 elsewhere.

    Args:
        rule: The clip rule.
        old_logps: Log-probs under the policy on which the trust region is centred, any shape.
        mask: 1 for tokens that count, same shape; the others may hold anything.

    Returns:
        (low, high), each of the shape of `old_logps`, float32 (float64 for float64 input).
    """
    old_logps = as_work_dtype(old_logps.detach())
    if mask is not None:
        old_logps = old_logps.masked_fill(~mask.bool(), 0)
    bounds = rule.bounds(old_logps)
    return 1 - bounds.lower, bounds.upper - 1


def clip_metrics(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, rule: ClipRule, prefix: str
) -> dict[str, float]:
    """What the rule did to a batch (docs/metrics.md), as floats: one read-back from the device for all of them.

    Args:
        logps, old_logps, advantages, mask: Of one shape, (B, T) or (tokens,).
        rule: The clip rule.
        prefix: Put before each metric's name.
    """
    metrics = clip_statistics(logps.detach(), old_logps.detach(), advantages.detach(), mask, rule).metrics()
    values = torch.stack([value.to(torch.float64) for value in metrics.values()]).tolist()
    return {f"{prefix}{name}": value for name, value in zip(metrics, values, strict=True)}
