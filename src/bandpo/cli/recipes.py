"""bandpo recipes"""

from __future__ import annotations


def recipes() -> None:
    """List the recipes that `bandpo train` knows."""
    from rich.console import Console
    from rich.table import Table

    from bandpo.runs.config import read_recipe, recipe_names

    table = Table("recipe", "what it does", box=None)
    for name in recipe_names():
        table.add_row(name, read_recipe(name).get("description", ""))
    Console().print(table)
