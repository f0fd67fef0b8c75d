"""Your own divergence: a convex function f with f(1) = 0, and nothing else.

python examples/own_divergence.py
"""

import torch

import bandpo

# Triangular discrimination (Vincze-Le Cam): bounded, and between chi-squared and total variation in its tails.
triangular = bandpo.FDivergence(name="triangular", f=lambda u: (u - 1) ** 2 / (u + 1))

if __name__ == "__main__":
    old_logps = torch.tensor([0.01, 0.2, 0.9], dtype=torch.float64).log()

    for divergence in ("kl", triangular):
        bounds = bandpo.band(old_logps, radius=0.05, divergence=divergence)
        name = divergence if isinstance(divergence, str) else divergence.name
        for p, lower, upper in zip(old_logps.exp().tolist(), bounds.lower, bounds.upper, strict=True):
            print(f"{name:10}  p = {p:.2f}: a ratio from {lower:.3f} to {upper:.3f}")

    # Are the bounds roots? A sign change of g_f - radius around each one proves it, for any f.
    proof = bandpo.certify(old_logps, radius=0.05, divergence=triangular)
    print(f"certified: {bool(proof.holds.all())}")

    # It works wherever a name does. Clipping is one evaluation of f, so the loss costs as much as for a named one.
    rule = bandpo.Band(radius=0.05, divergence=triangular)
    logps = (old_logps + 0.6 * torch.tensor([1.0, 1.0, -1.0])).requires_grad_()
    ones = torch.ones(1, 3, dtype=torch.float64)
    result = bandpo.policy_loss(logps[None], old_logps[None], ones, ones, rule=rule)
    result.loss.backward()
    print(f"clipped: {float(result.metrics['clip_fraction']):.2f} of the tokens; gradient {logps.grad}")

    # A function that is not convex is refused, with a point that shows it.
    try:
        bandpo.FDivergence(name="wavy", f=lambda u: torch.sin(u - 1))
    except ValueError as error:
        print(f"refused: {error}")
