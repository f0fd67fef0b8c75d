"""Checkpoints from which a run resumes exactly as if it had not been interrupted, and guards against NaN."""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from bandpo.training.checkpoints import find_checkpoint, seal
from bandpo.training.slope import mean_slopes


class TrainingDivergedError(ArithmeticError):
    """The loss or its gradient is no longer a number."""


class CheckpointError(OSError):
    """A checkpoint could not be written."""


class Durable(GRPOTrainer):
    """Mixin whose checkpoints also hold the current rollout and metrics not yet logged.

    Resuming from a stock TRL checkpoint starts a new rollout and reshuffles the epoch. Here neither happens, and each
    checkpoint is sealed when it is complete (bandpo.training.checkpoints). It also works as a trainer by itself:
    TRL's own loss with these checkpoints.

    Raises:
        TrainingDivergedError: Before an update whose gradient is not finite; the weights are then still good.
        CheckpointError: If a checkpoint cannot be written, e.g. because the disk is full; the partial checkpoint is
        removed.
    """

    # (logps, entropies, E_pi[S]) of the latest forward pass over completions, each (B, T) and detached, and the
    # inputs of the latest loss; `TokenBatch.of_trainer` reads them. E_pi[S] only if `recording`, of an update's last
    # pass.
    last_forward: tuple[Tensor, Tensor | None, Tensor | None] | None = None
    last_inputs: dict[str, Any] | None = None
    recording = False

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            wanted = self.recording and torch.is_grad_enabled() and self.accelerator.sync_gradients
            slopes = stack.enter_context(mean_slopes(model)) if wanted else []
            result = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        logps, entropies = result[0].detach(), None if result[1] is None else result[1].detach()
        self.last_forward = logps, entropies, torch.cat(slopes)[:, -logps.shape[1] :] if slopes else None
        return result

    # Behind BandGRPOTrainer in a trainer's bases, so that the inputs are those that reach TRL's loss.
    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self.last_inputs = inputs
        return super()._compute_loss(model, inputs)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def _run_epoch(self, **arguments: Any) -> None:  # type: ignore[override]
        checkpoint = arguments["resume_from_checkpoint"]
        if checkpoint is not None and arguments["epoch"] == arguments["epochs_trained"]:
            self._replay_epochs(arguments["epochs_trained"])
            self._load_rollout(Path(checkpoint))
        if self.state.global_step >= self.state.max_steps:  # transformers would make one more update
            return
        super()._run_epoch(**arguments)

    def _replay_epochs(self, epochs: int) -> None:
        """TRL's sampler draws each epoch's order from a generator that restarts with the process."""
        sampler = getattr(self, "_train_sampler", None)
        if sampler is not None and sampler.shuffle:
            for _ in range(epochs):
                torch.randperm(sampler.num_samples, generator=sampler.generator)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # With a gradient scaler (float16) infinite gradients are normal, and it skips the update.
        if norm is not None and self.accelerator.scaler is None and not math.isfinite(norm):
            raise TrainingDivergedError(
                f"the gradient norm is {float(norm)} in update {self.state.global_step + 1}; the weights are those "
                f"before it.{self._last_good()} Try a lower learning_rate or a longer warm-up."
            )
        return norm

    def _last_good(self) -> str:
        found = find_checkpoint(Path(str(self.args.output_dir)))
        return "" if found.path is None else f" The last good checkpoint is {found.path}."

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            torch.save(self._rollout_state(), folder / _rollout_file(self.args))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                seal(folder)
        except Exception as error:  # torch, safetensors and the file system raise different types
            free = shutil.disk_usage(str(self.args.output_dir)).free / 1e6
            shutil.rmtree(folder, ignore_errors=True)
            reason = " ".join(str(error).split()).rstrip(".")
            raise CheckpointError(
                f"cannot write the checkpoint of update {self.state.global_step} ({free:.1f} MB of disk were free): "
                f"{reason}.{self._last_good()}"
            ) from error

    def _rollout_state(self) -> dict[str, Any]:
        return {
            "micro_step": self._step,
            "rollout": self._buffered_inputs,
            "metrics": dict(self._metrics["train"]),
            "loss": self._tr_loss,
            "last_logged": self._globalstep_last_logged,
        }

    def _load_rollout(self, checkpoint: Path) -> None:
        file = checkpoint / _rollout_file(self.args)
        if not file.exists():  # written by another number of processes, or by TRL's own trainer
            return
        state = torch.load(file, map_location=self.args.device, weights_only=True)
        self._step = state["micro_step"]
        self._buffered_inputs = state["rollout"]
        self._metrics["train"] = defaultdict(list, state["metrics"])
        self._tr_loss = state["loss"]
        self._globalstep_last_logged = state["last_logged"]


def _rollout_file(args: Any) -> str:
    return f"rollout_{args.process_index}_of_{args.world_size}.pt"
