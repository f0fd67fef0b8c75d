"""The main job: load, evaluate, train, evaluate, report."""

from __future__ import annotations

import json
import math
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bandpo.evaluation import EvaluationResult, evaluate_into
from bandpo.files import write_atomic
from bandpo.progress import make_progress
from bandpo.rules import nearest
from bandpo.tasks import Problem, Task
from bandpo.training.callbacks import ProgressDisplay, RunRecorder, text_of
from bandpo.training.config import LoraConfig, RunConfig, WarmupConfig
from bandpo.training.models import load_model, scratch_model
from bandpo.training.run_dir import RunDirectory
from bandpo.training.trainer import BandGRPOConfig, BandGRPOTrainer, micro_batches_per_rollout

# What differs from TRL's defaults, whatever the recipe says less.
TRAIN_DEFAULTS: dict[str, Any] = {
    "logging_steps": 1,
    "report_to": ["tensorboard"],
    "save_steps": 0.25,
    "save_total_limit": 2,
    "disable_tqdm": True,
    "temperature": 1.0,
}
# Settings of BandGRPOConfig that other parts of a recipe, or the run directory, decide.
SET_ELSEWHERE = {
    "output_dir": "--output",
    "seed": "seed",
    "clip_rule": "rule.name",
    "band_radius": "rule.radius",
    "band_divergence": "rule.divergence",
    "band_cap": "rule.cap",
    "band_floor": "rule.floor",
    "epsilon": "rule.low",
    "epsilon_high": "rule.high",
}


def run_training(
    config: RunConfig, output: Path, console: Console, command: list[str] | None = None
) -> dict[str, Any]:
    """Run a recipe from beginning to end and leave a run directory.

    Returns:
        The summary that is also written to summary.json.

    Raises:
        ValueError: For settings or data that cannot work; the run directory is made only once all is loaded.
    """
    started = time.monotonic()
    train_problems, heldout = config.task.problems()
    train_settings = check_train_settings(config.train)
    RunDirectory.refuse_existing(output)
    model, tokenizer = build_model(config)
    run = RunDirectory.create(output, config.model_dump(mode="json"), command or sys.argv)
    try:
        summary = _run(config, run, train_settings, model, tokenizer, train_problems, heldout, console, started)
    except BaseException as error:
        run.set_status("failed", error=f"{type(error).__name__}: {error}")
        write_atomic(run.path / "error.log", traceback.format_exc())
        raise
    run.set_status("finished")
    return summary


