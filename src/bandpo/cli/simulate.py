"""bandpo simulate"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ALL = "all"


def simulate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]... [KEY=VALUE]...",
            help="Simulations by name or path of a .yaml file, or all of the package's; then settings that differ, "
            "e.g. rollouts=20 or rules.mine='{name: band, radius: 0.1}'. Without a name, list the simulations.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Also write NAME.json and NAME.png into this directory.", show_default="tables only"),
    ] = None,
) -> None:
    """Show what clip rules do to success and entropy in an exact softmax model, in seconds on a CPU.

    If a simulation has expected numbers, they are printed next to the observed ones, with the sampling error.
    """
    from bandpo.lab.simulation import load_simulation, simulation_names

    given = arguments or []
    names = [argument for argument in given if "=" not in argument]
    if not names:
        if given:
            raise ValueError(f"{given[0]!r} comes without a simulation; known: {', '.join(simulation_names())}")
        for name in simulation_names():
            typer.echo(f"{name:{max(map(len, simulation_names()))}}  {load_simulation(name).description}")
        return
    overrides = [argument for argument in given if "=" in argument]
    wanted = simulation_names() if names == [ALL] else names
    settings = {Path(name).stem: load_simulation(name, overrides) for name in wanted}
    if len(settings) < len(wanted):
        raise ValueError(f"names are {', '.join(wanted)}; allowed: distinct names")
    files = {} if output is None else {name: output / f"{name}.json" for name in settings}
    for file in files.values():
        if file.exists():
            raise ValueError(f"{str(file)!r} exists and is not overwritten; choose another --output")

    from rich.console import Console

    from bandpo.lab.bandit import simulate as run
    from bandpo.progress import make_progress
    from bandpo.report.drawing import save
    from bandpo.report.simulation import simulation_picture, simulation_tables

    console = Console()
    for name, one in settings.items():
        with make_progress(console) as progress:
            task = progress.add_task(name, total=one.rollouts * len(one.rules), figures="")
            result = run(one, name, lambda label, done: progress.update(task, advance=1, figures=label))  # noqa: B023
        for table in simulation_tables(result):
            console.print(table.terminal())
            if table.notes:
                console.print(table.notes, markup=False, highlight=False)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            result.save(files[name])
            save(simulation_picture(result), files[name].with_suffix(".png"), columns=3)
            console.print(f"wrote {files[name]} and {files[name].with_suffix('.png').name}", highlight=False)
