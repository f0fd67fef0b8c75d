"""The main job: load, evaluate, train, evaluate, report."""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.progress import Progress
from trl import GRPOConfig
from trl.kernels import chunked_logprob

from bandpo.evaluation import Sampling, evaluate_into
from bandpo.files import append_line, write_atomic
from bandpo.models import load_model, scratch_model
from bandpo.progress import make_progress
from bandpo.runs.callbacks import BatchRecorder, ProgressDisplay, RunRecorder, text_of
from bandpo.runs.config import EvalConfig, LoraConfig, RunConfig, WarmupConfig
from bandpo.runs.run_dir import RunDirectory
from bandpo.tasks import Problem, Shaping, Task
from bandpo.training.alarms import Alarms
from bandpo.training.checkpoints import find_checkpoint, set_aside_newer, step_of
from bandpo.training.durable import DurableGRPOTrainer
from bandpo.training.trainer import BandGRPOConfig, BandGRPOTrainer, micro_batches_per_rollout
from bandpo.words import nearest

# What differs from TRL's defaults, whatever the recipe says less.
TRAIN_DEFAULTS: dict[str, Any] = {
    "logging_steps": 1,
    "report_to": ["tensorboard"],
    "save_steps": 0.25,
    "save_total_limit": 2,
    "disable_tqdm": True,
    "temperature": 1.0,
}
# TRL projects this many tokens onto the vocabulary at a time. Without its CUDA kernel, 8.25 such tiles are alive at
# the peak, so its 4,096 would hold several times the logits of a micro-batch; fewer are faster too.
CPU_TILE = 512
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
    "reward_weights": "shaping",
}


def run_training(
    config: RunConfig, output: Path, console: Console, command: list[str] | None = None, resume: bool = False
) -> dict[str, Any]:
    """Run a recipe from beginning to end and leave a run directory.

    Under `accelerate launch` every process calls this; the first one writes the run directory and evaluates.

    Args:
        output: The run directory.
        resume: If `output` holds a run with these settings, go on with it from its last good checkpoint; the
            result is that of a run that was never interrupted.

    Returns:
        The summary that is also written to summary.json.

    Raises:
        ValueError: For settings or data that cannot work; the run directory is made only once all is loaded.
    """
    started = time.monotonic()
    command = command or sys.argv
    processes = start_processes()
    if not processes.is_main_process:
        console = Console(quiet=True)
    train_problems, heldout = config.task.problems()
    if config.warmup is not None and not any(p.solution for p in train_problems):
        raise ValueError("warmup needs problems with a solution; this task has none")
    train_settings = check_train_settings(config.train, config_class(config))
    settings = config.model_dump(mode="json")
    going_on = resume and output.exists() and any(output.iterdir())
    run = RunDirectory(output)
    if going_on:
        RunDirectory.open(output).check_config(settings)
        if run.finished():
            return json.loads(run.summary.read_text(encoding="utf-8"))
    else:
        RunDirectory.refuse_existing(output)
    model, tokenizer = (
        load_model(str(run.initial), config.model.dtype) if run.initial.exists() else build_model(config)
    )
    processes.wait_for_everyone()
    checkpoint = find_resume_point(run, console, command, processes) if going_on else None
    if processes.is_main_process and not going_on:
        run = RunDirectory.create(output, settings, command)
    processes.wait_for_everyone()
    try:
        model, tokenizer = prepare_initial(config, run, model, tokenizer, train_problems, processes)
        summary = _run(
            config, run, train_settings, model, tokenizer, train_problems, heldout, checkpoint, console, started
        )
    except BaseException as error:
        if processes.is_main_process:
            with suppress(OSError):  # a full disk must not hide what happened
                run.set_status("failed", error=f"{type(error).__name__}: {error}")
                write_atomic(run.path / "error.log", traceback.format_exc())
            if not isinstance(error, ValueError):  # those would only come again
                console.print(
                    f"to go on: bandpo train {run.path} --resume", markup=False, highlight=False, soft_wrap=True
                )
        raise
    if processes.is_main_process:
        run.set_status("finished")
    return summary


def start_processes() -> Any:
    """The processes of this run, one unless `accelerate launch` started more."""
    # Others wait while the first one evaluates, for longer than the default half hour.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=12))


