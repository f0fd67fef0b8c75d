"""The main job: load, evaluate, train, evaluate, and leave a run directory."""

from __future__ import annotations

import math
import sys
import time
import traceback
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.progress import Progress
from trl import GRPOConfig

from bandpo.evaluation import EvaluationResult, Sampling, evaluate_into
from bandpo.files import append_line, locked, write_atomic
from bandpo.interrupts import Request, ends_on_sigterm, signal_of, tell
from bandpo.models import load_model
from bandpo.progress import make_progress
from bandpo.runs.build import build_args, build_model, build_trainer, missing_sampler
from bandpo.runs.callbacks import Alarms, BatchRecorder, ProgressDisplay, RunRecorder, StopsOnRequest
from bandpo.runs.card import write_card
from bandpo.runs.config import EvalConfig, RunConfig
from bandpo.runs.prompts import position_obstacle
from bandpo.runs.run_dir import RunDirectory
from bandpo.runs.summary import RunSummary
from bandpo.runs.warmup import make_initial, save_model, start_processes
from bandpo.tasks import Problem
from bandpo.training.checkpoints import find_checkpoint, set_aside_newer, step_of
from bandpo.training.config import micro_batches_per_rollout
from bandpo.training.durable import Durable


@dataclass(frozen=True)
class Loaded:
    """What a run works on: the model that training starts from, and the problems."""

    model: Any
    tokenizer: Any
    train: list[Problem]
    heldout: list[Problem]


def run_training(
    config: RunConfig, output: Path, console: Console, command: list[str] | None = None, resume: bool = False
) -> RunSummary:
    """Run a recipe from beginning to end and leave a run directory.

    Under `accelerate launch` every process calls this; the first one writes the run directory and evaluates.

    Args:
        output: The run directory.
        resume: If `output` holds a run with these settings, continue it from its last good checkpoint; the result is
            that of a run that was never interrupted.

    Returns:
        What is also written to summary.json.

    Raises:
        ValueError: For settings or data that cannot work, or a run that another process works on; the run directory
            is made only once all is loaded.
        KeyboardInterrupt, SystemExit: After Ctrl-C or SIGTERM. One that comes during training takes effect after
            the current update and a checkpoint.
    """
    with ExitStack() as held:
        return _run(config, output, console, command or sys.argv, resume, held)


def _run(
    config: RunConfig, output: Path, console: Console, command: list[str], resume: bool, held: ExitStack
) -> RunSummary:
    """`run_training`; the lock on the run directory goes into `held`."""
    started = time.monotonic()
    processes = start_processes()
    if not processes.is_main_process:
        console = Console(quiet=True)
    train, heldout = config.problems()
    if config.warmup is not None and not any(p.solution for p in train):
        raise ValueError("warmup needs problems with a solution; this task has none")
    settings = config.model_dump(mode="json")
    resuming = resume and output.exists() and any(output.iterdir())
    run = RunDirectory(output)
    if resuming:
        RunDirectory.open(output).check_config(settings)
        if processes.is_main_process:
            held.enter_context(locked(output))
        if run.finished():
            return RunSummary.load(run.summary)
    else:
        RunDirectory.refuse_existing(output)
    model, tokenizer = (
        load_model(str(run.initial), config.model.dtype) if run.initial.exists() else build_model(config)
    )
    args = build_args(config, config.train, run)
    assert args.max_completion_length is not None
    if (missing := missing_sampler(args)) is not None:
        raise ValueError(missing)
    tested = [*train, *(heldout if config.eval is not None else ())]
    obstacle = position_obstacle(config, model.config, tokenizer, tested, args.max_completion_length)
    if obstacle is not None:
        raise ValueError(obstacle)
    processes.wait_for_everyone()
    checkpoint = find_resume_point(run, console, command, processes) if resuming else None
    if processes.is_main_process and not resuming:
        run = RunDirectory.create(output, settings, command)
        held.enter_context(locked(output))
    processes.wait_for_everyone()
    try:
        with ends_on_sigterm():
            model, tokenizer = _prepare_initial(config, run, model, tokenizer, train, processes)
            loaded = Loaded(model, tokenizer, train, heldout)
            summary = _train(config, run, args, loaded, checkpoint, console, started)
    except BaseException as error:
        if processes.is_main_process:
            _record_failure(run, error, console)
        raise
    if processes.is_main_process:
        summary.dump(run.summary)
        run.set_status("finished")
    return summary


