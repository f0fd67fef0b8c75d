"""What the bounds alone say about how fast a rare action can become likely."""

from __future__ import annotations

import math

import torch

from bandpo.core.rules import ClipRule


def predicted_rollouts(rule: ClipRule, start: float, target: float) -> int:
    """Fewest rollouts after which an action's probability can have risen from `start` to `target`.

    A rule takes an action's gradient away once its probability has grown by the factor upper(p) since the rollout,
    so p_next <= min(p upper(p), 1), with p the probability at the rollout. The prediction is this bound met in every
    rollout. It neglects what a rule does not see: the last update's step beyond the bound, the optimizer's momentum,
    and other tokens' gradients.

    Raises:
        ValueError: If not 0 < start < target < 1, or the rule lets no probability grow.
    """
    if not 0 < start < target < 1:
        raise ValueError(f"start is {start} and target {target}; allowed: 0 < start < target < 1")
    p, rollouts = start, 0
    while p < target:
        upper = float(rule.bounds(torch.tensor(math.log(p), dtype=torch.float64)).upper)
        if upper <= 1 + 1e-9:
            raise ValueError(f"rule {rule} lets a probability of {p:.3g} grow by a factor of {upper:.3g} only")
        p, rollouts = min(p * upper, 1.0), rollouts + 1
    return rollouts
