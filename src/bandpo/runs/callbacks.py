"""Callbacks that write what happens: metrics and samples to the run directory, progress to the terminal."""

from __future__ import annotations

from typing import Any

from rich.progress import Progress
from transformers import TrainerCallback

from bandpo.files import append_line
from bandpo.runs.run_dir import RunDirectory
from bandpo.training.batches import BYTES_A_RUN, TokenBatch, steps_to_record
from bandpo.training.trainer import micro_batches_per_rollout

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
            record = {"step": step, "prompt": text_of(prompt), "completion": text_of(completion)}
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

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and state.global_step in self._steps:
            batch = TokenBatch.of_trainer(self.trainer, state.global_step, BYTES_A_RUN // self.batches)
            if batch is not None:
                batch.save(self.run.batches)


def text_of(message: Any) -> str:
    """The last message's text of a chat, or the text itself."""
    return message if isinstance(message, str) else message[-1]["content"]


class ProgressDisplay(TrainerCallback):
    """One line with the figures that matter: reward of the rollout, and means over its updates so far."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task: Any = None
        self._updates: list[dict[str, Any]] = []  # of the current rollout
        self._step = self._steps = 0

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
        self.progress.update(self.task, completed=self._step, figures=self._figures())

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._print_rollout()

    def _figures(self) -> str:
        shown = []
        for title, key, form in FIGURES:
            values = [update[key] for update in self._updates if update.get(key) is not None]
            if values:
                shown.append(f"{title} {form.format(sum(values) / len(values))}")
        return "  ".join(shown)

    def _print_rollout(self) -> None:
        """A log file shows no moving bar: one line a rollout there."""
        if self._updates and not self.progress.console.is_terminal:
            self.progress.console.print(f"update {self._step}/{self._steps}  {self._figures()}", highlight=False)
