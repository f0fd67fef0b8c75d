"""The configuration of a training run: one recipe plus `key=value` overrides, validated strictly."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bandpo.tasks import SHAPING, TASKS, AnyTask, Shaping, make_shaping
from bandpo.words import nearest

if TYPE_CHECKING:
    from bandpo.core.rules import ClipRule

RECIPES = resources.files("bandpo") / "recipes"


Dtype = Literal["float32", "bfloat16", "float16"]
MODEL_DTYPES: tuple[str, ...] = get_args(Dtype)
TRL_RULE = "trl"  # no clip rule of ours: TRL's own loss as `train` describes it


class Strict(BaseModel):
    """Settings that refuse unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ScratchConfig(Strict):
    """A small Llama with random weights and one token a character.

    `initializer_range` is the standard deviation of the weights at first. None leaves it to transformers (0.02),
    which is little for a narrow model: with about 1/sqrt(hidden_size) it learns faster.
    """

    hidden_size: int = Field(default=128, ge=8)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    positions: int = Field(default=256, ge=16)
    initializer_range: float | None = Field(default=None, gt=0)


class ModelConfig(Strict):
    """Which model: `path` (hub name, local directory, GGUF file or package:NAME/FILE), or `scratch`."""

    path: str | None = None
    scratch: ScratchConfig | None = None
    dtype: Dtype = "float32"

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.path is None) == (self.scratch is None):
            raise ValueError("give exactly one of model.path and model.scratch")
        return self


class LoraConfig(Strict):
    """Low-rank adapters (PEFT) on the named modules."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str | list[str] = "all-linear"


class WarmupConfig(Strict):
    """Supervised training on the task's solutions before reinforcement learning."""

    steps: int = Field(default=200, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)


