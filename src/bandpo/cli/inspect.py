"""bandpo inspect"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bandpo.core.rules import ClipRule
    from bandpo.report.inspection import Inspection
    from bandpo.report.token_logs import TokenLog

SHOWN = 20  # problems


def inspect(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE_OR_DIRECTORY...",
            help="Token logs: of any loop (docs/inspect.md), prime-rl's token_exports, slime's --dump-details, "
            "verl's rollout dumps, batch-STEP.npz, run directories.",
        ),
    ],
    epsilon: Annotated[
        float | None,
        typer.Option(min=0, help="Your fixed clip, with which rules are compared.", show_default="0.2"),
    ] = None,
    epsilon_high: Annotated[float | None, typer.Option(min=0, help="Its upper side.", show_default="epsilon")] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help="Another rule, by name or as a mapping: '{name: band, radius: 0.1}'. May be given several times.",
            show_default="none",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Hub name or directory; decodes logs that have only token ids.", show_default="none"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what clip rules would have done to the tokens that any framework logged."""
    for path in paths:
        if not path.exists():
            raise ValueError(f"{str(path)!r} does not exist; allowed: token logs and directories of them")

    from bandpo.report.dumps import read_log
    from bandpo.report.inspection import inspect_log

    rules, reference = choose_rules(epsilon, epsilon_high, rule or [])
    log = read_log(paths, None if tokenizer is None else load_decoder(tokenizer))
    found = inspect_log(log, rules, reference)
    if as_json:
        typer.echo(as_document(log, found))
    else:
        show(log, found)
    if not len(log) and log.problems:
        raise typer.Exit(1)


def choose_rules(
    epsilon: float | None, epsilon_high: float | None, others: Sequence[str]
) -> tuple[dict[str, ClipRule], str]:
    """The rules by name, the fixed clip in use first, and its name.

    Raises:
        ValueError: If a rule is unknown or has an unknown option.
    """
    from bandpo.core.registry import make_rule
    from bandpo.core.rivals import Clip
    from bandpo.report.why import RIVALS, name_rule, with_rivals
    from bandpo.settings import parse_mapping, read_numbers

    low = 0.2 if epsilon is None else epsilon
    mine = Clip(low, low if epsilon_high is None else epsilon_high)
    reference = next((name for name, rival in RIVALS.items() if rival == mine), name_rule(mine))
    asked = {}
    for text in others:
        options = read_numbers(parse_mapping(text, "--rule")) if ":" in text and "{" in text else {"name": text}
        if "name" not in options:
            raise ValueError(f"--rule {text!r} has no name; allowed: a mapping such as {{name: band, radius: 0.1}}")
        made = make_rule(**options)
        asked[name_rule(made)] = made
    return with_rivals({reference: mine, **asked}), reference


def load_decoder(name: str) -> Callable[[int], str]:
    """Function from token id to text, by a tokenizer from the hub or a directory.

    Raises:
        ValueError: If it cannot be loaded.
    """
    from functools import cache

    from bandpo.cli.quiet import quiet_libraries
    from bandpo.words import first_line

    quiet_libraries()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"--tokenizer is {name!r}, which cannot be loaded: {first_line(error)}") from error
    size = len(tokenizer)

    @cache
    def decode(token: int) -> str:
        return str(tokenizer.decode([token])) if 0 <= token < size else f"#{token}"

    return decode


def as_document(log: TokenLog, found: Inspection) -> str:
    """Everything as strict JSON."""
    from dataclasses import asdict

    from bandpo.files import to_json

    files = {name: [asdict(one) for one in getattr(log, name)] for name in ("files", "problems", "notes")}
    counts = {"tokens": len(log), "completions": len(log.groups), "prompts": len(set(log.groups.tolist()) - {-1})}
    return to_json({**counts, **files, **asdict(found)}, indent=2)


def show(log: TokenLog, found: Inspection) -> None:
    """Tables on the terminal; log contents are never treated as markup."""
    from rich.console import Console

    from bandpo.report.inspection_tables import files_table, inspection_tables
    from bandpo.report.token_logs import one_line

    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=False)
    for note in log.notes:
        console.print(one_line(f"{note.file} {note.text}."))
    for problem in log.problems[:SHOWN]:
        console.print(one_line(f"{problem}."), style="yellow")
    if len(log.problems) > SHOWN:
        console.print(f"... and {len(log.problems) - SHOWN:,} more problems; --json lists all.", style="yellow")
    if not len(log):
        console.print("No token with a log-prob was found.")
        return
    tables = [files_table(log.files), *inspection_tables(found)]
    if not found.rules:
        console.print(f"{found.edge}.")
    for table in tables:
        console.print(table.terminal())
        if table.notes:
            console.print(table.notes)
    for name, why in found.skipped.items():
        console.print(f"{name} is skipped: {why}.")
    console.print(f"Sampling: {found.sampling.text}.")
