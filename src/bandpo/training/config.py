"""`BandGRPOConfig`: TRL's GRPOConfig plus one setting for the clip rule."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from bandpo.core.control import make_controlled
from bandpo.core.rollouts import outlook
from bandpo.settings import parse_value, read_numbers
from bandpo.words import nearest

ANCHORS = ("old", "sampler")
DEFAULT_RULE = "band"


@dataclass
class BandGRPOConfig(GRPOConfig):
    """TRL's GRPOConfig plus the clip rule.

    Args:
        rule: The clip rule as a mapping of `name` and options, the same as in every other framework, for example
            {"name": "band", "radius": 0.05, "divergence": "kl"}; `name` is a rule's name or your own as
            "module:Class". Its option "control", {"metric": "entropy", "target": 0.5}, holds a target.
            A string is read as YAML or JSON, so `--rule '{"name": "band"}'` works on the command
            line of HfArgumentParser and TrlParser. None is Band with its defaults.
        anchor: Policy on which the trust region is centered: "old" (the trainer's own log-probs at the time of the
            rollout, as in the paper) or "sampler" (the log-probs reported by vLLM, as DPPO does).
        dynamic_sampling: Maximum number of rounds in which groups whose rewards are all equal are replaced by groups
            of other prompts (DAPO); 0 keeps them. Recipes support it; your own script mixes
            `bandpo.training.dynamic_sampling.DynamicSampling` into its trainer.

    Raises:
        ValueError: For an unknown rule or option, a bad value, or `epsilon`, which a clip rule would ignore.
    """

    rule: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": 'clip rule, name and options as YAML or JSON, e.g. {"name": "band", "radius": 0.05}'},
    )
    anchor: str = field(default="old", metadata={"help": "old (recomputed) or sampler (vLLM's log-probs)"})
    dynamic_sampling: int = field(
        default=0, metadata={"help": "maximum number of rounds that replace groups of equal reward"}
    )

    # Names of version 0.1; the next release removes them and `_translate_old_names`.
    clip_rule: str | None = field(default=None, metadata={"help": "deprecated, use rule"})
    band_radius: float | None = field(default=None, metadata={"help": "deprecated, use rule"})
    band_divergence: str | None = field(default=None, metadata={"help": "deprecated, use rule"})
    band_cap: float | None = field(default=None, metadata={"help": "deprecated, use rule"})
    band_floor: float | None = field(default=None, metadata={"help": "deprecated, use rule"})

    def __post_init__(self) -> None:
        _translate_old_names(self)
        self.rule = rule_mapping(self.rule)
        make_controlled(**self.rule)
        _refuse_epsilon(self)
        super().__post_init__()
        if self.anchor not in ANCHORS:
            raise ValueError(
                f"unknown anchor {self.anchor!r}{nearest(self.anchor, ANCHORS)}; known: {', '.join(ANCHORS)}"
            )


def rule_mapping(value: Any) -> dict[str, Any]:
    """The setting `rule` as a mapping: `name` and options.

    Raises:
        ValueError: If it is neither a mapping nor the YAML or JSON of one, or holds an object that cannot be logged.
    """
    given = parse_value(value) if isinstance(value, str) else {} if value is None else value
    if not isinstance(given, Mapping):
        raise ValueError(
            f'rule is {value!r}; allowed: a mapping (or its YAML or JSON) such as {{"name": "band", "radius": 0.05}}'
        )
    mapping = {"name": DEFAULT_RULE, **given}
    if isinstance(value, str):
        mapping = read_numbers(mapping)
    try:
        json.dumps(mapping)
    except TypeError as error:
        raise ValueError(
            f"rule is {value!r}, which cannot be logged ({error}); pass BandGRPOTrainer(rule=...)"
        ) from error
    return mapping


def _refuse_epsilon(config: BandGRPOConfig) -> None:
    defaults = GRPOConfig.__dataclass_fields__
    ignored = [n for n in ("epsilon", "epsilon_high") if getattr(config, n) != defaults[n].default]
    if ignored:
        given = ", ".join(f"{name}={getattr(config, name)!r}" for name in ignored)
        raise ValueError(
            f"{given} would be ignored by rule={config.rule!r}; use rule={_clip(config)!r} for TRL's clip"
        )


def _clip(config: BandGRPOConfig) -> dict[str, Any]:
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    return {"name": "clip", "low": config.epsilon, "high": high}


def _translate_old_names(config: BandGRPOConfig) -> None:
    """Build `rule` from the names of version 0.1, with a warning that shows the mapping to use instead.

    Raises:
        ValueError: If `rule` is given as well.
    """
    old = ("clip_rule", "band_radius", "band_divergence", "band_cap", "band_floor")
    given = {name: getattr(config, name) for name in old if getattr(config, name) is not None}
    if not given:
        return
    shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
    if config.rule is not None:
        raise ValueError(f"{shown} and rule={config.rule!r} are both given; set only rule")
    if given.get("clip_rule") == "clip":
        mapping = _clip(config)
        for name in ("epsilon", "epsilon_high"):
            setattr(config, name, GRPOConfig.__dataclass_fields__[name].default)
    else:
        mapping = {"name": given.get("clip_rule", DEFAULT_RULE)}
    mapping |= {name.removeprefix("band_"): value for name, value in given.items() if name != "clip_rule"}
    warnings.warn(  # at the line that makes the configuration
        f"{shown}: deprecated, to be removed in the next release; use rule={mapping!r}",
        DeprecationWarning,
        stacklevel=4,
    )
    config.rule = mapping
    for name in given:
        setattr(config, name, None)


def micro_batches_per_rollout(args: GRPOConfig) -> int:
    """Forward-backward passes between one generation and the next."""
    return (args.steps_per_generation or 1) * args.num_iterations


def can_clip(args: GRPOConfig) -> bool:
    """Whether any ratio can leave 1 under this batch layout."""
    updates_apart = args.gradient_accumulation_steps % micro_batches_per_rollout(args) != 0
    return updates_apart or getattr(args, "anchor", "old") == "sampler"


def clip_outlook(args: GRPOConfig) -> str:
    """How many updates follow each rollout, and whether a clip rule can act on them, as one sentence."""
    updates = micro_batches_per_rollout(args) / args.gradient_accumulation_steps
    return outlook(updates, can_clip(args), getattr(args, "anchor", "old") == "sampler")