class EvalConfig(Strict):
    """Evaluation on held-out problems before and after training."""

    samples: int = Field(default=4, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    greedy: bool = True
    batch_size: int = Field(default=64, ge=1)


ALARMS = (
    "entropy_collapse",
    "entropy_explosion",
    "nothing_clips",
    "cap_binds",
    "sampler_drift",
    "zero_variance",
    "truncated",
)


class AlarmConfig(Strict):
    """When the alarms of docs/alarms.md fire, and which of them stop the run.

    Attributes:
        window: Log lines over which entropy, ratios and the cap are watched; the first as many are the start.
        rollouts: Rollouts over which groups, lengths and the sampler are watched.
        clear: An alarm clears once its figure has come back to this share of its limit.
        entropy_low: Entropy collapses below this many nats a token and this share of the start.
        entropy_low_share: See `entropy_low`.
        entropy_high: Entropy explodes above this many nats a token and this multiple of the start.
        entropy_high_factor: See `entropy_high`.
        cap_fraction: Share of tokens beyond the rule's cap.
        sampler_difference: Mean |log-prob of the trainer - log-prob of the sampler| in nats.
        zero_variance: Share of groups whose rewards are all equal, in each of the rollouts.
        truncated: Share of completions that ran into the length limit, in each of the rollouts.
        stop: Whether an alarm stops the run, or the names of those that do.
    """

    window: int = Field(default=8, ge=1)
    rollouts: int = Field(default=4, ge=1)
    clear: float = Field(default=0.8, gt=0, le=1)
    entropy_low: float = Field(default=0.1, gt=0)
    entropy_low_share: float = Field(default=0.25, gt=0)
    entropy_high: float = Field(default=1.0, gt=0)
    entropy_high_factor: float = Field(default=3.0, gt=0)
    cap_fraction: float = Field(default=0.01, gt=0)
    sampler_difference: float = Field(default=0.1, gt=0)
    zero_variance: float = Field(default=0.99, gt=0)
    truncated: float = Field(default=0.95, gt=0)
    stop: bool | list[str] = False

    @field_validator("stop", mode="before")
    @classmethod
    def _known_alarms(cls, value: Any) -> Any:
        if not isinstance(value, bool | list):
            raise ValueError(f"{value!r} is neither true, false nor a list of alarms: {', '.join(ALARMS)}")
        for name in value if isinstance(value, list) else []:
            if name not in ALARMS:
                raise ValueError(f"unknown alarm {name!r}{nearest(name, ALARMS)}; known: {', '.join(ALARMS)}")
        return value

    def stops(self, name: str) -> bool:
        return self.stop if isinstance(self.stop, bool) else name in self.stop


class RecordConfig(Strict):
    """What a run keeps of single tokens: at so many updates, spread evenly, a micro-batch (docs/report.md)."""

    batches: int = Field(default=4, ge=1, le=32)


class RunConfig(Strict):
    """Everything that determines a run.

    Attributes:
        description: One line for `bandpo recipes`.
        rule: `name` (band, clip, dcpo, none) and that rule's options; or trl, which leaves the loss to TRL: CISPO,
            GSPO and SAPO are then settings of `train` (loss_type, importance_sampling_level, epsilon, ...).
        shaping: Additional training rewards, each with a `name`, a `weight` and that reward's options.
        train: Any field of BandGRPOConfig, TRL's GRPOConfig included, except those set elsewhere here.
        lora: Adapters, or null to train all weights.
        warmup: Supervised warm-up, or null.
        eval: Evaluation before and after training, or null.
        alarms: When a run that goes wrong says so, see docs/alarms.md.
        record: Per-token records of some updates, or null.
    """

    description: str = ""
    model: ModelConfig
    task: AnyTask
    shaping: list[dict[str, Any]] = Field(default_factory=list)
    rule: dict[str, Any] = Field(default_factory=lambda: {"name": "band"})
    train: dict[str, Any] = Field(default_factory=dict)
    lora: LoraConfig | None = None
    warmup: WarmupConfig | None = None
    eval: EvalConfig | None = EvalConfig()
    alarms: AlarmConfig = AlarmConfig()
    record: RecordConfig | None = None
    seed: int = 0

    @field_validator("rule")
    @classmethod
    def _valid_rule(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "name" not in value:
            raise ValueError("rule has no name")
        if value["name"] != TRL_RULE:
            from bandpo.core.registry import make_rule  # imports PyTorch, which a list of recipes does without

            make_rule(**value)
        elif len(value) > 1:
            option = next(key for key in value if key != "name")
            raise ValueError(
                f"rule {TRL_RULE!r} has no option {option!r}: TRL's loss is set by train.loss_type and others"
            )
        return value

    @model_validator(mode="after")
    def _valid_shaping(self) -> RunConfig:
        if self.shaping:  # no limit given: only TRL knows its default, and the job checks again
            self.shaping_rewards(self.train.get("max_completion_length") or sys.maxsize)
        return self

    def shaping_rewards(self, max_completion_length: int) -> list[Shaping]:
        """The additional training rewards; `max_completion_length` in tokens."""
        for i, one in enumerate(self.shaping):
            if "name" not in one:
                raise ValueError(f"shaping.{i} has no name; known: {', '.join(SHAPING)}, or module:function")
        return [make_shaping(max_completion_length, **one) for one in self.shaping]

    def clip_rule(self) -> ClipRule | None:
        """The rule that bounds the ratio; None where TRL's own loss is left alone."""
        return clip_rule_of(self.rule)


def clip_rule_of(settings: Mapping[str, Any]) -> ClipRule | None:
    """The clip rule that `rule` of a recipe describes; None where TRL's own loss is left alone."""
    from bandpo.core.registry import make_rule

    return None if settings["name"] == TRL_RULE else make_rule(**settings)


def recipe_names() -> list[str]:
    return yaml_names(RECIPES)


def yaml_names(folder: Traversable) -> list[str]:
    """Names of the .yaml files that the package brings in a folder."""
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def find_yaml(kind: str, name: str, folder: Traversable) -> tuple[str, Path | None]:
    """The text of a recipe or study by name, or by the path of a .yaml file, and that path.

    Args:
        kind: What it is, for messages.
        folder: Where the package keeps those that have a name.

    Raises:
        ValueError: If there is none; the nearest name is given.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ValueError(f"{kind} file {name!r} does not exist")
        return path.read_text(encoding="utf-8"), path
    known = yaml_names(folder)
    if name not in known:
        plural = folder.name  # recipes, studies
        raise ValueError(
            f"unknown {kind} {name!r}{nearest(name, known)}; known {plural}: {', '.join(known)} "
            "(or the path of a .yaml file)"
        )
    return (folder / f"{name}.yaml").read_text(encoding="utf-8"), None


def parse_mapping(text: str, what: str) -> dict[str, Any]:
    """A YAML mapping; ValueError that calls the text `what` if it is none."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{what} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{what} is a {type(data).__name__}, allowed is a mapping of keys to values")
    return data


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as (dotted key, value) pairs."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def load_config(recipe: str, overrides: list[str] | None = None) -> RunConfig:
    """Read a recipe by name or path, apply `key=value` overrides, validate.

    Raises:
        ValueError: For an unknown recipe, key or value; the message names the key and the nearest valid one.
    """
    data = read_recipe(recipe)
    # A new rule or task starts from its own defaults, so its name must be known before its options.
    for override in sorted(overrides or [], key=lambda o: not o.partition("=")[0].strip().endswith(".name")):
        apply_override(data, override)
    return validate_config(data)


def read_recipe(recipe: str, _heirs: tuple[str, ...] = ()) -> dict[str, Any]:
    """The recipe with everything it inherits, not yet validated.

    A recipe with `base: NAME` (a recipe by name, or a .yaml file beside it) holds only what differs: mappings
    are merged, lists and values replaced.

    Raises:
        ValueError: For a recipe that does not exist, is not a mapping, or inherits from itself.
    """
    text, path = find_yaml("recipe", recipe, RECIPES)
    if path is not None:
        recipe = str(path.resolve())
    data = parse_mapping(text, f"recipe {recipe!r}")
    base = data.pop("base", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise ValueError(
            f"recipe {recipe!r}: base is {base!r}, allowed is a recipe's name or the path of a .yaml file"
        )
    if base.endswith((".yaml", ".yml")):
        base = str((Path(recipe).parent / Path(base).expanduser()).resolve())
    if base in (recipe, *_heirs):
        raise ValueError(f"recipe {recipe!r} inherits from itself: {' <- '.join((base, recipe, *_heirs))}")
    return merge(read_recipe(base, (recipe, *_heirs)), data)


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, mapping by mapping; a mapping of another `name` replaces the base's."""
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


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in nested data; the value is read as YAML, so 3e-4, null and [1, 2] mean what they say."""
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
    value = parse_value(text)
    if last == "name" and node.get("name", value) != value:
        node.clear()  # the options of another rule or task
    node[last] = value


def parse_value(text: str) -> Any:
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


def validate_config(data: dict[str, Any]) -> RunConfig:
    """Validate, turning the first problem into one sentence."""
    try:
        return RunConfig.model_validate(_numbers(data))
    except ValidationError as error:
        raise ValueError(_explain(error, data)) from error


def _numbers(node: Any) -> Any:
    """Numbers in exponent notation, which YAML 1.1 leaves as strings."""
    if isinstance(node, dict):
        return {key: _numbers(value) for key, value in node.items()}
    if isinstance(node, str) and node[:1] in "+-.0123456789" and "e" in node.lower():
        return parse_value(node)
    return node


def _explain(error: ValidationError, data: dict[str, Any]) -> str:
    # A misspelt key is the reason why another is missing.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    loc = first["loc"]
    # Behind "task" and behind a part of a mixture, pydantic names the task that was chosen.
    chosen = [i for i, part in enumerate(loc) if part in TASKS and (loc[i - 1] == "task" or type(loc[i - 1]) is int)]
    location = [str(part) for i, part in enumerate(loc) if i not in chosen]
    kind, key = first["type"], ".".join(location)
    if kind == "extra_forbidden":
        known = _known_keys([str(part) for part in (loc[chosen[-1] :] if chosen else loc)[:-1]])
        return f"unknown key {key!r}{nearest(location[-1], known)}; allowed here: {', '.join(known)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        known = [name for name in TASKS if name != "mixture" or key == "task"]
        if kind == "union_tag_not_found":
            return f"{key} has no name; known tasks: {', '.join(known)}"
        where, given = "" if key == "task" else f" in {key}", first["ctx"]["tag"]
        return f"unknown task {given!r}{where}{nearest(given, known)}; known tasks: {', '.join(known)}"
    if kind == "missing":
        return f"key {key!r} is missing" + ("" if len(chosen) > 1 else f"; give it as {key}=VALUE")
    message = first["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return message if not key or key in ("rule", "model") else f"{key}: {message}"
    return f"{key} is {first['input']!r}: {message[0].lower()}{message[1:]}"


def _known_keys(location: list[str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for part in location:
        if part in TASKS:
            return list(TASKS[part].model_fields)
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