def _record_failure(run: RunDirectory, error: BaseException, console: Console) -> None:
    interrupted = signal_of(error)
    with suppress(OSError):  # a full disk must not hide what happened
        if interrupted is not None:
            run.set_status("interrupted", signal=interrupted)
        else:
            run.set_status("failed", error=f"{type(error).__name__}: {error}")
            write_atomic(run.path / "error.log", traceback.format_exc())
    if not isinstance(error, ValueError):  # those would only come again
        console.print(f"to resume: bandpo train {run.path} --resume", markup=False, highlight=False, soft_wrap=True)


def find_resume_point(run: RunDirectory, console: Console, command: list[str], processes: Any) -> Path | None:
    """The checkpoint to resume from, after clearing away what was recorded behind it.

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
                "remove its checkpoints to start it again"
            )
        set_aside_newer(run.checkpoints, found.path)
        step = 0 if found.path is None else step_of(found.path)
        run.rewind(step, command)
        console.print(f"resuming after update {step}", highlight=False)
        chosen = [found.path]
    return broadcast_object_list(chosen)[0]


def _prepare_initial(
    config: RunConfig, run: RunDirectory, model: Any, tokenizer: Any, problems: list[Problem], processes: Any
) -> tuple[Any, Any]:
    """The weights that training starts from; those that this run makes itself are kept in its directory."""
    if run.initial.exists() or (config.warmup is None and config.model.scratch is None):
        return model, tokenizer
    make_initial(config, model, tokenizer, problems, run.initial, processes)
    # Loaded again, it knows where it came from: TRL takes the reference model from there.
    return load_model(str(run.initial), config.model.dtype)


def _train(
    config: RunConfig,
    run: RunDirectory,
    args: GRPOConfig,
    loaded: Loaded,
    checkpoint: Path | None,
    console: Console,
    started: float,
) -> RunSummary:
    trainer = build_trainer(config, args, loaded.model, loaded.tokenizer, loaded.train)
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

    def save(folder: str) -> None:
        trainer.save_model(folder)
        if processes.is_main_process:
            write_card(Path(folder), config)

    with make_progress(console, transient=True) as progress:

        def grade(when: str) -> EvaluationResult | None:
            result = None
            if config.eval is not None and processes.is_main_process:
                graded = Loaded(processes.unwrap_model(trainer.model), loaded.tokenizer, loaded.train, loaded.heldout)
                result = grade_heldout(config, config.eval, run, when, graded, args, progress)
            processes.wait_for_everyone()
            return result

        before = grade("before")
        trainer.add_callback(ProgressDisplay(progress))
        _update(trainer, run, checkpoint)
        save_model(save, loaded.tokenizer, run.model, processes)
        after = grade("after")
    stopped = alarms.stopped_by
    return RunSummary(
        rule=dict(config.rule.settings),
        steps=trainer.state.global_step,
        rollouts=math.ceil(trainer._step / micro_batches_per_rollout(args)),
        before=before,
        after=after,
        stopped_by=None if stopped is None else stopped.alarm,
        seconds=round(time.monotonic() - started, 1),
    )


def _update(trainer: Durable, run: RunDirectory, checkpoint: Path | None) -> None:
    """Train to the end, or to the end of the update in which a signal comes."""
    request = Request()
    stops = StopsOnRequest(request, trainer.accelerator)
    trainer.add_callback(stops)

    def told() -> None:
        if trainer.accelerator.is_main_process:
            tell("interrupted: saving a checkpoint after this update; Ctrl-C (again) ends at once")
            with suppress(OSError):  # now, in case the time until SIGKILL is too short for the update
                run.set_status("interrupted")

    with request.noted(told):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if stops.stopped or request.signal is not None:
        request.leave()


def grade_heldout(
    config: RunConfig,
    settings: EvalConfig,
    run: RunDirectory,
    when: str,
    loaded: Loaded,
    args: GRPOConfig,
    progress: Progress,
) -> EvaluationResult:
    """Evaluate on the held-out problems into RUN/eval/WHEN, resuming an evaluation that was interrupted."""
    assert args.max_completion_length is not None
    completions = len(loaded.heldout) * (settings.samples + settings.greedy)
    bar = progress.add_task(f"eval {when}", total=completions, figures="")
    sampling = Sampling(
        samples=settings.samples,
        max_new_tokens=args.max_completion_length,
        temperature=settings.temperature,
        batch_size=settings.batch_size,
        seed=config.seed,
        cuts=settings.cuts,
    )
    result = evaluate_into(
        run.evaluation(when),
        loaded.model,
        loaded.tokenizer,
        config.task,
        loaded.heldout,
        sampling,
        greedy=settings.greedy,
        identity={"when": when},
        progress=lambda n: progress.advance(bar, n),
    ).result
    progress.update(bar, visible=False)
    progress.console.print(f"success {when} training: {result.success}", highlight=False)
    return result
