"""bandpo train"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bandpo.runs.config import RunConfig


def train(
    recipe: Annotated[
        str, typer.Argument(help="Recipe by name (see `bandpo recipes`), path of a .yaml file, or run directory.")
    ],
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
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume the run in --output, or in the run directory RECIPE."),
    ] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the resolved configuration and stop.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Load everything, print what the run would do and need; do not train."),
    ] = False,
) -> None:
    """Train a model by a recipe, evaluate it before and after, and write a run directory with a report.

    An interrupted run resumes from its last good checkpoint by `bandpo train RUN --resume`, and ends like one that
    was never interrupted. The same command line with --output and --resume starts a run or resumes it.
    """
    from bandpo.cli.quiet import quiet_libraries
    from bandpo.runs.config import load_config

    quiet_libraries()
    if dry_run:
        _say("checking the settings")
    if (Path(recipe) / "config.yaml").is_file():
        recipe, output = _run_to_resume(recipe, overrides, output, resume)
    elif resume and output is None:
        raise ValueError(
            f"--resume needs a run directory as RECIPE or as --output, and {recipe!r} is none: it has no config.yaml"
        )
    config = load_config(recipe, overrides)
    if show:
        import yaml

        from bandpo.runs.build import check_args

        check_args(config)
        typer.echo(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), nl=False)
        return
    from rich.console import Console

    if dry_run:
        _print_plan(config, Console())
        return

    from bandpo.runs.job import run_training
    from bandpo.runs.summary import print_summary

    console = Console()
    if output is None:
        output = Path("runs") / f"{Path(recipe).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    summary = run_training(config, output, console, resume=resume)
    if int(os.environ.get("RANK", 0)) == 0:
        from bandpo.report.pages import write_report

        write_report([output])
        print_summary(summary, output, console)


def _say(text: str) -> None:
    """A line of progress, beside the page on standard output."""
    typer.echo(f"{text} ...", err=True)


def _print_plan(config: RunConfig, console: Console) -> None:
    from bandpo.cli.plan import print_plan
    from bandpo.runs.plan import make_plan

    plan = make_plan(config, _say)
    print_plan(plan, console)
    if plan.obstacles:
        raise typer.Exit(1)


def _run_to_resume(run: str, overrides: list[str] | None, output: Path | None, resume: bool) -> tuple[str, Path]:
    config = f"{Path(run) / 'config.yaml'}"
    if not resume:
        raise ValueError(
            f"{run!r} is a run: resume it with --resume, or start a new one with its settings by {config}"
        )
    if overrides or output is not None:
        given = overrides[0] if overrides else f"--output {output}"
        raise ValueError(f"a run resumes with its own settings in its own directory, so {given!r} cannot be given")
    return config, Path(run)
