"""The model in a run directory."""

from __future__ import annotations

from pathlib import Path

from bandpo.runs.run_dir import RunDirectory
from bandpo.training.checkpoints import list_checkpoints, step_of


def locate_model(model: str, checkpoint: int | None) -> str:
    """The model's path or name; for a run directory its final model, or a checkpoint.

    Raises:
        ValueError: If the run has no such model; names the ones it has.
    """
    run = RunDirectory(Path(model).expanduser())
    if not run.config.is_file():
        if checkpoint is not None:
            raise ValueError(f"checkpoint is {checkpoint}, but {model!r} is not a run directory")
        return model
    found = run.model if checkpoint is None else run.checkpoints / f"checkpoint-{checkpoint}"
    if not found.is_dir():
        known = ", ".join(str(step_of(p)) for p in list_checkpoints(run.checkpoints)) or "none"
        raise ValueError(f"run {model!r} has no {found.relative_to(run.path)}; its checkpoints: {known}")
    return str(found)
