"""TRL's objects for a recipe: configuration, model, rewards and trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig
from trl.kernels import chunked_logprob

from bandpo.core.tokens import Tokens
from bandpo.models import load_model, scratch_model
from bandpo.runs.callbacks import text_of
from bandpo.runs.config import LoraConfig, RunConfig
from bandpo.runs.run_dir import RunDirectory
from bandpo.runs.train_settings import config_class
from bandpo.tasks import Problem, Shaping, Task
from bandpo.training.durable import Durable, TrainingDivergedError
from bandpo.training.dynamic_sampling import DynamicSampling
from bandpo.training.trainer import BandGRPOTrainer

# Our defaults where they differ from TRL's; a recipe may override them.
TRAIN_DEFAULTS: dict[str, Any] = {
    "logging_steps": 1,
    "report_to": ["tensorboard"],
    "save_steps": 0.25,
    "save_total_limit": 2,
    "disable_tqdm": True,
    "temperature": 1.0,
}
# TRL projects this many tokens onto the vocabulary at a time. Without its CUDA kernel, 8.25 such tiles are alive at
# the peak, so its 4,096 would take several times the logits of a micro-batch; smaller tiles are also faster.
CPU_TILE = 512


class RecipeTrainer(DynamicSampling, BandGRPOTrainer, Durable):
    """The trainer of recipes: BandGRPOTrainer with exact checkpoints, dynamic sampling, and a stop on NaN.

    Raises:
        TrainingDivergedError: When log-probs are NaN, before the update that would spread it.
    """

    def _log_clip_statistics(self, logps: Tensor, tokens: Tokens) -> dict[str, float]:
        metrics = super()._log_clip_statistics(logps, tokens)
        if math.isnan(metrics["divergence"]):
            raise TrainingDivergedError(
                f"NaN log-probabilities at step {self.state.global_step}: the model or its last update "
                f"diverged.{self._last_good()}"
            )
        return metrics

    def _tell(self, advice: str) -> None:
        """The alarm `control_limit` reports it."""


def build_model(config: RunConfig) -> tuple[Any, Any]:
    """The model that the recipe names, and its tokenizer."""
    if config.model.scratch is not None:
        return scratch_model(**config.model.scratch.model_dump(), seed=config.seed)
    assert config.model.path is not None
    return load_model(config.model.path, config.model.dtype)


# Overrides for checking a configuration that is only shown: nothing that depends on this machine.
ANYWHERE: dict[str, Any] = {
    "use_cpu": True,
    "tf32": None,
    "deepspeed": None,
    "fsdp": None,
    "report_to": [],
}


def check_args(config: RunConfig) -> None:
    """Raise ValueError if TRL would refuse the settings on any machine."""
    build_args(config, {**config.train, **ANYWHERE}, RunDirectory(Path()))


def build_args(config: RunConfig, settings: dict[str, Any], run: RunDirectory) -> GRPOConfig:
    """TRL's configuration for this recipe on this machine; it includes the recipe's rule, so that logs show it."""
    machine = {
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }
    on_cpu = not torch.cuda.is_available()
    rule = {} if config.rule.clip_rule is None else {"rule": dict(config.rule.settings)}
    sampler: dict[str, Any] = {"use_vllm": config.sampler == "vllm"}
    if settings.get("anchor") == "sampler":  # TRL's correction would count the same ratio twice
        sampler["vllm_importance_sampling_correction"] = False
    merged = {**TRAIN_DEFAULTS, **(machine if on_cpu else {}), **sampler, **settings, **rule}
    return config_class(config)(output_dir=str(run.checkpoints), seed=config.seed, **merged)


def missing_sampler(args: GRPOConfig) -> str | None:
    """What must be installed before this run can sample, in one sentence."""
    if args.use_vllm and find_spec("vllm") is None:
        return "sampler 'vllm' is not installed: pip install 'trl[vllm]', or choose sampler=transformers"
    return None


def build_trainer(
    config: RunConfig, args: GRPOConfig, model: Any, tokenizer: Any, problems: list[Problem]
) -> Durable:
    """The trainer with data, reward and rule in place; prints nothing."""
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback

    assert args.max_completion_length is not None
    if args.use_cpu:
        chunked_logprob.TOKEN_CHUNK_SIZE = CPU_TILE
    shaping = config.shaping_rewards(args.max_completion_length)
    if shaping:
        args.reward_weights = [1.0, *(one.weight for one in shaping)]
    rows = [{"prompt": config.task.prompt(p, tokenizer), "problem": i} for i, p in enumerate(problems)]
    trainer_class: Any = Durable if config.rule.clip_rule is None else RecipeTrainer
    trainer = trainer_class(
        model=model,
        reward_funcs=[trl_reward(config.task, problems), *map(trl_shaping, shaping)],
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=None if config.lora is None else peft_config(config.lora),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def trl_reward(task: Task, problems: list[Problem]) -> Callable[..., list[float]]:
    """The task's reward in the form that TRL calls; a reward that is not a number stops the run."""

    def reward(
        completions: list[Any], problem: list[int], log_metric: Callable[[str, float], None], **_: Any
    ) -> list[float]:
        texts = [text_of(c) for c in completions]
        scores = task.score([problems[i] for i in problem], texts)
        for text, score in zip(texts, scores, strict=True):
            if not math.isfinite(score.value):
                raise ValueError(f"reward {task.reward!r} is {score.value} for the completion {text!r}")
        log_metric("grading/timed_out", sum(s.timed_out for s in scores) / len(scores))
        return [s.value for s in scores]

    reward.__name__ = task.reward
    return reward


def trl_shaping(shaping: Shaping) -> Callable[..., list[float]]:
    """A shaping reward in the form that TRL calls."""

    def reward(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        return shaping.function([text_of(c) for c in completions], completion_ids)

    reward.__name__ = f"shaping_{shaping.name}"
    return reward


def peft_config(config: LoraConfig) -> Any:
    """The adapters of a recipe as PEFT's configuration."""
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.targets,
        task_type="CAUSAL_LM",
    )