def find_resume_point(run: RunDirectory, console: Console, command: list[str], processes: Any) -> Path | None:
    """The checkpoint to go on from, after clearing away what was recorded behind it.

    Raises:
        ValueError: If there are checkpoints, but none can be used.
    """
    chosen: list[Any] = [None]
    if processes.is_main_process:
        found = find_checkpoint(run.checkpoints)
        for reason in found.refused:
            console.print(f"{reason}: not used", style="yellow", markup=False, highlight=False)
        if found.path is None and found.was_sealed:
            raise ValueError(
                f"no checkpoint of {str(run.path)!r} can be used ({'; '.join(found.refused)}); "
                "remove its checkpoints to begin it anew"
            )
        set_aside_newer(run.checkpoints, found.path)
        step = 0 if found.path is None else step_of(found.path)
        run.rewind(step, command)
        console.print(f"going on after update {step}", highlight=False)
        chosen = [found.path]
    return broadcast_object_list(chosen)[0]


def prepare_initial(
    config: RunConfig, run: RunDirectory, model: Any, tokenizer: Any, problems: list[Problem], processes: Any
) -> tuple[Any, Any]:
    """The weights that training starts from; those that this run makes itself are kept in its directory."""
    if run.initial.exists() or (config.warmup is None and config.model.scratch is None):
        return model, tokenizer
    make_initial(config, model, tokenizer, problems, run.initial, processes)
    # Loaded anew, it knows where it came from: TRL takes the reference model from there.
    return load_model(str(run.initial), config.model.dtype)


def make_initial(
    config: RunConfig, model: Any, tokenizer: Any, problems: list[Problem], target: Path, processes: Any
) -> None:
    """Warm a model up where the recipe says so, and save it."""
    if config.warmup is not None:
        with tempfile.TemporaryDirectory(prefix="bandpo-warmup-") as folder:
            warm_up(model, tokenizer, config.task, problems, config.warmup, config.seed, Path(folder))
    save_model(lambda folder: model.save_pretrained(folder), tokenizer, target, processes)


def save_model(save: Callable[[str], Any], tokenizer: Any, target: Path, processes: Any) -> None:
    """Save a model so that the directory appears under its name only when it is complete."""
    unfinished = target.with_name(f".{target.name}.partial")
    if processes.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    processes.wait_for_everyone()
    save(str(unfinished))
    processes.wait_for_everyone()
    if processes.is_main_process:
        tokenizer.save_pretrained(unfinished)
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
    processes.wait_for_everyone()


def _run(
    config: RunConfig,
    run: RunDirectory,
    train_settings: dict[str, Any],
    model: Any,
    tokenizer: Any,
    train_problems: list[Problem],
    heldout: list[Problem],
    checkpoint: Path | None,
    console: Console,
    started: float,
) -> dict[str, Any]:
    from bandpo.report.pages import write_report

    args = build_args(config, train_settings, run)
    trainer = build_trainer(config, args, model, tokenizer, train_problems)
    processes = trainer.accelerator
    if config.eval is not None and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ValueError(
            "a model that is spread over processes cannot be evaluated within the run; set eval=null and use "
            "`bandpo eval` on the saved model"
        )
    trainer.add_callback(RunRecorder(run, trainer))
    if config.record is not None:
        trainer.add_callback(BatchRecorder(run, trainer, config.record.batches))
    alarms = Alarms(config.alarms, console, partial(append_line, run.alarms))
    trainer.add_callback(alarms)
    with make_progress(console) as progress:

        def grade(when: str) -> dict[str, Any] | None:
            result = None
            if config.eval is not None and processes.is_main_process:
                unwrapped = processes.unwrap_model(trainer.model)
                result = grade_heldout(config.eval, config, run, when, unwrapped, tokenizer, heldout, args, progress)
            processes.wait_for_everyone()
            return result

        before = grade("before")
        trainer.add_callback(ProgressDisplay(progress))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        save_model(trainer.save_model, tokenizer, run.model, processes)
        after = grade("after")
    stopped = alarms.stopped_by
    summary = {
        "rule": config.rule,
        "steps": trainer.state.global_step,
        "rollouts": math.ceil(trainer._step / micro_batches_per_rollout(args)),
        "before": before,
        "after": after,
        "stopped_by": None if stopped is None else stopped.alarm,
        "seconds": round(time.monotonic() - started, 1),
    }
    if processes.is_main_process:
        write_atomic(run.summary, json.dumps(summary, indent=2) + "\n")
        write_report([run.path])
    return summary


