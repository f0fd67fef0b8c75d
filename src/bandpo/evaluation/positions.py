"""Whether prompts and completions of full length fit into a model's positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shortage:
    """Prompts whose completions of full length do not fit.

    Attributes:
        positions: Positions of the model.
        longest: Tokens of the longest prompt.
        completion: Tokens of a completion of full length.
        too_long: Number of prompts that do not fit, out of `prompts`.
    """

    positions: int
    longest: int
    completion: int
    too_long: int
    prompts: int

    def sentence(self, setting: str, remedies: Sequence[str] = ()) -> str:
        """What does not fit, and what would help.

        Args:
            setting: Name of the setting for the length of a completion.
            remedies: Further remedies besides a smaller length, another model and other data.
        """
        left = self.positions - self.longest
        smaller = [f"{setting}{left} or less"] if left > 0 else []
        others = ["a model with more positions", "data without the longest questions"]
        return (
            f"the longest prompt has {self.longest} tokens and {setting.rstrip('= ')} is {self.completion}, together "
            f"{self.longest + self.completion}, but the model has {self.positions} positions "
            f"(max_position_embeddings), too few for {self.too_long} of {self.prompts} prompts; give "
            f"{', or '.join([*smaller, *remedies, *others])}"
        )


def find_shortage(sizes: Any, lengths: Sequence[int], completion: int) -> Shortage | None:
    """None if prompts of these lengths, in tokens, and completions of full length fit.

    Args:
        sizes: A transformers model's configuration; without a limit any length fits.
    """
    positions = getattr(sizes.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    too_long = sum(length + completion > positions for length in lengths)
    return Shortage(positions, max(lengths), completion, too_long, len(lengths)) if too_long else None
