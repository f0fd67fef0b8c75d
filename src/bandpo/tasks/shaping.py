"""Shaping rewards, added to the task's reward in training and never in evaluation."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bandpo.plugins import is_own, load_function
from bandpo.tasks.answers import last_boxed
from bandpo.words import nearest

Values = list[float]
ShapingFunction = Callable[[Sequence[str], Sequence[list[int]]], Values]
"""(texts, token ids) of the completions -> one number each."""


def think_format() -> ShapingFunction:
    """1 for a completion of the form <think>...</think>..., else 0 (TRL's think_format_reward).

    A completion without <think> but with </think> counts too: chat templates of reasoning models open the thought
    in the prompt (huggingface/trl#6966).
    """

    def values(texts: Sequence[str], ids: Sequence[list[int]]) -> Values:
        from trl.rewards import think_format_reward

        whole = [text if "<think>" in text else f"<think>{text}" for text in texts]
        return think_format_reward([[{"content": text}] for text in whole])

    return values


def boxed_format() -> ShapingFunction:
    r"""1 for a completion with a closed, non-empty \boxed{...}, else 0."""
    return lambda texts, ids: [float(bool(last_boxed(text))) for text in texts]


def overlong(max_completion_length: int, buffer: int = 512) -> ShapingFunction:
    """DAPO's soft overlong punishment: from 0 down to -1 over the last `buffer` tokens (arXiv 2503.14476, eq. 13).

    Raises:
        ValueError: If `buffer` is not from 1 to below `max_completion_length`.
    """
    if buffer < 1:
        raise ValueError(f"buffer is {buffer}; allowed: an integer >= 1")
    if buffer >= max_completion_length:
        raise ValueError(
            f"buffer is {buffer}; allowed: an integer below train.max_completion_length, which is "
            f"{max_completion_length}"
        )

    def values(texts: Sequence[str], ids: Sequence[list[int]]) -> Values:
        from trl.rewards import get_soft_overlong_punishment

        return get_soft_overlong_punishment(max_completion_length, buffer)(completion_ids=ids)

    return values


def repetition(ngram_size: int = 3, max_penalty: float = -1.0) -> ShapingFunction:
    """`max_penalty` times the share of repeated token n-grams (arXiv 2502.03373, appendix C.2).

    Raises:
        ValueError: If `ngram_size` is below 1 or `max_penalty` above 0.
    """
    if ngram_size < 1:
        raise ValueError(f"ngram_size is {ngram_size}; allowed: an integer >= 1")
    if not (math.isfinite(max_penalty) and max_penalty <= 0):
        raise ValueError(f"max_penalty is {max_penalty}; allowed: a finite number <= 0")

    def values(texts: Sequence[str], ids: Sequence[list[int]]) -> Values:
        from trl.rewards import get_repetition_penalty_reward

        return get_repetition_penalty_reward(ngram_size, max_penalty)(completion_ids=ids)

    return values


SHAPING: dict[str, Callable[..., ShapingFunction]] = {
    "format": think_format,
    "boxed": boxed_format,
    "overlong": overlong,
    "repetition": repetition,
}


@dataclass(frozen=True)
class Shaping:
    """One additional reward: its name, its weight relative to the task's reward (weight 1), its function."""

    name: str
    weight: float
    function: ShapingFunction


def shaping_options(name: str) -> dict[str, Any]:
    """The options of a shaping reward and their defaults."""
    parameters = inspect.signature(SHAPING[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def make_shaping(max_completion_length: int, name: str, weight: float = 1.0, **options: Any) -> Shaping:
    """A shaping reward by name, or the user's own as 'module:function', called as function(text, **options).

    Args:
        max_completion_length: Length limit of the completions in tokens.

    Raises:
        ValueError: For an unknown name or option, or a value that is not allowed.
    """
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real) or not math.isfinite(weight) or weight == 0:
        raise ValueError(f"shaping {name!r}: weight is {weight!r}; allowed: a finite number other than 0")
    if is_own(name):
        return Shaping(name, float(weight), _each(name, load_function(name, "shaping"), options))
    if name not in SHAPING:
        raise ValueError(
            f"unknown shaping reward {name!r}{nearest(name, SHAPING)}; "
            f"known: {', '.join(SHAPING)}, or module:function"
        )
    known = shaping_options(name)
    for option, value in options.items():
        if option not in known:
            raise ValueError(
                f"shaping {name!r} has no option {option!r}{nearest(option, ['weight', *known])}; "
                f"it takes: {', '.join(['weight', *known])}"
            )
        kind = numbers.Integral if isinstance(known[option], int) else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            article = "an integer" if kind is numbers.Integral else "a number"
            raise ValueError(f"shaping {name!r}: {option} is {value!r}; allowed: {article}")
    if name == "overlong":
        options["max_completion_length"] = max_completion_length
    try:
        return Shaping(name, float(weight), SHAPING[name](**options))
    except ValueError as error:
        raise ValueError(f"shaping {name!r}: {error}") from error


def _each(name: str, function: Callable[..., Any], options: dict[str, Any]) -> ShapingFunction:
    def values(texts: Sequence[str], ids: Sequence[list[int]]) -> Values:
        result: Values = []
        for text in texts:
            value = function(text, **options)
            if not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise ValueError(f"shaping {name!r} returned {value!r}; allowed: a finite number")
            result.append(float(value))
        return result

    return values
