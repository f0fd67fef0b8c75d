"""bandpo train"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Argument(help="Recipe by name (see `bandpo recipes`) or path of a .yaml file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings that differ from the recipe, e.g. rule.radius=0.1 train.max_steps=40.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Run directory to create; default runs/RECIPE-DATE-TIME.", show_default=False),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the resolved configuration and stop.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Load everything, say what the run would do and need, train nothing.")
    ] = False,
) -> None:
    """Train a model by a recipe, evaluate it before and after, and write a run directory with a report."""
    from bandpo.training.config import load_config

    config = load_config(recipe, overrides)
    if show:
        import yaml

        typer.echo(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), nl=False)
        return
    quiet_libraries()
    from rich.console import Console

    if dry_run:
        from bandpo.training.plan import make_plan, print_plan

        plan = make_plan(config)
        print_plan(plan, Console())
        if plan.obstacles:
            raise typer.Exit(1)
        return

    from bandpo.training.job import run_training
    from bandpo.training.summary import print_summary

    console = Console()
    if output is None:
        output = Path("runs") / f"{Path(recipe).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    summary = run_training(config, output, console)
    print_summary(summary, output, console)


def quiet_libraries() -> None:
    """Progress bars and notices of the libraries would bury the figures that matter."""
    import warnings

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from datasets.utils.logging import disable_progress_bar as disable_datasets_bars
    from transformers.utils import logging

    disable_datasets_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