def grade_heldout(
    settings: EvalConfig,
    config: RunConfig,
    run: RunDirectory,
    when: str,
    model: Any,
    tokenizer: Any,
    heldout: list[Problem],
    args: GRPOConfig,
    progress: Progress,
) -> dict[str, Any]:
    """Evaluate on the held-out problems into RUN/eval/WHEN, going on where an interrupted evaluation was."""
    assert args.max_completion_length is not None
    bar = progress.add_task(f"eval {when}", total=len(heldout) * (settings.samples + settings.greedy), figures="")
    sampling = Sampling(
        samples=settings.samples,
        max_new_tokens=args.max_completion_length,
        temperature=settings.temperature,
        batch_size=settings.batch_size,
        seed=config.seed,
    )
    result = evaluate_into(
        run.evaluation(when),
        model,
        tokenizer,
        config.task,
        heldout,
        sampling,
        greedy=settings.greedy,
        identity={"when": when},
        progress=lambda n: progress.advance(bar, n),
    ).result
    progress.update(bar, figures=f"success {result.success.mean:.3f}")
    return result.dump()


def build_model(config: RunConfig) -> tuple[Any, Any]:
    """The model that the recipe names, and its tokenizer."""
    if config.model.scratch is not None:
        return scratch_model(**config.model.scratch.model_dump(), seed=config.seed)
    assert config.model.path is not None
    return load_model(config.model.path, config.model.dtype)


def config_class(config: RunConfig) -> type[GRPOConfig]:
    """TRL's configuration where its own loss is left alone, else ours."""
    return GRPOConfig if config.clip_rule() is None else BandGRPOConfig


def check_train_settings(settings: dict[str, Any], config_class: type[GRPOConfig] = BandGRPOConfig) -> dict[str, Any]:
    """Refuse keys that `config_class` does not have, or that belong elsewhere in a recipe."""
    elsewhere = {
        key: home
        for key, home in SET_ELSEWHERE.items()
        if config_class is BandGRPOConfig or not home.startswith("rule.")
    }
    known = [f.name for f in fields(config_class) if f.init and f.name not in elsewhere]
    for key in settings:
        if key in elsewhere:
            raise ValueError(f"train.{key} is set by {elsewhere[key]}; use that instead")
        if key not in known:
            raise ValueError(
                f"unknown key 'train.{key}'{nearest(key, known)}; allowed is any field of TRL's GRPOConfig"
            )
    if settings.get("max_completion_length", 1) is None:
        raise ValueError("train.max_completion_length is null, allowed is an integer >= 1")
    limit = settings.get("save_total_limit")
    if limit is not None and limit < 2:
        raise ValueError(
            f"train.save_total_limit is {limit}, allowed is an integer >= 2: the last checkpoint is kept until the "
            "next one is complete"
        )
    return settings


def build_args(config: RunConfig, settings: dict[str, Any], run: RunDirectory) -> GRPOConfig:
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
    return config_class(config)(output_dir=str(run.checkpoints), seed=config.seed, **merged)


def build_trainer(
    config: RunConfig, args: GRPOConfig, model: Any, tokenizer: Any, problems: list[Problem]
) -> DurableGRPOTrainer:
    """The trainer with data, reward and rule in place, printing nothing of its own."""
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback

    assert args.max_completion_length is not None
    if args.use_cpu:
        chunked_logprob.TOKEN_CHUNK_SIZE = CPU_TILE
    shaping = config.shaping_rewards(args.max_completion_length)
    if shaping:
        args.reward_weights = [1.0, *(one.weight for one in shaping)]
    rows = [{"prompt": config.task.prompt(p, tokenizer), "problem": i} for i, p in enumerate(problems)]
    rule = config.clip_rule()
    trainer_class: Any = DurableGRPOTrainer if rule is None else partial(BandGRPOTrainer, rule=rule)
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
    """Supervised training on the problems' solutions, through TRL's SFTTrainer."""
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    rows = []
    for problem in (p for p in problems if p.solution):
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
