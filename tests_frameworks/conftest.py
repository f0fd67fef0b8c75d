"""Tests against the frameworks' own code: `make test-frameworks` fetches it and runs them in a separate environment.

versions.toml names the releases. The checkouts lie in .frameworks/, or where BANDPO_FRAMEWORKS says.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import bandpo

ROOT = Path(__file__).parent.parent
CHECKOUTS = Path(os.environ.get("BANDPO_FRAMEWORKS") or ROOT / ".frameworks").resolve()
BATCH, LENGTH = 5, 16
RULE = {"name": "band", "radius": [0.02, 0.08], "divergence": "kl", "cap": 6.0}
CLIP = {"name": "clip", "low": 0.2, "high": 0.28}


def use_checkout(name: str, *folders: str) -> None:
    """Make a checkout importable, or skip the module that calls this.

    Args:
        name: The framework's table in versions.toml and its folder among the checkouts.
        folders: Where its packages lie in the checkout.
    """
    checkout = CHECKOUTS / name
    if not checkout.is_dir():
        pytest.skip(f"no checkout of {name} in {CHECKOUTS}: run make test-frameworks", allow_module_level=True)
    # At the end: a checkout has folders such as tests and tools, which must not hide installed packages.
    sys.path.extend(str(checkout / folder) for folder in folders or (".",))


def batch(seed: int = 0) -> SimpleNamespace:
    """Log-probs `new` and `old`, `mask`, `advantages`, each of shape (BATCH, LENGTH), and the `lengths`."""
    random = torch.Generator().manual_seed(seed)
    old = -torch.rand(BATCH, LENGTH, generator=random).pow(3) * 8
    new = (old + 0.8 * torch.randn(BATCH, LENGTH, generator=random)).clamp(max=-1e-4)
    lengths = [LENGTH, 2, 9, LENGTH, 5]
    return SimpleNamespace(
        old=old,
        new=new.requires_grad_(),
        mask=torch.arange(LENGTH) < torch.tensor(lengths)[:, None],
        advantages=torch.randn(BATCH, LENGTH, generator=random),
        lengths=lengths,
    )


def agree(
    loss: Tensor, data: SimpleNamespace, rule=None, aggregation="token-mean", scale=1.0, by=None, **options
) -> None:
    """The loss and its gradient are those of bandpo.policy_loss, times scale.

    Args:
        rule: Ours, `RULE` if None.
        by: What the gradient is taken by, `data.new` if None.
    """
    rule = rule or bandpo.Band(radius=(0.02, 0.08), cap=6.0)
    by = data.new if by is None else by
    (gradient,) = torch.autograd.grad(loss, by)
    result = bandpo.policy_loss(data.new, data.old, data.advantages, data.mask, rule, aggregation, **options)
    (want,) = torch.autograd.grad(result.loss, by)
    assert 0 < result.metrics["clip_fraction"] < 1
    torch.testing.assert_close(loss.detach(), result.loss.detach() * scale, rtol=3e-6, atol=1e-7)
    torch.testing.assert_close(gradient, want * scale, rtol=3e-6, atol=1e-7)
