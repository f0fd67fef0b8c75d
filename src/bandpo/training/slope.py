"""E_pi[S], which the entropy ledger needs besides log-probs and entropies, from the model's own logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer import utils


@contextmanager
def mean_slopes(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect E_pi[S] = sum_k pi_k^2 (ln pi_k + H) at each position while TRL's fused head scores tokens.

    S_k = pi_k (H + ln pi_k) = -dH / dz_k is the slope of the entropy in the (tempered) logits (docs/simulator.md).
    The head is evaluated a second time at half its temperature: it then sees q = pi^2 / sum_k pi_k^2, and

        E_pi[S] = e^L (H(pi) + (L - H(q)) / 2),     L = ln sum_k pi_k^2

    so scaling, soft-capping, tiles and memory are those of TRL's own log-probs, and the model runs once.

    Args:
        model: As TRL calls it, wrapped or not.

    Yields:
        One tensor of shape (rows, length - 1) for each call of the model; 0 where TRL scores no token. No tensor is
        added if the model has no such head.
    """
    seen: list[Tensor] = []

    def note(module: nn.Module, arguments: Any, output: Any) -> None:
        if getattr(output, "mean_logits", None) is not None:
            seen.append(output.mean_logits)

    hook, name = model.register_forward_hook(note), "_ChunkedLogProbFunction"
    head = getattr(utils, name, None)
    try:
        if head is not None:
            setattr(utils, name, _also_giving_slopes(head))
        yield seen
    finally:
        hook.remove()
        if head is not None:
            setattr(utils, name, head)


def _also_giving_slopes(head: Any) -> Any:
    """TRL's head with E_pi[S] instead of the mean logit, which no loss of TRL's GRPOTrainer reads."""

    def apply(
        hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, *options: Any
    ) -> tuple[Any, ...]:
        *options, outputs = options  # type: ignore[assignment]
        wanted = (*outputs, "entropy", "log_sum_sq_probs")
        logps, entropy, log_sum, _, top = head.apply(hidden, weight, bias, targets, temperature, *options, wanted)
        with torch.no_grad():
            squared = head.apply(hidden, weight, bias, targets, temperature / 2, *options, ("entropy",))[1]
            slope = log_sum.exp() * (entropy + (log_sum - squared) / 2)
        return logps, entropy, log_sum, slope, top

    return SimpleNamespace(apply=apply)
