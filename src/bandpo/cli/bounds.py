"""bandpo bounds"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PROBABILITIES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 0.9, 0.99)


def bounds(
    radius: Annotated[float | None, typer.Option(help="Radius of the trust region.", show_default="0.05")] = None,
    divergence: Annotated[str, typer.Option(help="kl, reverse_kl, tv, chi2, ...")] = "kl",
    cap: Annotated[float | None, typer.Option(help="Largest ratio allowed.", show_default="none")] = None,
    floor: Annotated[float | None, typer.Option(help="Smallest lower bound.", show_default="none")] = None,
    p: Annotated[list[float] | None, typer.Option(help="Old probability; may be given several times.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also plot them, with fixed clips, to this PNG or SVG file.")
    ] = None,
) -> None:
    """Show the ratio bounds of Band for tokens of some probabilities."""
    for value in p or []:
        if not 0 < value <= 1:
            raise ValueError(f"--p is {value}; allowed: a probability above 0 and at most 1")
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise ValueError(f"--plot is {str(plot)!r}; allowed: a name that ends in .png or .svg")

    import torch
    from rich.console import Console
    from rich.table import Table

    from bandpo.core.checks import DEFAULT_RADIUS
    from bandpo.core.rivals import Clip
    from bandpo.core.rules import Band

    rule = Band(DEFAULT_RADIUS if radius is None else radius, divergence, cap=cap, floor=floor)
    probabilities = torch.tensor(p or PROBABILITIES, dtype=torch.float64)
    limits = rule.bounds(probabilities.log())
    table = Table("p", "lower", "upper", "p x lower", "p x upper", box=None, padding=(0, 2))
    for row in torch.stack([probabilities, limits.lower, limits.upper], 1).tolist():
        old, low, high = row
        table.add_row(*(f"{value:.4g}" for value in (old, low, high, old * low, old * high)))
    Console().print(table)
    if plot is not None:
        from bandpo.report.pages import plot_bounds
        from bandpo.report.why import name_rule

        plot_bounds({"Clip 0.2/0.2": Clip(), "Clip-Higher 0.2/0.28": Clip(0.2, 0.28), name_rule(rule): rule}, plot)
        typer.echo(f"wrote {plot}")
