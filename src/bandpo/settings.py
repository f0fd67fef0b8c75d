"""Settings in YAML: reading, overriding, merging, and validation errors as one sentence."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from bandpo.words import nearest


class Strict(BaseModel):
    """Settings that refuse unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def yaml_names(folder: Traversable) -> list[str]:
    """Names of the package's .yaml files in a folder."""
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def find_yaml(kind: str, name: str, folder: Traversable) -> tuple[str, Path | None]:
    """The text of a recipe or study by name, or by the path of a .yaml file, and that path.

    Args:
        kind: What it is, for messages.
        folder: Where the package keeps the named ones.

    Raises:
        ValueError: If there is none; names the nearest one.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ValueError(f"{kind} file {name!r} {'is a directory' if path.is_dir() else 'does not exist'}")
        return path.read_text(encoding="utf-8"), path
    known = yaml_names(folder)
    if name not in known:
        plural = folder.name  # recipes, studies
        if Path(name).is_dir():
            raise ValueError(
                f"{kind} {name!r} is a directory without config.yaml; allowed: a .yaml file, or a name: "
                f"{', '.join(known)}"
            )
        raise ValueError(
            f"unknown {kind} {name!r}{nearest(name, known)}; known {plural}: {', '.join(known)} "
            "(or the path of a .yaml file)"
        )
    return (folder / f"{name}.yaml").read_text(encoding="utf-8"), None


def parse_mapping(text: str, what: str) -> dict[str, Any]:
    """A YAML (or JSON) mapping.

    Args:
        what: What the text is, for messages.

    Raises:
        ValueError: If the text is not valid YAML, or not a mapping.
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{what} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{what} is a {type(data).__name__}; allowed: a mapping of keys to values")
    return data


def parse_value(text: str) -> Any:
    """A value as YAML reads it, with numbers in exponent notation as numbers.

    Raises:
        ValueError: If the text is not valid YAML.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"value {text!r} is not valid YAML: {' '.join(str(error).split())}") from error
    if isinstance(value, str):
        try:  # YAML 1.1 reads 3e-4 as a string
            return float(value)
        except ValueError:
            return value
    return value


_EXPONENT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][+-]?[0-9]+")


def read_numbers(node: Any, model: type[BaseModel] | None = None, keys: tuple[str, ...] = ()) -> Any:
    """Nested settings with numbers in exponent notation, which YAML 1.1 leaves as strings, as numbers.

    Args:
        model: The model of the settings; values whose type is a string stay strings.
        keys: Where in the model `node` is.
    """
    if isinstance(node, dict):
        return {key: read_numbers(value, model, (*keys, str(key))) for key, value in node.items()}
    if isinstance(node, str) and _EXPONENT.fullmatch(node) and str not in _types(model, keys):
        return float(node)
    return node


def _types(model: type[BaseModel] | None, keys: Sequence[str]) -> list[Any]:
    """The alternatives of the type that a model has at nested keys; empty if unknown."""
    here: list[Any] = [] if model is None else [model]
    for key in keys:
        models = [o for a in here for o in _options(a) if isinstance(o, type) and issubclass(o, BaseModel)]
        here = [m.model_fields[key].annotation for m in models if key in m.model_fields]
    return [option for annotation in here for option in _options(annotation)]


def read_override(text: str, kinds: Sequence[Any]) -> Any:
    """A value from the command line as a setting of one of these types; YAML, unless a string is expected.

    A string is taken literally, or as YAML if it is quoted, so that "\\n" is a newline. If the types are
    unknown, only braces and brackets make a mapping or a list: 'You are: helpful' is a string.

    Raises:
        ValueError: If YAML is expected and the text is not valid YAML.
    """
    written = text.strip()
    if str not in kinds:
        value = parse_value(text)
        is_text = not kinds and isinstance(value, (dict, list)) and written[:1] not in ("{", "[")
        return text if is_text else value
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    quoted = isinstance(value, str) and written[:1] in ("'", '"') and written[:1] == written[-1:]
    null = value is None and types.NoneType in kinds
    listed = isinstance(value, list) and any(get_origin(kind) in (list, tuple) for kind in kinds)
    return value if quoted or null or listed else text


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as (dotted key, value) pairs."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` updated with `changes`, mapping by mapping; a mapping with another `name` replaces the base's."""
    merged = dict(base)
    for key, value in changes.items():
        below = base.get(key)
        if (
            isinstance(value, dict)
            and isinstance(below, dict)
            and value.get("name", below.get("name")) == below.get("name")
        ):
            value = merge(below, value)
        merged[key] = value
    return merged


