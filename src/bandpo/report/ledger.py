"""Which side of a rule moved entropy, by how much, on which tokens: the entropy ledger of recorded batches.

To first order, under gradient ascent, and only at a token's own position: a token a with slope c = A r moves the
entropy there by -c (S_a - E_pi[S]) per unit of learning rate, with S_a = pi_a (H + ln pi_a) (docs/report.md).
Everything here is a pure function of recorded batches and a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bandpo.core.rules import ClipRule
from bandpo.lab.simulation import EDGES
from bandpo.report.why import bin_labels, bin_of, outside
from bandpo.training.batches import TokenBatch

Floats = NDArray[np.float32]
COLUMNS = ("let in high", "let in low", "kept out high", "kept out low")


@dataclass(frozen=True)
class TokenLedger:
    """The ledger of the tokens of batches, in groups.

    Attributes:
        labels: Names of the N groups.
        tokens: Number of tokens in each, with or without an advantage, shape (N,).
        entries: Change of the entropy in nats per unit of learning rate, summed over tokens, shape (N, 4), as
            `COLUMNS`: tokens that kept their gradient with A > 0 and A < 0, and what tokens that lost it with a ratio
            above 1 and below would have added.
    """

    labels: tuple[str, ...]
    tokens: NDArray[np.int64]
    entries: NDArray[np.float64]

    @property
    def net(self) -> NDArray[np.float64]:
        """Let in, high and low together, shape (N,)."""
        return self.entries[:, :2].sum(1)

    @property
    def kept_out(self) -> NDArray[np.float64]:
        """Kept out, high and low together, shape (N,)."""
        return self.entries[:, 2:].sum(1)

    def largest(self, count: int) -> TokenLedger:
        """The groups that moved most, by |let in| + |kept out|, largest first."""
        order = np.argsort(-(abs(self.net) + abs(self.kept_out)), kind="stable")[:count]
        return TokenLedger(tuple(self.labels[i] for i in order), self.tokens[order], self.entries[order])


def has_slopes(batch: TokenBatch) -> bool:
    """Whether the batch has E_pi[S] of its tokens; older files do not."""
    return bool(np.isfinite(batch.mean_slope[batch.mask]).all())


def entropy_changes(batch: TokenBatch) -> NDArray[np.float64]:
    """-c (S_a - E_pi[S]) of each token if it has its gradient, in nats per unit of learning rate, shape (B, T).

    0 for masked tokens; NaN if E_pi[S] is unknown.
    """
    found = entropy_change(batch.logps, batch.old_logps, batch.entropy, batch.advantages, batch.mean_slope)
    return np.where(batch.mask, found, 0.0)


def entropy_change(
    logps: Floats, old_logps: Floats, entropy: Floats, advantages: Floats, mean_slope: Floats
) -> NDArray[np.float64]:
    """`entropy_changes` of the columns of a batch, all of one shape."""
    new, old = logps.astype(np.float64), old_logps.astype(np.float64)
    own = np.exp(new) * (entropy + new)
    return np.asarray(-advantages * np.exp(new - old) * (own - mean_slope))


def whole(rule: ClipRule, batches: Sequence[TokenBatch]) -> TokenLedger:
    """All tokens together, one group."""
    return _ledger(rule, batches, [np.zeros(b.mask.shape, np.int64) for b in batches], ["all"])


def by_probability(rule: ClipRule, batches: Sequence[TokenBatch], edges: Sequence[float] = EDGES) -> TokenLedger:
    """By bin of the old probability."""
    return _ledger(rule, batches, [bin_of(b.old_logps, edges) for b in batches], bin_labels(edges))


def by_position(rule: ClipRule, batches: Sequence[TokenBatch], stretches: int = 8) -> TokenLedger:
    """By position in the completion, from 1, in at most `stretches` ranges of equal length."""
    length = max(b.mask.shape[1] for b in batches)
    width = -(-length // stretches)
    places = [np.broadcast_to(np.arange(b.mask.shape[1]) // width, b.mask.shape) for b in batches]
    ends = [(first + 1, min(first + width, length)) for first in range(0, length, width)]
    return _ledger(rule, batches, places, [str(a) if a == b else f"{a} to {b}" for a, b in ends])


def by_token(rule: ClipRule, batches: Sequence[TokenBatch]) -> TokenLedger:
    """By the token's text."""
    texts = sorted({str(text) for b in batches for text in b.texts})
    numbers = {text: i for i, text in enumerate(texts)}
    return _ledger(rule, batches, [np.array([numbers[str(x)] for x in b.texts])[b.tokens] for b in batches], texts)


def _ledger(
    rule: ClipRule, batches: Sequence[TokenBatch], places: Sequence[NDArray[np.int64]], labels: Sequence[str]
) -> TokenLedger:
    tokens, entries = np.zeros(len(labels), np.int64), np.zeros(4 * len(labels))
    for batch, place in zip(batches, places, strict=True):
        clipped, low = outside(rule, batch).clipped, batch.logps <= batch.old_logps
        column = np.where(clipped, 2 + low, (batch.advantages <= 0).astype(np.int64))
        groups = place[batch.mask]
        tokens += np.bincount(groups, minlength=len(tokens))
        entries += np.bincount(
            4 * groups + column[batch.mask], entropy_changes(batch)[batch.mask], minlength=len(entries)
        )
    return TokenLedger(tuple(labels), tokens, entries.reshape(-1, 4))
