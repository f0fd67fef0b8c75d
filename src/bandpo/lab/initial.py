"""The weights that all runs of a seed start from: python -m bandpo.lab.initial FOLDER RECIPE [KEY=VALUE]..."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bandpo.training.config import RunConfig, load_config


def make_initial(config: RunConfig, target: Path) -> None:
    """Build the recipe's model, warm it up, and save it; `target` appears only when it is complete."""
    from bandpo.training.job import build_model, save_model, start_processes, warm_up

    processes = start_processes()
    problems, _ = config.task.problems()
    model, tokenizer = build_model(config)
    target.parent.mkdir(parents=True, exist_ok=True)
    if config.warmup is not None:
        with tempfile.TemporaryDirectory(prefix="bandpo-warmup-") as folder:
            warm_up(model, tokenizer, config.task, problems, config.warmup, config.seed, Path(folder))
    save_model(lambda folder: model.save_pretrained(folder), tokenizer, target, processes)


if __name__ == "__main__":
    make_initial(load_config(sys.argv[2], sys.argv[3:]), Path(sys.argv[1]))
