"""Tables: built once, rendered on a terminal, in Markdown and in HTML (bandpo.report.html).

A terminal is narrow and shows an interval as mean ± half its width; a page shows its two ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bandpo.lab.comparison import Comparison, MethodResult, Target
from bandpo.lab.metrics import StudyResult
from bandpo.lab.statistics import Interval

if TYPE_CHECKING:
    import rich.table

Cell = str | int | float | Interval | None

LEGEND = (
    "Means over seeds with 95% intervals over seeds. Differences are to {reference}, paired by seed; p is corrected "
    "for the number of methods by Holm's method. P(better): probability that a run ends above one of {reference}. "
    "Mean reward and clipped (share of the tokens) are over the whole training; entropy is in nats per token, at "
    "the end and where the reward was first half-way between the first and the last of {reference} (same seed); "
    "[0:6] is that of the first six tokens of held-out completions after training. "
    "Target: the final reward of {reference} with the same seed; medians over runs, never if half of them or "
    "more did not get there."
)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading on a page.
        short: Its heading on a terminal; `title` by default.
        form: Format of its numbers.
        terminal, page: Whether it is shown there.
    """

    title: str
    short: str = ""
    form: str = ".3f"
    terminal: bool = True
    page: bool = True


@dataclass(frozen=True)
class Table:
    """A table; the first column names the row.

    Attributes:
        title: Heading on a page.
        columns: What the cells of a row are.
        rows: One cell per column: text, a number, an interval, or None for nothing.
        notes: Text below it.
        short: Heading on a terminal, None for `title`.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    notes: str = ""
    short: str | None = None

    @classmethod
    def of_text(cls, header: Sequence[str], rows: Sequence[Sequence[str]], notes: str = "", title: str = "") -> Table:
        """A table of text cells."""
        return cls([Column(name) for name in header], rows, title, notes)

    @property
    def header(self) -> list[str]:
        """Headings on a page."""
        return [column.title for column in self.columns if column.page]

    @property
    def cells(self) -> list[list[str]]:
        """Rows on a page."""
        return [
            [brackets(cell, column.form) for column, cell in zip(self.columns, row, strict=True) if column.page]
            for row in self.rows
        ]

    def markdown(self) -> list[str]:
        """Its lines in Markdown, without title and notes."""

        def line(cells: Sequence[str]) -> str:
            return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

        align = ["---", *["---:"] * (len(self.header) - 1)]
        return [line(self.header), line(align), *(line(row) for row in self.cells)]

    def terminal(self) -> rich.table.Table:
        """The table for a terminal, without notes."""
        from rich import box
        from rich.table import Column as RichColumn
        from rich.table import Table as RichTable

        shown = [i for i, column in enumerate(self.columns) if column.terminal]
        first, *others = (self.columns[i] for i in shown)
        table = RichTable(
            RichColumn(first.short or first.title, overflow="fold"),
            title=(self.title if self.short is None else self.short) or None,
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        for column in others:
            table.add_column(column.short or column.title, justify="right")
        for row in self.rows:
            table.add_row(*(plus_minus(row[i], self.columns[i].form) for i in shown))
        return table


def brackets(cell: Cell, form: str = ".3f") -> str:
    """'0.512 [0.481, 0.543]', without the brackets if there is no interval, '-' for nothing."""
    if cell is None:
        return "-"
    if isinstance(cell, Interval):
        if cell.low is None or cell.high is None:
            return f"{cell.mean:{form}}"
        return f"{cell.mean:{form}} [{cell.low:{form}}, {cell.high:{form}}]"
    return f"{cell:{form}}" if isinstance(cell, float) else str(cell)


def plus_minus(cell: Cell, form: str = ".3f") -> str:
    """'0.512 ±0.031', without the ± if there is no interval, nothing for nothing."""
    if cell is None:
        return ""
    if isinstance(cell, Interval) and cell.low is not None and cell.high is not None:
        return f"{cell.mean:{form}} ±{(cell.high - cell.low) / 2:.3f}"
    return brackets(cell, form)


def study_tables(comparison: Comparison) -> list[Table]:
    """The two tables on one point of the sweep."""
    return [scores_table(comparison), learning_table(comparison)]


def scores_table(comparison: Comparison) -> Table:
    """One row per method: the metric that decides, and its difference to the reference's."""
    results = comparison.results
    ks = max((tuple(result.pass_at) for result in results if result.pass_at), key=len, default=())
    largest = [k for k in ks[-1:] if comparison.metric != f"pass@{k}"]
    columns = [
        Column("method"),
        Column("seeds"),
        Column(comparison.metric),
        *(Column(f"pass@{k}", page=False) for k in largest),  # a terminal has room for one
        Column(f"minus {comparison.reference}", "difference", "+.3f"),
        Column("p (Holm)", "p"),
        Column("P(better)", form=".2f"),
        *(Column(f"pass@{k}", terminal=False) for k in ks),
    ]
    rows = [
        [
            result.method + (f" ({result.failed} failed)" if result.failed else ""),
            len(result.seeds),
            result.final,
            *((result.pass_at or {}).get(k) for k in largest),
            result.difference,
            result.p_corrected,
            result.improvement,
            *((result.pass_at or {}).get(k) for k in ks),
        ]
        for result in results
    ]
    return Table(columns, rows, _title("Scores", comparison), short=point_text(comparison.point, " "))


