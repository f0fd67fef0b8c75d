"""The list of subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from bandpo.cli import (
    bounds,
    compare,
    doctor,
    eval,
    explore,
    grade,
    inspect,
    launch,
    recipes,
    report,
    samples,
    simulate,
    tasks,
    train,
)

app = typer.Typer(
    name="bandpo",
    help="Probability-aware trust regions for reinforcement learning of language models.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Add --debug to any command for a full traceback.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import bandpo

        typer.echo(f"bandpo {bandpo.__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.command("train")(train.train)
app.command("eval")(eval.evaluate)
app.command("compare")(compare.compare)
app.command("samples")(samples.samples)
app.command("simulate")(simulate.simulate)
app.add_typer(launch.app, name="launch")
app.command("report")(report.report)
app.command("inspect")(inspect.inspect)
app.command("bounds")(bounds.bounds)
app.command("explore")(explore.explore)
app.command("recipes")(recipes.recipes)
app.command("grade")(grade.grade)
app.command("tasks")(tasks.tasks)
app.command("doctor")(doctor.doctor)
