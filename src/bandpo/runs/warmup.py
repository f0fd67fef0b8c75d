"""The initial weights of reinforcement learning: created, warmed up by supervised training, saved atomically."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from bandpo.runs.config import RunConfig, WarmupConfig
from bandpo.tasks import Problem, Task


def start_processes() -> Any:
    """The state of this run's processes: one, unless `accelerate launch` started more."""
    # The others wait while the first one evaluates, possibly longer than the default half hour.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=12))


def make_initial(
    config: RunConfig, model: Any, tokenizer: Any, problems: list[Problem], target: Path, processes: Any
) -> None:
    """Warm up a model if the recipe asks for it, and save it."""
    if config.warmup is not None:
        with tempfile.TemporaryDirectory(prefix="bandpo-warmup-") as folder:
            warm_up(model, tokenizer, config.task, problems, config.warmup, config.seed, Path(folder))
    save_model(lambda folder: model.save_pretrained(folder), tokenizer, target, processes)


def save_model(save: Callable[[str], Any], tokenizer: Any, target: Path, processes: Any) -> None:
    """Save a model so that the directory appears under its name only once it is complete."""
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
