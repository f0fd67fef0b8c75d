"""The section on the entropy ledger of recorded batches (needs the `report` extra)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bandpo.core.rules import ClipRule
from bandpo.lab.tables import Cell, Column, Table
from bandpo.report import ledger, why
from bandpo.report.html import Block, Text, visible_token
from bandpo.report.ledger import TokenLedger
from bandpo.training.batches import TokenBatch

LEDGER_TITLE = "Which side of the rule moved entropy, by how much, on which tokens"
UNIT = "1/1000 nats per token and unit of learning rate"
MOVERS = 12  # token strings of a run; for several runs, a third each
NET = "net let in"


def ledger_blocks(
    batches: Mapping[str, Sequence[TokenBatch]],
    rules: Mapping[str, ClipRule],
    own: Mapping[str, ClipRule | None],
) -> list[Block]:
    """Tables by rule, and for each run's own rule by old probability, by token and by position.

    Args:
        batches: Label of the run -> its recorded batches.
        rules: The rules to compare on all of these tokens.
        own: Label -> the rule that the run was trained with; None for TRL's own loss.
    """
    seen = {label: [b for b in recorded if ledger.has_slopes(b)] for label, recorded in batches.items()}
    unseen = sum(map(len, batches.values())) - sum(map(len, seen.values()))
    said: list[Block] = []
    if unseen:
        said.append(Text(f"{unseen} recorded batches have no ledger: they were recorded without the logits."))
    seen = {label: kept for label, kept in seen.items() if kept}
    if not seen:
        return said
    pooled = [batch for kept in seen.values() for batch in kept]
    totals = {name: ledger.whole(rule, pooled) for name, rule in rules.items()}
    mine = {
        label: (rule, kept)
        for label, kept in seen.items()
        if (rule := own.get(label)) is not None and rule.needs <= why.RECORDED
    }
    rows = [[name, *_numbers(total, 0, total.tokens.sum())] for name, total in totals.items()]
    head = [Column("rule"), *_columns()]
    note = (
        f"In {UNIT}, on the recorded tokens, to first order. Let in: tokens that kept their gradient, with A > 0 "
        "(high) and A < 0 (low). Kept out: what tokens clipped above a ratio of 1 (high) and below it (low) would "
        "have added; a side moves entropy by minus that. The sum of the four is the same for every rule."
    )
    tables = [Table(head, rows, "By rule", note)]
    if mine:
        by_bin = {label: ledger.by_probability(*found) for label, found in mine.items()}
        by_place = {label: ledger.by_position(*found) for label, found in mine.items()}
        tables += [_across(by_bin, "By old probability, under the run's own rule"), _movers(mine)]
        tables.append(_across(by_place, "By position in the completion, under the run's own rule"))
    return [*said, *tables]


def _columns() -> list[Column]:
    return [Column(name, form="+.2f") for name in (*ledger.COLUMNS, NET)]


def _numbers(found: TokenLedger, group: int, tokens: int) -> list[Cell]:
    return [1000 * float(x) / max(1, tokens) for x in (*found.entries[group], found.net[group])]


def _across(ledgers: Mapping[str, TokenLedger], title: str) -> Table:
    """One column per group; for several runs, the total let in, and what each side kept out."""
    labels = list(dict.fromkeys(name for found in ledgers.values() for name in found.labels))
    several = len(ledgers) > 1
    rows: list[list[Cell]] = []
    for label, found in ledgers.items():
        numbers = {
            name: _numbers(found, i, found.tokens.sum()) for i, name in enumerate(found.labels) if found.tokens[i]
        }
        shown = (4, 2, 3) if several else range(5)
        for j in shown:
            title_of_row = (*ledger.COLUMNS, NET)[j]
            cells = [numbers[name][j] if name in numbers else None for name in labels]
            rows.append([f"{label}: {title_of_row}" if several else title_of_row, *cells])
    columns = [Column(""), *(Column(name, form="+.2f") for name in labels)]
    return Table(columns, rows, title, f"In {UNIT}; each row adds up to its total over all tokens.")


def _movers(mine: Mapping[str, tuple[ClipRule, Sequence[TokenBatch]]]) -> Table:
    rows: list[list[Cell]] = []
    for label, (rule, kept) in mine.items():
        found = ledger.by_token(rule, kept)
        total = found.tokens.sum()
        largest = found.largest(MOVERS if len(mine) == 1 else MOVERS // 3)
        for i, text in enumerate(largest.labels):
            shown = visible_token(text) if len(mine) == 1 else f"{label}: {visible_token(text)}"
            rows.append([shown, int(largest.tokens[i]), *_numbers(largest, i, total)])
    columns = [Column("token"), Column("count"), *_columns()]
    return Table(columns, rows, "The tokens that moved most, under the run's own rule", f"In {UNIT}.")
