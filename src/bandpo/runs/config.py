"""The configuration of a training run: one recipe plus `key=value` overrides, validated strictly."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from bandpo.evaluation.sampling import check_cuts
from bandpo.settings import (
    Strict,
    apply_overrides,
    explain,
    find_yaml,
    merge,
    parse_mapping,
    read_numbers,
    yaml_names,
)
from bandpo.tasks import SHAPING, AnyTask, Problem, Shaping, draw_problems, make_shaping
from bandpo.tasks.reading import absolute
from bandpo.training.alarms import AlarmConfig

if TYPE_CHECKING:
    from bandpo.core.rules import ClipRule

RECIPES = resources.files("bandpo") / "recipes"

Dtype = Literal["float32", "bfloat16", "float16"]
MODEL_DTYPES: tuple[str, ...] = get_args(Dtype)
TRL_RULE = "trl"  # no clip rule of ours: TRL's own loss as `train` describes it


class ScratchConfig(Strict):
    """A small Llama with random weights and one token per character.

    `initializer_range` is the standard deviation of the initial weights. None leaves it to transformers (0.02),
    which is small for a narrow model: with about 1/sqrt(hidden_size) it learns faster.
    """

    hidden_size: int = Field(default=128, ge=8)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    positions: int = Field(default=256, ge=16)
    initializer_range: float | None = Field(default=None, gt=0)


class ModelConfig(Strict):
    """Which model: `path` (hub name, local directory, GGUF file or package:NAME/FILE), or `scratch`.

    A local path becomes absolute, so that a run resumes from any directory.
    """

    path: str | None = None
    scratch: ScratchConfig | None = None
    dtype: Dtype = "float32"

    @field_validator("path")
    @classmethod
    def _absolute_path(cls, value: str | None) -> str | None:
        return None if value is None else absolute(value)

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
    """Evaluation on held-out problems before and after training.

    Attributes:
        cuts: Token positions at which completions are cut, for the entropy of each part.
    """

    samples: int = Field(default=4, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    greedy: bool = True
    batch_size: int = Field(default=64, ge=1)
    cuts: Annotated[tuple[int, ...] | None, AfterValidator(check_cuts)] = None


class RecordConfig(Strict):
    """Per-token recording: one micro-batch at each of `batches` updates, spread evenly (docs/report.md)."""

    batches: int = Field(default=4, ge=1, le=32)


@dataclass(frozen=True)
class RuleSetting:
    """A rule as given, and the object built from it.

    Attributes:
        settings: `name` and the given options, as in a dump of the configuration.
    """

    settings: Mapping[str, Any]

    @cached_property
    def clip_rule(self) -> ClipRule | None:
        """The rule that bounds the ratio, before any `control` has moved it; None if TRL's own loss is used.

        Raises:
            ValueError: For an unknown name or option, or a bad value.
        """
        if self.settings["name"] == TRL_RULE:
            return None
        from bandpo.core.control import make_controlled  # imports PyTorch, which listing recipes does not need

        return make_controlled(**self.settings)[0]


def parse_rule(value: RuleSetting | Mapping[str, Any]) -> RuleSetting:
    """The rule from a recipe's `rule`; its name and options are checked when it is built.

    Raises:
        ValueError: If it is not a mapping or has no name, or gives options to TRL's own loss.
    """
    if isinstance(value, RuleSetting):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"rule is {value!r}; allowed: a mapping such as {{name: band, radius: 0.05}}")
    if "name" not in value:
        raise ValueError("rule has no name")
    if value["name"] == TRL_RULE and len(value) > 1:
        option = next(key for key in value if key != "name")
        raise ValueError(
            f"rule {TRL_RULE!r} has no option {option!r}: TRL's loss is set by train.loss_type and others"
        )
    return RuleSetting(dict(value))


def clip_rule_of(settings: Mapping[str, Any]) -> ClipRule | None:
    """The clip rule that `rule` in the config.yaml of a run describes; None if TRL's own loss was used."""
    return parse_rule(settings).clip_rule


def _stated(rule: RuleSetting) -> dict[str, Any]:
    return dict(rule.settings)


if TYPE_CHECKING:
    Rule = RuleSetting
else:  # pydantic does not look into the object
    Rule = Annotated[Any, PlainValidator(parse_rule), PlainSerializer(_stated)]


