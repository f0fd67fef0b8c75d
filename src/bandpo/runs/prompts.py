"""The prompts of a run in tokens, and whether a completion of full length fits behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    longest: int  # its place among them

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
        sizes: The configuration of a model of transformers; one without a limit takes any length.
        problems: Those trained on, and those held out.
    """
    positions = getattr(sizes.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    lengths = [len(encode(config.task.prompt(problem, tokenizer), tokenizer)) for problem in problems]
    too_long = sum(length + completion_tokens > positions for length in lengths)
    if not too_long:
        return None
    longest = max(lengths)
    remedies = [f"train.max_completion_length={positions - longest} or less"] if longest < positions else []
    if config.model.scratch is not None:
        remedies.append(f"model.scratch.positions={longest + completion_tokens}")
    remedies.append("a model with more positions, or data without the longest questions")
    needed = longest + completion_tokens
    return (
        f"the longest prompt has {longest} tokens and train.max_completion_length is {completion_tokens}, together "
        f"{needed}, but the model has {positions} positions (max_position_embeddings), too few for {too_long} of "
        f"{len(lengths)} prompts; give {', or '.join(remedies)}"
    )
