"""The weights that all runs of a seed start from: python -m bandpo.lab.initial FOLDER RECIPE [KEY=VALUE]..."""

from __future__ import annotations

import sys
from pathlib import Path

from bandpo.runs.config import RunConfig, load_config


def make_initial(config: RunConfig, target: Path) -> None:
    """Build the recipe's model, warm it up, and save it; `target` appears only when it is complete."""
    from bandpo.runs import build, warmup

    processes = warmup.start_processes()
    problems, _ = config.task.problems()
    model, tokenizer = build.build_model(config)
    target.parent.mkdir(parents=True, exist_ok=True)
    warmup.make_initial(config, model, tokenizer, problems, target, processes)


if __name__ == "__main__":
    make_initial(load_config(sys.argv[2], sys.argv[3:]), Path(sys.argv[1]))
