"""Trust regions whose radius adapts to the token: subclasses of Band with one method, `radii`."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bandpo.core.checks import as_work_dtype, can_look, check_broadcast, check_number
from bandpo.core.rules import Band, Radii
from bandpo.core.tokens import Tokens

TINY = 1e-36
"""Just above float32's smallest normal number."""


def _times(factor: Tensor, radii: Radii) -> Radii:
    low, high = radii
    below = factor * low
    return below, below if low is high else factor * high


@dataclass(frozen=True, eq=False)
class AdaptiveBand(Band):
    """Band with a radius per token, in proportion to how surprising the token was.

    radius_t = radius * clamp(-ln(p_t) / reference, smallest, largest), with p_t the token's old probability. Tokens
    that the old policy was almost sure of get a tight trust region, rare ones a wide one; a token of surprisal
    `reference` gets Band's radius. An old probability of 0 has the largest radius.

    The paper leaves a radius that adapts per token to future work (arXiv 2603.04918); this form is ours. It needs
    the old log-probs alone, so it works in every framework that supports Band, and it has no state.

    Args:
        radius, divergence, cap, floor: As Band's.
        reference: Surprisal in nats at which the radius is `radius`.
        smallest, largest: Limits of the factor.

    Raises:
        ValueError: As Band, or if the limits are not 0 < smallest <= largest, or reference is not above 0.

    Examples:
        >>> AdaptiveBand(radius=0.05).bounds(torch.tensor([0.01, 0.9]).log()).upper
        tensor([17.3356,  1.0311])
    """

    reference: float = 1.0
    smallest: float = 0.1
    largest: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        tiny = sys.float_info.min
        check_number("AdaptiveBand", "reference", self.reference, tiny, sys.float_info.max, "a finite number > 0")
        check_number("AdaptiveBand", "largest", self.largest, tiny, sys.float_info.max, "a finite number > 0")
        check_number("AdaptiveBand", "smallest", self.smallest, tiny, self.largest, f"> 0 and <= {self.largest}")

    def radii(self, tokens: Tokens) -> Radii:
        surprisal = -as_work_dtype(tokens.old_logps.detach())
        factor = (surprisal / self.reference).clamp(self.smallest, self.largest)
        return _times(factor, super().radii(tokens))