def _run(
    config: RunConfig,
    run: RunDirectory,
    train_settings: dict[str, Any],
    model: Any,
    tokenizer: Any,
    train_problems: list[Problem],
    heldout: list[Problem],
    console: Console,
    started: float,
) -> dict[str, Any]:
    from bandpo.report import write_run_report

    if config.warmup is not None:
        warm_up(model, tokenizer, config.task, train_problems, config.warmup, config.seed, run.path / "warmup")
    args = build_args(config, train_settings, run)
    assert args.max_completion_length is not None
    max_new_tokens = args.max_completion_length
    trainer = build_trainer(config, args, model, tokenizer, train_problems)
    trainer.add_callback(RunRecorder(run, trainer))

    with make_progress(console) as progress:

        def grade(when: str) -> EvaluationResult:
            total = len(heldout) * (config.eval.samples + config.eval.greedy)
            bar = progress.add_task(f"eval {when}", total=total, figures="")
            result = evaluate_into(
                run.evaluation(when),
                trainer.model,
                tokenizer,
                config.task,
                heldout,
                samples=config.eval.samples,
                max_new_tokens=max_new_tokens,
                temperature=config.eval.temperature,
                greedy=config.eval.greedy,
                batch_size=config.eval.batch_size,
                seed=config.seed,
                identity={"when": when, "step": trainer.state.global_step},
                progress=lambda n: progress.advance(bar, n),
            )
            figures = f"success {result.metrics[f'mean@{config.eval.samples}'].mean:.3f}"
            progress.update(bar, figures=figures)
            return result

        before = grade("before")
        trainer.add_callback(ProgressDisplay(progress))
        trainer.train()
        after = grade("after")
    trainer.save_model(str(run.model))
    tokenizer.save_pretrained(run.model)
    summary = {
        "rule": config.rule,
        "steps": trainer.state.global_step,
        "rollouts": math.ceil(
            trainer.state.global_step * args.gradient_accumulation_steps / micro_batches_per_rollout(args)
        ),
        "before": before.as_dict(),
        "after": after.as_dict(),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_atomic(run.summary, json.dumps(summary, indent=2) + "\n")
    write_run_report(run.path)
    return summary


def build_model(config: RunConfig) -> tuple[Any, Any]:
    """The model that the recipe names, and its tokenizer."""
    if config.model.scratch is not None:
        return scratch_model(**config.model.scratch.model_dump(), seed=config.seed)
    assert config.model.path is not None
    return load_model(config.model.path, config.model.dtype)


def check_train_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Refuse keys that BandGRPOConfig does not have, or that belong elsewhere in a recipe."""
    known = [f.name for f in fields(BandGRPOConfig) if f.init and f.name not in SET_ELSEWHERE]
    for key in settings:
        if key in SET_ELSEWHERE:
            raise ValueError(f"train.{key} is set by {SET_ELSEWHERE[key]}; use that instead")
        if key not in known:
            raise ValueError(
                f"unknown key 'train.{key}'{nearest(key, known)}; allowed is any field of TRL's GRPOConfig"
            )
    if settings.get("max_completion_length", 1) is None:
        raise ValueError("train.max_completion_length is null, allowed is an integer >= 1")
    return settings


def build_args(config: RunConfig, settings: dict[str, Any], run: RunDirectory) -> BandGRPOConfig:
    """TRL's configuration for this recipe on this machine."""
    on_cpu = not torch.cuda.is_available()
    machine = {
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }
    merged = {**TRAIN_DEFAULTS, **(machine if on_cpu else {}), **settings}
    # The rule object reaches the trainer as it is; TRL's own copy of these settings is then unused.
    return BandGRPOConfig(output_dir=str(run.checkpoints), seed=config.seed, **merged)


def build_trainer(
    config: RunConfig, args: BandGRPOConfig, model: Any, tokenizer: Any, problems: list[Problem]
) -> BandGRPOTrainer:
    """The trainer with data, reward and rule in place, printing nothing of its own."""
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback

    rows = [{"prompt": config.task.prompt(p, tokenizer), "problem": i} for i, p in enumerate(problems)]
    trainer = BandGRPOTrainer(
        model=model,
        reward_funcs=trl_reward(config.task, problems),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=None if config.lora is None else peft_config(config.lora),
        rule=config.clip_rule(),
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


def peft_config(config: LoraConfig) -> Any:
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.targets,
        task_type="CAUSAL_LM",
    )


def warm_up(
    model: Any,
    tokenizer: Any,
    task: Task,
    problems: list[Problem],
    config: WarmupConfig,
    seed: int,
    directory: Path,
) -> None:
    """Supervised training on the problems' solutions, through TRL's SFTTrainer.

    Raises:
        ValueError: If the task's problems carry no solutions.
    """
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    solved = [p for p in problems if p.solution]
    if not solved:
        raise ValueError("warmup needs problems with a solution; this task has none")
    rows = []
    for problem in solved:
        prompt = task.prompt(problem, tokenizer)
        completion: Any = problem.solution
        if not isinstance(prompt, str):
            completion = [{"role": "assistant", "content": problem.solution}]
        rows.append({"prompt": prompt, "completion": completion})
    on_cpu = not torch.cuda.is_available()
    args = SFTConfig(
        output_dir=str(directory),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, config.steps // 20),
        logging_steps=max(1, config.steps // 20),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        use_cpu=on_cpu,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=not on_cpu,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = SFTTrainer(
            model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
