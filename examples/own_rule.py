"""Your own clip rule: one class with one method.

python examples/own_rule.py
bandpo train scratch rule.name=own_rule:CautiousBand      # in the folder of this file
"""

from dataclasses import dataclass

import torch

import bandpo
from bandpo.core.registry import make_rule


@dataclass(frozen=True)
class CautiousBand(bandpo.Band):
    """Band with a tighter lower side for tokens that the old policy found likely.

    The lower radius is multiplied by (1 - p) ** power, so a common token cannot be pushed down far at once, while a
    rare one can still vanish. The upper side is Band's.
    """

    power: float = 1.0

    def radii(self, tokens: bandpo.Tokens):
        low, high = super().radii(tokens)
        return low * (-torch.expm1(tokens.old_logps)).clamp(min=1e-3) ** self.power, high


if __name__ == "__main__":
    old_logps = torch.tensor([0.01, 0.2, 0.9]).log()
    for rule in (bandpo.Band(radius=0.05), CautiousBand(radius=0.05)):
        bounds = rule.bounds(old_logps)
        for p, lower, upper in zip(old_logps.exp().tolist(), bounds.lower, bounds.upper, strict=True):
            print(f"{type(rule).__name__:12}  p = {p:.2f}: a ratio from {lower:.3f} to {upper:.3f}")

    # By name, as in a recipe or a framework's settings; a mistake in the class shows here, before training.
    rule = make_rule("own_rule:CautiousBand", radius=0.05, power=2.0)
    logps, advantages = old_logps + torch.tensor([0.5, -0.3, -0.2]), torch.tensor([1.0, -1.0, -1.0])
    mask = torch.ones(1, 3)
    result = bandpo.policy_loss(logps[None], old_logps[None], advantages[None], mask, rule=rule)
    print(f"clipped: {float(result.metrics['clip_fraction']):.2f} of the tokens")
