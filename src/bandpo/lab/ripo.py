"""RIPO's rule, which the simulations compare Band with."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from bandpo.core.band import RatioBounds
from bandpo.core.checks import DEFAULT_RADIUS, as_work_dtype, check_number
from bandpo.core.rules import ClipRule
from bandpo.core.tokens import Tokens


@dataclass(frozen=True)
class RIPO(ClipRule):
    """Bounds 1 -+ sqrt(radius / p), the lower one at least 0 (arXiv 2607.10169): Band's chi-squared ball without its
    factor 1 - p.

    Raises:
        ValueError: If radius is not above 0.
    """

    radius: float = DEFAULT_RADIUS
    divergence = "chi2"

    def __post_init__(self) -> None:
        check_number("RIPO", "radius", self.radius, sys.float_info.min, sys.float_info.max, "a finite number > 0")

    def limits(self, tokens: Tokens) -> RatioBounds:
        reach = math.sqrt(self.radius) * (-0.5 * as_work_dtype(tokens.old_logps)).exp()
        return RatioBounds.from_ratios((1 - reach).clamp(min=0), 1 + reach)
