"""Trust regions whose radius adapts to the token: subclasses of Band with one method, `radii`."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from bandpo.core.checks import as_work_dtype, check_number
from bandpo.core.rules import Band, Radii
from bandpo.core.tokens import Tokens


@dataclass(frozen=True, eq=False)
class AdaptiveBand(Band):
    """Band with a radius for each token, in proportion to how surprising the token was.

    radius_t = radius * clamp(-ln(p_t) / reference, smallest, largest), with p_t the token's old probability. Tokens
    that the old policy was all but sure of get a tight trust region, rare ones a wide one; a token of surprisal
    `reference` gets what Band gives it. An old probability of 0 has the largest radius.

    The paper leaves a radius that adapts per token to future work (arXiv 2603.04918); this form is ours. It needs
    the old log-probs alone, so every framework that has a Band has it, and it has no state.

    Args:
        radius, divergence, cap, floor: As Band's.
        reference: Surprisal in nats at which the radius is `radius`.
        smallest, largest: Limits of the factor.

    Raises:
        ValueError: As Band, or if the limits are not 0 < smallest <= largest, or reference is not above 0.
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
        low, high = super().radii(tokens)
        below = factor * low
        return below, below if low is high else factor * high
