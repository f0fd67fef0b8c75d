"""Whether a clip rule can act on a rollout: the updates that follow it, and how it was sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Sampler options that drop tokens or reweight them, and the values at which they do nothing; a temperature is one
# if the trainer's log-probs have another.
RESHAPING: dict[str, tuple[Any, ...]] = {
    "top_p": (None, 1),
    "top_k": (None, 0, -1),
    "min_p": (None, 0),
    "typical_p": (None, 1),
    "epsilon_cutoff": (None, 0),
    "eta_cutoff": (None, 0),
    "temperature": (None,),
    "repetition_penalty": (None, 1),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
}


def outlook(updates: float, acts: bool, by_sampler: bool = False) -> str:
    """How many updates follow each rollout, and whether a clip rule can act on them, as one sentence.

    Args:
        updates: Updates between one rollout and the next.
        acts: Whether a ratio can leave 1.
        by_sampler: Whether ratios are relative to the sampler's log-probs.
    """
    count = f"{updates:g} update{'s follow' if updates != 1 else ' follows'} each rollout"
    if by_sampler:
        return f"{count}, with ratios relative to the sampler's log-probs: the clip rule can act in each of them"
    if acts:
        return f"{count}: once the weights have moved, ratios leave 1 and the clip rule can act"
    return f"{count}: every ratio is 1 and no clip rule can act"


def reshaped(options: Mapping[str, Any]) -> str:
    """The options under which tokens are not drawn from the policy itself, as 'name=value', or an empty string.

    The sampler's log-probs are then those of the distribution it draws from, the trainer's those of the whole policy,
    so their ratio is not 1 even for equal weights: with top_p = 0.8 it is 0.8 on average.
    """
    return ", ".join(f"{name}={options[name]}" for name, off in RESHAPING.items() if options.get(name) not in off)


def check_sampling(options: Mapping[str, Any], by_sampler: bool) -> str | None:
    """A warning about a sampler with these options; None if it draws from the policy itself.

    Raises:
        ValueError: If ratios are relative to the sampler's log-probs, which would then be those of another policy.
    """
    found = reshaped(options)
    if not found:
        return None
    if by_sampler:
        raise ValueError(
            f"sampling is truncated or reweighted ({found}), so the sampler's log-probs are not those of the policy, "
            "and no ratio to them is 1; allowed: sampling from the policy itself, or a trust region around the "
            "trainer's log-probs"
        )
    return (
        f"sampling is truncated or reweighted ({found}): tokens are not drawn from the policy that is trained, and "
        "importance weights relative to the sampler are off by the share that it drops; remove these options and, if "
        "the text is too random, lower the temperature, which log-probs follow"
    )
