"""What a clip rule may know of a batch of sampled tokens."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from bandpo.core.checks import as_work_dtype
from bandpo.core.needs import unmet


@dataclass(frozen=True, eq=False)
class Tokens:
    """A batch of sampled tokens as a clip rule sees it; all tensors broadcast to the shape of `old_logps`.

    Attributes:
        old_logps: Log-probs under the policy on which the trust region is centered, any shape, e.g. (B, T).
        advantages: Shape (B, T) or (B, 1).
        mask: True for tokens that count.
        old_entropy: Entropy of that policy at each position, in nats.
        sampling_logps: Log-probs that the sampler reported.
        positions: Position of each token in its completion, from 0; the last dimension's index if not given.
        groups: Index of the prompt's group, shape (B, 1).
        disagreement: How often the group's samples differ at this position, 0 to 1 (`group_disagreement`).

    A field that the rule needs but is not given raises a ValueError that names who can supply it.

    Examples:
        >>> from bandpo import EntropyBand
        >>> EntropyBand().bounds(Tokens(torch.tensor([-1.0]), mask=torch.ones(1)))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: clip rule EntropyBand needs old_entropy: this call does not give it; suppliers that can: ...
    """

    old_logps: Tensor
    advantages: Tensor | None = None
    mask: Tensor | None = None
    old_entropy: Tensor | None = None
    sampling_logps: Tensor | None = None
    positions: Tensor | None = None
    groups: Tensor | None = None
    disagreement: Tensor | None = None

    @classmethod
    def of(cls, old_logps: Tensor | Tokens, needs: frozenset[str] = frozenset(), rule: str = "the rule") -> Tokens:
        """Old log-probs, alone or with their context, as the context that a rule with these needs reads.

        Raises:
            ValueError: If a need is not met; names it and who meets it.
        """
        tokens = old_logps if isinstance(old_logps, Tokens) else cls(old_logps)
        missing = [name for name in sorted(needs) if getattr(tokens, name) is None]
        if "positions" in missing:
            missing.remove("positions")
            length = tokens.old_logps.shape[-1] if tokens.old_logps.dim() else 1
            positions = torch.arange(length, device=tokens.old_logps.device)
            tokens = replace(tokens, positions=positions.expand(tokens.old_logps.shape))
        if missing:
            raise ValueError(unmet(rule, missing, "this call does not give it"))
        return tokens

    def clean(self, keep: Tensor) -> Tokens:
        """The same tokens with zeros, in a work dtype, where `keep` is False."""

        def zeroed(x: Tensor | None) -> Tensor | None:
            return torch.where(keep, as_work_dtype(x), 0.0) if x is not None and x.dtype.is_floating_point else x

        cleaned: dict[str, Any] = {f.name: zeroed(getattr(self, f.name)) for f in fields(self)}
        return replace(self, **cleaned | {"mask": keep})