def apply_overrides(data: dict[str, Any], overrides: Sequence[str], model: type[BaseModel] | None = None) -> None:
    """Set each `a.b.c=value` in nested data.

    A new rule or task starts from its own defaults, so names are set before options.
    """
    for override in sorted(overrides, key=lambda o: not o.partition("=")[0].strip().endswith(".name")):
        apply_override(data, override, model)


def apply_override(data: dict[str, Any], override: str, model: type[BaseModel] | None = None) -> None:
    """Set `a.b.c=value` in nested data; the value is read as YAML, so 3e-4, null and [1, 2] work.

    Args:
        model: The model of the data, which shows where a string is expected.

    Raises:
        ValueError: If the override is not of this form.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"override {override!r} is not of the form key=value, e.g. rule.radius=0.1")
    *parents, last = key.strip().split(".")
    node = data
    for parent in parents:
        child = node.get(parent)
        if not isinstance(child, dict):
            child = node[parent] = {}
        node = child
    try:
        value = read_override(text, _types(model, [*parents, last]))
    except ValueError as error:
        raise ValueError(f"{key.strip()}: {error}") from error
    if last == "name" and node.get("name", value) != value:
        node.clear()  # the options of another rule or task
    node[last] = value


def explain(error: ValidationError, model: type[BaseModel], hint: bool = False) -> str:
    """The first problem of a validation as one sentence that names the key, the value and what is allowed.

    Args:
        error: The error from pydantic.
        model: The model that was validated.
        hint: Also show how to give a missing key on the command line.
    """
    # A misspelled key explains why another is missing, so it comes first.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    kind = first["type"]
    keys, models = _follow(model, first["loc"])
    key = ".".join(keys)
    message = first["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        known = list(dict.fromkeys(name for m in models for name in m.model_fields))
        return f"unknown key {key!r}{nearest(keys[-1], known)}; allowed here: {', '.join(known)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        noun = keys[0]
        known = [tag for m in models for tag in _tags(m)]
        if kind == "union_tag_not_found":
            return f"{key} has no name; known {noun}s: {', '.join(known)}"
        where, given = "" if key == noun else f" in {key}", first["ctx"]["tag"]
        return f"unknown {noun} {given!r}{where}{nearest(given, known)}; known {noun}s: {', '.join(known)}"
    if kind == "missing":
        in_list = any(isinstance(part, int) for part in first["loc"])
        return f"key {key!r} is missing" + (f"; give it as {key}=VALUE" if hint and not in_list else "")
    if kind == "value_error":
        return message if not key or message.startswith(keys[0]) else f"{key}: {message}"
    return f"{key} is {first['input']!r}: {message[0].lower()}{message[1:]}"


def _follow(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[list[str], list[type[BaseModel]]]:
    """The keys of a location, without pydantic's names of alternatives, and the models in which the last key is
    looked up (or, if it ends at a union of models, those)."""
    keys: list[str] = []
    here = models = [model]
    for part in loc:
        options = [option for annotation in here for option in _options(annotation)]
        models = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        tagged = [m for m in models if part in _tags(m)]
        if isinstance(part, int):
            keys.append(str(part))
            here = [item for o in options for item in get_args(o) if item is not Ellipsis]
        elif tagged:
            here = models = tagged
        elif any(part in m.model_fields for m in models):
            keys.append(part)
            # A field's metadata may hold the union of models: it is part of the annotation.
            here = [m.model_fields[part].annotation for m in models if part in m.model_fields]  # type: ignore[misc]
        elif models:  # none of them has the key
            keys.append(part)
            return keys, models
        elif any(get_origin(o) in (dict, Mapping) for o in options):
            keys.append(part)
            here = [get_args(o)[-1] for o in options if get_args(o)]
    options = [option for annotation in here for option in _options(annotation)]
    choice = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
    return keys, choice or models


def _options(annotation: Any) -> list[Any]:
    """The alternatives of a union, through Annotated and aliases."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _options(get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [option for one in get_args(annotation) for option in _options(one)]
    return [annotation]


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    """The names that choose this model in a union."""
    field = model.model_fields.get("name")
    return get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()