@dataclass(frozen=True, eq=False)
class PositionBand(Band):
    """Band with a radius that grows or shrinks linearly along the completion.

    radius_t = radius * ((1 - s) (2 - last) + s last), s = min(t / (horizon - 1), 1), t the token's position from 0.
    The mean radius of a completion of `horizon` tokens is `radius`; one that ends earlier has more if last < 1. CPPO
    (arXiv 2606.10968) lowers the threshold of DPPO's mask linearly from 1 to .8: last = 0.89 at 0.9 of the radius.

    Args:
        radius, divergence, cap, floor: As Band's.
        last: Factor from token number `horizon` on, above 0 and below 2; the first token has 2 - last.
        horizon: Tokens over which the radius changes, >= 2; commonly the largest completion length.

    Raises:
        ValueError: As Band, or if last or horizon is out of range.

    Examples:
        >>> PositionBand(radius=0.05, horizon=3).bounds(torch.tensor([-1.0, -1.0, -1.0])).upper
        tensor([1.5242, 1.4279, 1.3014])
    """

    last: float = 0.5
    horizon: int = 512
    needs = frozenset({"positions"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(
            "PositionBand", "last", self.last, sys.float_info.min, math.nextafter(2, 0), "a number > 0 and < 2"
        )
        check_number("PositionBand", "horizon", self.horizon, 2, sys.float_info.max, "a number >= 2")

    def radii(self, tokens: Tokens) -> Radii:
        assert tokens.positions is not None
        dtype = as_work_dtype(tokens.old_logps).dtype
        ends = sorted((2 - self.last, self.last))
        factor = tokens.positions.to(dtype) * (2 * (self.last - 1) / (self.horizon - 1)) + (2 - self.last)
        return _times(factor.clamp(*ends), super().radii(tokens))


@dataclass(frozen=True, eq=False)
class _SharedBand(Band):
    """Band whose radii are distributed in proportion to a field of the context, so that their mean is preserved.

    radius_t = radius * (smallest + (1 - smallest) w_t / mean(w)), w_t >= 0 the field named in `by`. The mean is over
    the unmasked tokens of one call: of a micro-batch on one process. Each micro-batch has the mean radius that was
    set, whatever is in it, so with gradient accumulation a token's radius depends on the others in its micro-batch.
    """

    smallest: float = 0.1
    by: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        check_number(name, "smallest", self.smallest, sys.float_info.min, 1.0, "a number > 0 and <= 1")

    def radii(self, tokens: Tokens) -> Radii:
        assert tokens.mask is not None
        old = as_work_dtype(tokens.old_logps.detach())
        keep = tokens.mask.bool().expand_as(old)
        # A tiny number instead of 0, so that tokens which all have 0 get equal shares.
        weight = torch.where(keep, getattr(tokens, self.by).detach().to(old.dtype).clamp(min=TINY), 0.0)
        total, count = weight.sum(), keep.sum()
        if can_look(total) and not math.isfinite(total):
            mean = float(total / count)
            raise ValueError(f"{self.by} has the mean {mean} over unmasked tokens; allowed: finite numbers")
        scale = (1 - self.smallest) * count / total.clamp(min=TINY)
        return _times(weight * scale + self.smallest, super().radii(tokens))


@dataclass(frozen=True, eq=False)
class EntropyBand(_SharedBand):
    """Band with a radius per token in proportion to the old policy's entropy there; the mean radius is preserved.

    radius_t = radius * (smallest + (1 - smallest) H_t / mean(H)), the mean over the micro-batch's unmasked tokens:
    `radius` stays the mean radius of every micro-batch, whatever its entropy. If all H are 0 it is Band. No state,
    no gradient through H, one mean over the tokens. The paper leaves a radius that adapts to future work
    (arXiv 2603.04918); ESTR (arXiv 2607.22186) ties its bound to the entropy too.

    Args:
        radius, divergence, cap, floor: As Band's.
        smallest: Factor at zero entropy, above 0; 1 is Band.

    Raises:
        ValueError: As Band, or if smallest is not above 0 and at most 1, or (on the CPU) an unmasked H is not finite.

    Examples:
        >>> tokens = Tokens(torch.tensor([-1.0, -1.0]), mask=torch.ones(2), old_entropy=torch.tensor([0.1, 1.9]))
        >>> EntropyBand(radius=0.05).bounds(tokens).upper
        tensor([1.1844, 1.5752])
    """

    needs = frozenset({"old_entropy", "mask"})
    by = "old_entropy"


@dataclass(frozen=True, eq=False)
class DisagreementBand(_SharedBand):
    """Band with a radius in proportion to how much the prompt's samples disagree; the mean radius is preserved.

    radius_t = radius * (smallest + (1 - smallest) d_t / mean(d)), with d_t the group's disagreement at the token's
    position (`group_disagreement`) and the mean over the unmasked tokens of the micro-batch, as in `EntropyBand`.

    Args:
        radius, divergence, cap, floor: As Band's.
        smallest: Factor where all samples agree, above 0; 1 is Band.

    Raises:
        ValueError: As Band, or if smallest is not above 0 and at most 1, or (on the CPU) an unmasked d is not finite.

    Examples:
        >>> tokens = Tokens(torch.tensor([-1.0, -1.0]), mask=torch.ones(2), disagreement=torch.tensor([0.0, 1.0]))
        >>> DisagreementBand(radius=0.05).bounds(tokens).upper
        tensor([1.1332, 1.5891])
    """

    needs = frozenset({"disagreement", "mask"})
    by = "disagreement"


@torch.no_grad()
def group_disagreement(ids: Tensor, groups: Tensor, mask: Tensor) -> Tensor:
    """How often two samples of one prompt hold different tokens at the same position: a semantic uncertainty.

        d = 1 - sum_k n_k (n_k - 1) / (n (n - 1))

    with n the group's samples that reach the position and n_k those with token k there. If the samples agree on all
    that comes before, this is an unbiased estimate of 1 - sum_k p_k^2. Once they have diverged, their text is
    compared position by position, not by meaning, so d is near 1 wherever it is shifted. A position that only one
    sample reaches gets the mean of the others.

    It sorts the tokens of each position: compute it once per rollout, over whole groups. It needs about 60 bytes
    per token while it runs, and 4 afterwards.

    Args:
        ids: Token ids, shape (B, T).
        groups: Index of the prompt's group, shape (B, 1) or (B,).
        mask: 1 (or True) for tokens that count, shape (B, T).

    Returns:
        Tensor of shape (B, T), 0 to 1, float32; 0 outside the mask.

    Raises:
        ValueError: If shapes do not fit.

    Examples:
        >>> ids = torch.tensor([[4, 7], [4, 8], [4, 8]])
        >>> group_disagreement(ids, torch.zeros(3, 1), torch.ones(3, 2))[0]
        tensor([0.0000, 0.6667])
    """
    groups = groups.reshape(-1, 1)
    for name, x in (("groups", groups), ("mask", mask)):
        check_broadcast(name, x, "ids", ids)
    keep = mask.bool().expand_as(ids)
    names, group = torch.unique(groups.expand(len(ids), 1).flatten(), return_inverse=True)
    # One column per position: the samples of a group with the same token lie side by side once it is sorted.
    columns = torch.where(keep, (group.unsqueeze(1) << 32) + ids, -1).t().contiguous()
    ordered = columns.sort(-1).values
    same = torch.searchsorted(ordered, columns, right=True) - torch.searchsorted(ordered, columns) - 1

    def total(x: Tensor) -> Tensor:
        return torch.zeros(len(names), ids.shape[1], dtype=torch.float64, device=ids.device).index_add(0, group, x)

    n = total(keep.double())
    agreeing, pairs = total((same.t() * keep).double()), n * (n - 1)
    known = keep & (pairs > 0)[group]
    value = (1 - agreeing / pairs.clamp(min=1))[group] * known
    return torch.where(known, value, value.sum() / known.sum().clamp(min=1) * keep).float()
