"""One table, three renderings."""

import io

from rich.console import Console

from bandpo.lab.comparison import Comparison, MethodResult, Target
from bandpo.lab.statistics import Interval
from bandpo.lab.tables import Column, Table, learning_table, scores_table
from bandpo.report.html import Page, Section

TABLE = Table(
    [Column("method"), Column("mean reward", "reward"), Column("minus A", form="+.2f", terminal=False), Column("n")],
    [["A", Interval(0.5, 0.25, 1.0), None, 3], ["B|", Interval(0.5, None, None), Interval(0.1, 0.0, 0.2), None]],
    title="Scores",
    notes="Over seeds.",
)


def on_terminal(table):
    stream = io.StringIO()
    Console(file=stream, width=200).print(table.terminal())
    return [line.split() for line in stream.getvalue().splitlines() if line.strip()]


def test_a_terminal_shows_half_widths_and_its_own_columns():
    title, header, _, first, second = on_terminal(TABLE)
    assert title == ["Scores"]
    assert header == ["method", "reward", "n"]
    assert first == ["A", "0.500", "±0.375", "3"]
    assert second == ["B|", "0.500"]


def test_markdown_and_html_show_the_same_cells():
    assert TABLE.markdown() == [
        "| method | mean reward | minus A | n |",
        "| --- | ---: | ---: | ---: |",
        "| A | 0.500 [0.250, 1.000] | - | 3 |",
        r"| B\| | 0.500 | +0.10 [+0.00, +0.20] | - |",
    ]
    html = Page("P", "", [Section("s", "S", [TABLE])]).html()
    for row in TABLE.cells:
        assert f'<th scope="row">{row[0]}</th>' in html
        for cell in row[1:]:
            assert f"<td>{cell.replace(', ', ',' + chr(160))}</td>" in html
    assert '<p class="note">Over seeds.</p>' in html
    assert "### Scores" in Page("P", "", [Section("s", "S", [TABLE])]).markdown()


def test_the_tables_of_a_study():
    reference = MethodResult("A", [0, 1], 0, Interval(0.5, 0.4, 0.6), {2: Interval(0.7, 0.6, 0.8)})
    other = MethodResult(
        "B",
        [0],
        1,
        Interval(0.6, None, None),
        {2: Interval(0.8, None, None)},
        difference=Interval(0.1, None, None),
        p_corrected=0.25,
        improvement=1.0,
        clip_fraction=Interval(0.01, None, None),
        target=Target(0, 1, {"updates": None, "tokens": 12345.0, "seconds": 2.5}),
    )
    comparison = Comparison({"updates": "16"}, "mean@2", "A", [reference, other])
    scores, learning = scores_table(comparison), learning_table(comparison)
    assert (scores.title, learning.title) == ("Scores, updates = 16", "Learning, updates = 16")
    assert scores.header == ["method", "seeds", "mean@2", "minus A", "p (Holm)", "P(better)", "pass@2"]
    assert scores.cells[1] == ["B (1 failed)", "1", "0.600", "+0.100", "0.250", "1.00", "0.800"]
    assert on_terminal(scores)[:2] == [
        ["updates", "16"],
        ["method", "seeds", "mean@2", "pass@2", "difference", "p", "P(better)"],
    ]
    assert learning.cells[1][4:] == ["0.010", "-", "-", "0 of 1", "never", "12,345", "2"]
    deciding = Comparison({}, "pass@2", "A", [reference, other])
    assert on_terminal(scores_table(deciding))[0] == ["method", "seeds", "pass@2", "difference", "p", "P(better)"]