class RunConfig(Strict):
    """Everything that determines a run.

    Attributes:
        description: One line for `bandpo recipes`.
        rule: `name` (a clip rule, or your own as module:Class) and that rule's options; or trl, which uses TRL's
            own loss: CISPO, GSPO and SAPO are then settings of `train` (loss_type, importance_sampling_level,
            epsilon, ...).
        shaping: Additional training rewards, each with a `name`, a `weight` and that reward's options.
        train: Any field of BandGRPOConfig, TRL's GRPOConfig included, except those set elsewhere here.
        lora: Adapters, or null to train all weights.
        warmup: Supervised warm-up, or null.
        eval: Evaluation before and after training, or null.
        alarms: Limits of the early warnings, see docs/alarms.md.
        record: Per-token records of some updates, or null.
        sampler: What draws the rollouts: transformers, or vLLM in the trainer's own process (TRL's colocate mode).
    """

    description: str = ""
    model: ModelConfig
    task: AnyTask
    shaping: list[dict[str, Any]] = Field(default_factory=list)
    rule: Rule = Field(default_factory=lambda: parse_rule({"name": "band"}))
    train: dict[str, Any] = Field(default_factory=dict)
    lora: LoraConfig | None = None
    warmup: WarmupConfig | None = None
    eval: EvalConfig | None = EvalConfig()
    alarms: AlarmConfig = AlarmConfig()
    record: RecordConfig | None = None
    sampler: Literal["transformers", "vllm"] = "transformers"
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _read_use_vllm(cls, data: Any) -> Any:
        """TRL's own switch is read as `sampler`."""
        train = data.get("train") if isinstance(data, dict) else None
        if not isinstance(train, dict) or not isinstance(train.get("use_vllm"), bool):
            return data
        said = "vllm" if train["use_vllm"] else "transformers"
        if data.get("sampler", said) != said:
            raise ValueError(
                f"sampler is {data['sampler']!r} and train.use_vllm is {str(train['use_vllm']).lower()}; "
                "set only sampler"
            )
        rest = {key: value for key, value in train.items() if key != "use_vllm"}
        return {**data, "sampler": said, "train": rest}

    @model_validator(mode="after")
    def _valid_rule(self) -> RunConfig:
        # After the fields, so that a misspelled key is reported without importing PyTorch.
        try:
            self.rule.clip_rule  # noqa: B018
        except ValueError as error:
            raise ValueError(str(error) if str(error).startswith("rule") else f"rule: {error}") from error
        return self

    @model_validator(mode="after")
    def _valid_train(self) -> RunConfig:
        if self.train:
            from bandpo.runs.train_settings import check_train_settings, config_class  # TRL, which takes seconds

            self.train.update(check_train_settings(self.train, config_class(self)))
        return self

    @model_validator(mode="after")
    def _valid_shaping(self) -> RunConfig:
        if self.shaping:  # without a limit only TRL knows its default, and the job checks again
            self.shaping_rewards(self.train.get("max_completion_length") or sys.maxsize)
        return self

    def problems(self) -> tuple[list[Problem], list[Problem]]:
        """Training problems and held-out problems.

        Raises:
            ValueError: If the data cannot be read or has no problems.
        """
        return draw_problems(self.task)

    def shaping_rewards(self, max_completion_length: int) -> list[Shaping]:
        """The additional training rewards; `max_completion_length` in tokens."""
        for i, one in enumerate(self.shaping):
            if "name" not in one:
                raise ValueError(f"shaping.{i} has no name; known: {', '.join(SHAPING)}, or module:function")
        return [make_shaping(max_completion_length, **one) for one in self.shaping]


def recipe_names() -> list[str]:
    return yaml_names(RECIPES)


def load_config(recipe: str, overrides: list[str] | None = None) -> RunConfig:
    """Read a recipe by name or path, apply `key=value` overrides, validate.

    Raises:
        ValueError: For an unknown recipe, key or value; the message names the key and the nearest valid one.
    """
    data = read_recipe(recipe)
    apply_overrides(data, overrides or [], RunConfig)
    return validate_config(data)


def read_recipe(recipe: str, _heirs: tuple[str, ...] = ()) -> dict[str, Any]:
    """The recipe with everything it inherits, not yet validated.

    A recipe with `base: NAME` (a recipe by name, or a .yaml file next to it) holds only what differs: mappings
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
        raise ValueError(f"recipe {recipe!r}: base is {base!r}; allowed: a recipe's name or the path of a .yaml file")
    if base.endswith((".yaml", ".yml")):
        base = str((Path(recipe).parent / Path(base).expanduser()).resolve())
    if base in (recipe, *_heirs):
        raise ValueError(f"recipe {recipe!r} inherits from itself: {' <- '.join((base, recipe, *_heirs))}")
    return merge(read_recipe(base, (recipe, *_heirs)), data)


def validate_config(data: dict[str, Any]) -> RunConfig:
    """Validate, turning the first problem into one sentence."""
    try:
        return RunConfig.model_validate(read_numbers(data, RunConfig))
    except ValidationError as error:
        raise ValueError(explain(error, RunConfig, hint=True)) from error