def learning_table(comparison: Comparison) -> Table:
    """One row per method: how it learned, and the compute to reach the reference's final reward."""
    parts = dict.fromkeys(part for result in comparison.results for part in result.parts or ())
    several = [name for name in ("distinct", "spread") if any(getattr(result, name) for result in comparison.results)]
    columns = [
        Column("method"),
        Column("mean reward"),
        Column(f"minus {comparison.reference}", form="+.3f", terminal=False),
        Column("p (Holm)", terminal=False),
        Column("clipped"),
        Column("entropy, end"),
        Column("entropy, half-way", "half-way"),
        *(Column({"distinct": "different right answers", "spread": "their entropy"}[name], name) for name in several),
        *(Column(f"held-out entropy [{part}]", f"[{part}]") for part in parts),
        Column("target reached", "target"),
        Column("updates"),
        Column("tokens", terminal=False),
        Column("seconds"),
    ]
    rows = [
        [
            *_learning_cells(result),
            *(getattr(result, name) for name in several),
            *((result.parts or {}).get(part) for part in parts),
            *_target_cells(result.target),
        ]
        for result in comparison.results
    ]
    return Table(columns, rows, _title("Learning", comparison), short=point_text(comparison.point, " "))


def _learning_cells(result: MethodResult) -> list[Cell]:
    return [
        result.method,
        result.training_reward,
        result.training_reward_difference,
        result.training_reward_p_corrected,
        result.clip_fraction,
        result.end_entropy,
        result.halfway_entropy,
    ]


def _target_cells(target: Target | None) -> list[Cell]:
    if target is None:
        return [None] * 4
    medians = [target.medians[kind] for kind in ("updates", "tokens", "seconds")]
    reached = f"{target.reached} of {target.runs}"
    return [reached, *("never" if median is None else f"{median:,.0f}" for median in medians)]


def failures_table(result: StudyResult) -> Table | None:
    """The runs that failed and why; None if there are none."""
    if not result.failed:
        return None
    rows = [[run.method, point_text(run.point), str(run.seed), run.error] for run in result.failed]
    return Table.of_text(["failed run", "place", "seed", "why"], rows)


def point_text(point: dict[str, str], equals: str = " = ") -> str:
    """A point of the sweep in words, empty without a sweep."""
    return ", ".join(f"{axis}{equals}{label}" for axis, label in point.items())


def _title(kind: str, comparison: Comparison) -> str:
    return ", ".join(filter(None, [kind, point_text(comparison.point)]))
