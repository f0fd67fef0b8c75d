"""The prompts of a run in tokens, and whether a completion of full length fits after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bandpo.evaluation.positions import find_shortage
from bandpo.evaluation.sampling import encode
from bandpo.runs.config import RunConfig
from bandpo.tasks import Problem
from bandpo.tasks.base import Prompt


@dataclass(frozen=True)
class Prompts:
    """The first prompt, its length, and the longest one's length, in tokens."""

    first: str
    first_tokens: int
    longest_tokens: int
    longest: int  # index of the longest

    @classmethod
    def of(cls, tokenizer: Any, prompts: Sequence[Prompt]) -> Prompts:
        encoded = [encode(prompt, tokenizer) for prompt in prompts]
        lengths = [len(ids) for ids in encoded]
        return cls(tokenizer.decode(encoded[0]), lengths[0], max(lengths), lengths.index(max(lengths)))


def position_obstacle(
    config: RunConfig, sizes: Any, tokenizer: Any, problems: Sequence[Problem], completion_tokens: int
) -> str | None:
    """Why prompts with completions of full length do not fit into the model's positions; None if they all do.

    Args:
        sizes: A transformers model's configuration; without a limit any length fits.
        problems: Training problems, and held-out ones.
    """
    lengths = [len(encode(config.task.prompt(problem, tokenizer), tokenizer)) for problem in problems]
    shortage = find_shortage(sizes, lengths, completion_tokens)
    if shortage is None:
        return None
    larger = f"model.scratch.positions={shortage.longest + completion_tokens}"
    return shortage.sentence("train.max_completion_length=", [] if config.model.scratch is None else [larger])
