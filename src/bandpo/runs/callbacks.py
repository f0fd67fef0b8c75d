"""Callbacks: metrics and samples to the run directory, alarms and progress to the terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.progress import Progress
from transformers import TrainerCallback

from bandpo.files import append_line
from bandpo.interrupts import Request
from bandpo.runs.run_dir import RunDirectory
from bandpo.tasks.base import Message, transcript
from bandpo.training.alarms import AlarmConfig, Event, Watch, known_causes
from bandpo.training.batches import BYTES_A_RUN, TokenBatch, steps_to_record
from bandpo.training.config import micro_batches_per_rollout

FIGURES = (
    ("reward", "reward", "{:.2f}"),
    ("entropy", "entropy", "{:.2f}"),
    ("clipped", "band/clip_fraction", "{:.1%}"),
)


class RunRecorder(TrainerCallback):
    """Append each logging step to metrics.jsonl and each rollout to samples.jsonl."""

    def __init__(self, run: RunDirectory, trainer: Any) -> None:
        self.run = run
        self.trainer = trainer

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or logs is None or "train_runtime" in logs:
            return
        append_line(self.run.metrics, {"step": state.global_step, **logs})
        if "reward" in logs:  # TRL logs it with the first update after each rollout
            self._write_samples(state.global_step)

    def _write_samples(self, step: int) -> None:
        logs = self.trainer._logs
        names = list(logs["rewards"])
        rows = zip(logs["prompt"], logs["completion"], logs["advantages"], *logs["rewards"].values(), strict=True)
        for prompt, completion, advantage, *rewards in rows:
            record = {"step": step, "prompt": chat_text(prompt), "completion": text_of(completion)}
            append_line(
                self.run.samples,
                {**record, **dict(zip(names, rewards, strict=True)), "advantage": advantage},
            )


class BatchRecorder(TrainerCallback):
    """Write the tokens of some updates' last micro-batch into the run directory."""

    def __init__(self, run: RunDirectory, trainer: Any, batches: int) -> None:
        self.run = run
        self.trainer = trainer
        self.batches = batches
        self._steps: set[int] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        per_rollout = micro_batches_per_rollout(args) / args.gradient_accumulation_steps
        self._steps = steps_to_record(state.max_steps, per_rollout, self.batches)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.recording = state.is_world_process_zero and state.global_step + 1 in self._steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and state.global_step in self._steps:
            batch = TokenBatch.of_trainer(self.trainer, state.global_step, BYTES_A_RUN // self.batches)
            if batch is not None:
                batch.save(self.run.batches)


def chat_text(prompt: Any) -> str:
    """A prompt as TRL logs it: a string, or chat messages, mappings with `role` and `content`."""
    if isinstance(prompt, str):
        return prompt
    return transcript([Message(message["role"], message["content"]) for message in prompt])


def text_of(message: Any) -> str:
    """The text of a chat's last message, or the string itself."""
    return message if isinstance(message, str) else message[-1]["content"]


class Alarms(TrainerCallback):
    """Prints and records alarms, and stops the run if the configuration says so.

    A resumed run reads its past from the trainer's own log history, so it neither repeats an alarm nor loses the
    baseline from the start of the run.

    Args:
        config: Limits, and which alarms stop the run.
        console: Where to print.
        record: Called with each event as a dictionary, for example to append it to alarms.jsonl.
    """

    def __init__(self, config: AlarmConfig, console: Console, record: Callable[[dict[str, Any]], None]) -> None:
        self.config = config
        self.console = console
        self.record = record
        self.stopped_by: Event | None = None
        self._watch = Watch(config)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self._watch = Watch(self.config, known_causes(args, model))
        for row in state.log_history:
            self._watch.add(row)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        events = self._watch.add({"step": state.global_step, **(logs or {})})
        for event in events:
            stops = event.event == "fired" and self.config.stops(event.alarm)
            if stops:  # on every process, or the others would hang waiting for this one
                control.should_training_stop = True
                self.stopped_by = self.stopped_by or event
            if state.is_world_process_zero:
                text = event.text() + "\n  The run stops here." * stops
                self.console.print(text, style="yellow", markup=False, highlight=False)
                self.record({**asdict(event), "stops": stops})


class StopsOnRequest(TrainerCallback):
    """After the update during which a signal arrived, saves a checkpoint and ends training, on all processes."""

    def __init__(self, request: Request, accelerator: Any) -> None:
        self.request = request
        self.accelerator = accelerator
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.request.signal is not None:
            self.accelerator.set_trigger()
        if self.accelerator.check_trigger():
            self.stopped = control.should_save = control.should_training_stop = True


class ProgressDisplay(TrainerCallback):
    """One bar with the key metrics: reward of the rollout, and means over its updates so far."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task: Any = None
        self._updates: list[dict[str, Any]] = []  # of the current rollout
        self._step = self._steps = 0
        self._titled = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._steps = state.max_steps
        self.task = self.progress.add_task("training", total=state.max_steps, completed=state.global_step, figures="")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not logs or "entropy" not in logs:
            return
        if "reward" in logs:
            self._print_rollout()
            self._updates = []
        self._updates.append(logs)
        self._step = state.global_step
        shown = [f"{title} {text}" for title, text in self._means() if text]
        self.progress.update(self.task, completed=self._step, figures="  ".join(shown))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._print_rollout()
        self.progress.update(self.task, visible=False)

    def _means(self) -> list[tuple[str, str]]:
        """Title and mean over the rollout's updates so far, "" if none has the value."""
        shown = []
        for title, key, form in FIGURES:
            values = [update[key] for update in self._updates if update.get(key) is not None]
            shown.append((title, form.format(sum(values) / len(values)) if values else ""))
        return shown

    def _print_rollout(self) -> None:
        """One row per rollout for log files, which cannot show a progress bar."""
        if not self._updates or self.progress.console.is_terminal:
            return
        update = f"{self._step}/{self._steps}"
        row = [("update", update.rjust(2 * len(str(self._steps)) + 1)), *self._means()]
        widths = [max(len(title), len(text), 6) for title, text in row]
        lines = [[text for _, text in row]]
        if not self._titled:
            lines.insert(0, [title for title, _ in row])
            self._titled = True
        for cells in lines:
            line = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
            self.progress.console.print(line, highlight=False)
