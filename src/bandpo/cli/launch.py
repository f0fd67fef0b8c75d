"""bandpo launch"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Start a run in a cluster framework.")


@app.command("verl")
def verl(
    recipe: Annotated[
        str | None, typer.Argument(help="MODEL/METHOD, e.g. qwen2.5-3b-instruct/band-kl; without it, list them.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings that differ: rule.radius=0.1, or any key of verl, e.g. trainer.n_gpus_per_node=4.",
        ),
    ] = None,
    cluster: Annotated[
        str, typer.Option(help="single-node, multi-node or cpu (to try a configuration without a GPU).")
    ] = "single-node",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Compose and validate; print the command and what the run needs.")
    ] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the full configuration and stop.")] = False,
    address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_API_SERVER_ADDRESS",
            help="Dashboard of a running Ray cluster to submit to, e.g. http://HEAD:8265; without it verl runs here.",
        ),
    ] = None,
) -> None:
    """Run one of the paper's recipes in verl on Ray."""
    from bandpo.integrations import verl_launch as launch

    if recipe is None:
        typer.echo(f"models:  {', '.join(launch.choices('base_model'))}")
        typer.echo(f"methods: {', '.join(launch.choices('method'))}")
        return
    if cluster == "cpu":
        launch.prepare_cpu()
    chosen = launch.recipe_overrides(recipe, cluster) + [launch.expand(override) for override in overrides or []]
    config = launch.compose(chosen)
    if show:
        typer.echo(launch.as_yaml(config), nl=False)
        return
    packages, files = launch.missing_packages(config), launch.missing_data(config)
    if dry_run or address:
        _print_plan(launch.needs(config), packages, files, launch.command(chosen))
    if dry_run:
        return
    if address:
        job = launch.submit(chosen, address)
        typer.echo(f"submitted {job}; follow it with: ray job logs --address {address} --follow {job}")
        return
    if packages or files:
        lacking = [*(f"package {p}" for p in packages), *(f"file {f}" for f in files)]
        raise ValueError(f"this run cannot start here; missing: {'; '.join(lacking)}")
    raise typer.Exit(launch.run_local(chosen))


def _print_plan(needs: object, packages: list[str], files: list[str], command: list[str]) -> None:
    import shlex

    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for what, value in needs:  # type: ignore[attr-defined]
        table.add_row(what, value)
    if packages:
        table.add_row("not installed here", "\n".join(packages))
    if files:
        table.add_row("not found here", "\n".join([*files, "(bandpo launch verl-data writes them)"]))
    Console().print(table, highlight=False)
    typer.echo(f"\npython {shlex.join(command)}")


@app.command("verl-data")
def verl_data(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME[=FILE]]...",
            help="Data sets (`bandpo tasks` lists them), from the hub or a file; by default the paper's five.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder to write NAME.parquet into.")] = Path("data/verl"),
    template: Annotated[
        str, typer.Option(help="User message: a template's name, or a string with {question}.")
    ] = "boxed",
    hub_columns: Annotated[
        bool,
        typer.Option("--hub-columns", help="Files have the columns of the hub's data set, not question and answer."),
    ] = False,
) -> None:
    """Write data sets as the parquet files that the recipes for verl read."""
    from bandpo.integrations import verl_data as data

    for item in names or data.PAPER:
        name, equals, path = item.partition("=")
        problems = data.read_problems(name, path if equals else None, hub_columns)
        target = output / f"{name}.parquet"
        data.write_parquet(data.verl_rows(problems, name, template), target)
        typer.echo(f"{target}  {len(problems)} problems")
