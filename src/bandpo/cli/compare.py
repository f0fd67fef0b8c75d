"""bandpo compare"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bandpo.lab.runner import StudyRunner


def compare(
    study: Annotated[
        str,
        typer.Argument(
            help="Study by name, path of a .yaml file, or the directory (or metrics.json) of one that has run, to "
            "print its tables again. Without it, list the studies.",
        ),
    ] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="A key of the study (seeds=[0,1]) or a setting of all its runs (train.max_steps=40).",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Directory of the study; default runs/STUDY.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Runs in parallel; default: what the machine can handle.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and stop.")] = False,
) -> None:
    """Run methods against each other over seeds, and print the differences.

    After an interruption the same command resumes: no run is repeated, and failed runs are retried.
    """
    if not study:
        _list_studies()
        return
    from rich.console import Console

    from bandpo.lab.metrics import METRICS, StudyResult
    from bandpo.lab.study import load_study
    from bandpo.lab.summary import print_study

    console = Console()
    done = Path(study) / METRICS if Path(study).is_dir() else Path(study)
    if done.name == METRICS:
        print_study(StudyResult.load(done), console)
        return

    from bandpo.lab.runner import StudyRunner

    if workers is not None:
        overrides = [*(overrides or []), f"workers={workers}"]
    output = output or Path("runs") / Path(study).stem
    runner = StudyRunner(load_study(study, overrides), Path(study).stem, output, console)
    if dry_run:
        _print_runs(runner)
        return
    try:
        result = runner.run()
    except (KeyboardInterrupt, SystemExit):
        console.print("interrupted; the same command resumes")
        raise
    print_study(result, console)
    if len(result.finished) < len(result.runs):
        raise typer.Exit(1)


def _list_studies() -> None:
    # Straight from their files, because validating them would import PyTorch.
    from bandpo.lab.study import STUDIES, study_names
    from bandpo.settings import find_yaml, parse_mapping

    names = study_names()
    for name in names:
        description = parse_mapping(find_yaml("study", name, STUDIES)[0], f"study {name!r}").get("description", "")
        typer.echo(f"{name:{max(map(len, names))}}  {description}")


def _print_runs(runner: StudyRunner) -> None:
    states = [(run, runner.state(run)) for run in runner.study.runs()]
    for run, state in states:
        extra = runner.calibrated(run)
        settings = runner.settings(run, extra or {})
        after = "" if extra is not None else "  (after calibration)"
        typer.echo(f"{state:9} {run.title}: {' '.join(runner.command(run, settings, None))}{after}")
    left = sum(state != "finished" for _, state in states)
    seconds = runner.seconds_left([], [], left)
    time = "" if seconds is None else f", about {max(1, round(seconds / 60))} min without pilot runs"
    typer.echo(f"{left} of {len(states)} runs to do, {runner.workers} in parallel{time}")
