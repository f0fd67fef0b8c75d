"""The part `train` of a recipe, checked before anything is loaded: its keys, and the types of its values."""

from __future__ import annotations

import math
from dataclasses import fields
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter
from trl import GRPOConfig

from bandpo.training.config import BandGRPOConfig
from bandpo.words import nearest

# Settings of the trainer that other parts of a recipe, or the run directory, determine.
SET_ELSEWHERE = {
    "output_dir": "--output",
    "seed": "seed",
    "rule": "rule",
    "epsilon": "rule.low",
    "epsilon_high": "rule.high",
    "reward_weights": "shaping",
}
NUMBERS = {int, float, bool, type(None)}


def config_class(config: Any) -> type[GRPOConfig]:
    """TRL's configuration class if a RunConfig uses TRL's own loss, else ours."""
    return GRPOConfig if config.rule.clip_rule is None else BandGRPOConfig


def check_train_settings(settings: dict[str, Any], config_class: type[GRPOConfig] = BandGRPOConfig) -> dict[str, Any]:
    """Refuse keys that `config_class` does not have, or that belong elsewhere in a recipe, and values of other types.

    Returns:
        The settings with numbers in the field's type: 2.0 and '1e1' as 2 and 10 where it is an integer.

    Raises:
        ValueError: For such a key or value, or a value with which a run could not be resumed.
    """
    elsewhere = {
        key: home
        for key, home in SET_ELSEWHERE.items()
        if config_class is BandGRPOConfig or not home.startswith("rule")
    }
    known = [f.name for f in fields(config_class) if f.init and f.name not in elsewhere]
    for key in settings:
        if key in elsewhere:
            raise ValueError(f"train.{key} is set by {elsewhere[key]}; use that instead")
        if key not in known:
            raise ValueError(
                f"unknown key 'train.{key}'{nearest(key, known)}; allowed: any field of TRL's GRPOConfig"
            )
    hints = get_type_hints(config_class)
    checked = {key: _as_typed(key, value, hints[key]) for key, value in settings.items()}
    if checked.get("max_completion_length", 1) is None:
        raise ValueError("train.max_completion_length is null; allowed: an integer >= 1")
    limit = checked.get("save_total_limit")
    if limit is not None and limit < 2:
        raise ValueError(
            f"train.save_total_limit is {limit}; allowed: an integer >= 2, because the last checkpoint is kept until "
            "the next one is complete"
        )
    return checked


def _as_typed(key: str, value: Any, hint: Any) -> Any:
    """A value as its field's type, if that is a number or a boolean; only TRL can check the others.

    Null stays null: some of TRL's fields may be null although their type does not include it.
    """
    options = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
    fits = type(value) in options or (type(value) is int and float in options)
    typed = value
    if value is not None and options <= NUMBERS and not fits:
        try:
            if isinstance(value, bool):
                raise ValueError(value)
            in_text = isinstance(value, str) and bool not in options  # '1e1', if it did not come from a recipe
            typed = TypeAdapter(hint).validate_python(float(value) if in_text else value)
        except ValueError as error:  # includes pydantic's ValidationError
            shown = str(value).lower() if isinstance(value, bool) else repr(value)
            raise ValueError(f"train.{key} is {shown}; allowed: {_names(options)}") from error
    if isinstance(typed, float) and math.isnan(typed):
        raise ValueError(f"train.{key} is nan; allowed: {_names(options)}")
    return typed


def _names(options: set[type]) -> str:
    words = {int: "an integer", float: "a number", bool: "true or false", type(None): "null"}
    return " or ".join(word for kind, word in words.items() if kind in options)
