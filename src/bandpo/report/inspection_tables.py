"""The findings of `bandpo inspect` as tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bandpo.core.checks import DEFAULT_RADIUS
from bandpo.lab.tables import Cell, Column, Table
from bandpo.report.inspection import DIVERGENCES, Inspection, Place
from bandpo.report.token_logs import LOGPS, FileSummary, one_line, quoted
from bandpo.report.why import bin_labels

COLUMNS = {
    "old_logps": "anchor",
    "logps": "current",
    "sampling_logps": "sampler",
    "entropy": "entropy",
    "old_entropy": "anchor's entropy",
    "advantages": "advantage",
}
LISTED = 12  # files
NAMES = {"kl": "KL", "tv": "TV", "chi2": "chi2"}


def files_table(files: Sequence[FileSummary]) -> Table:
    """The contents of each file, and its columns; files without a token that counts are reported elsewhere."""
    files = [file for file in files if file.format]
    folder = os.path.commonpath([str(Path(file.file).absolute().parent) for file in files] or ["."])
    names = ("file", "format", "completions", "tokens", "masked", "skipped", "log-probs of", "also")
    columns = [Column(name, {"completions": "samples", "skipped": "skip"}.get(name, "")) for name in names]
    rows = [_file(os.path.relpath(file.file, folder), file) for file in files[:LISTED]]
    if rest := files[LISTED:]:
        sums = FileSummary("", "")
        for one in rest:
            sums.completions, sums.tokens = sums.completions + one.completions, sums.tokens + one.tokens
            sums.masked, sums.left_out = sums.masked + one.masked, sums.left_out + one.left_out
            sums.having = {name: count + one.having[name] for name, count in sums.having.items()}
        rows.append(_file(f"and {len(rest)} more", sums))
    partial = any("(" in str(cell) for row in rows for cell in row[-2:])
    note = "a number in parentheses: how many of the tokens have it" if partial else ""
    return Table(columns, rows, f"Tokens of {one_line(folder)}", note)


def _file(name: str, file: FileSummary) -> list[Cell]:
    def having(names: Sequence[str]) -> str:
        some = [(COLUMNS[x], file.having[x]) for x in names if file.having[x]]
        return ", ".join(x if count == file.tokens else f"{x} ({count:,})" for x, count in some) or "-"

    counts: list[Cell] = [file.completions, file.tokens, file.masked, file.left_out]
    return [
        one_line(name),
        file.format or "-",
        *counts,
        having(LOGPS),
        having([x for x in COLUMNS if x not in LOGPS]),
    ]


def inspection_tables(found: Inspection) -> list[Table]:
    """All tables with content, in the order of the questions."""
    tables = [
        _rules(found),
        _probabilities(found),
        _moves(found),
        _same_share(found),
        _same_bounds(found),
        _ratios(found),
        _sampling(found),
    ]
    most = max(found.moves, key=lambda one: one.held + one.freed, default=None)
    chosen = [found.reference, *([most.to] if most is not None and most.held + most.freed else [])]
    for place in found.places:
        if place.rule in chosen:
            tables.append(_places(f"Tokens clipped by {place.rule}", "token", place.texts, quote=True))
            tables.append(_places(f"Positions clipped by {place.rule}", "position", place.positions))
    return [table for table in tables if table.rows]


def _rules(found: Inspection) -> Table:
    columns = [Column("rule"), Column("clipped", form=".2%"), Column("below", form=","), Column("above", form=",")]
    columns.append(Column("same share as clip of", "as many as clip", ".3g"))
    rows: list[list[Cell]] = [[r.rule, r.share, r.below, r.above, r.epsilon] for r in found.rules]
    note = f"{found.edge}. Shares of the {found.judged:,} tokens with an advantage other than 0"
    if found.no_advantage:
        note += f"; {found.no_advantage:,} have no advantage logged: for them, outside the bounds counts as clipped"
    return Table(columns, rows, "What each rule would have clipped", note)


def _probabilities(found: Inspection) -> Table:
    labels = bin_labels(found.probabilities)
    ends = [f"<{end:g}" if end < 1 else "to 1" for end in found.probabilities[1:]]
    columns = [Column("rule"), *(Column(label, end, ".1%") for label, end in zip(labels, ends, strict=True))]
    rows: list[list[Cell]] = [[r.rule, *r.share_by_probability] for r in found.rules]
    return Table(columns, rows, "The same by the anchor's p", "empty if no token has such a p")


def _moves(found: Inspection) -> Table:
    columns = [Column("to"), *(Column(name, form=",") for name in ("freed", "held", "both", "neither"))]
    rows: list[list[Cell]] = [[m.to, m.freed, m.held, m.both, m.neither] for m in found.moves]
    note = "tokens; freed: clipped only by the first, held: only by the second, both: by both"
    return Table(columns, rows, f"From {found.reference} to", note)


def _same_share(found: Inspection) -> Table:
    columns = [
        Column("Band"),
        Column("radius", form=".3g"),
        Column("clips", form=".3%"),
        Column("wanted", form=".3%"),
    ]
    rows: list[list[Cell]] = [[NAMES[s.divergence], s.radius, s.share, s.wanted] for s in found.same_share]
    return Table(columns, rows, f"The radius that clips as many of these tokens as {found.reference}")


def _same_bounds(found: Inspection) -> Table:
    columns = [Column("p", form="g")]
    columns += [Column(f"{NAMES[d]} radius", form=".3g") for d in DIVERGENCES]
    columns += [
        Column(f"epsilon of {NAMES[d]} {DEFAULT_RADIUS:g}", f"{NAMES[d]} {DEFAULT_RADIUS:g}: eps", ".3g")
        for d in DIVERGENCES
    ]
    rows: list[list[Cell]] = [
        [b.p, *(b.radii[d] for d in DIVERGENCES), *(b.upper[d] for d in DIVERGENCES)] for b in found.same_bounds
    ]
    epsilon = found.same_bounds[0].epsilon if found.same_bounds else 0.0
    note = "empty if p times the bound exceeds 1: the simplex ends before it"
    return Table(columns, rows, f"The radius with the upper bound {1 + epsilon:g} at p, and the reverse", note)


def _ratios(found: Inspection) -> Table:
    columns = [
        Column("ratio"),
        Column("tokens", form=","),
        Column("mean KL estimate", "KL", ".3g"),
        Column("largest |log r|", "max |log r|", ".3g"),
        Column("r < 0.8", form=".2%"),
        Column("r > 1.2", form=".2%"),
    ]
    rows: list[list[Cell]] = [[r.ratio, r.tokens, r.kl, r.largest, r.below, r.above] for r in found.ratios]
    equal = [r.ratio for r in found.ratios if r.same]
    note = f"equal on every token: {', '.join(equal)}" if equal else ""
    if "current / anchor" in equal:
        note += (
            "; logged in the first update of a rollout, or there is one update per rollout: nothing can be clipped"
        )
    return Table(columns, rows, "How far the policies are apart", note)


def _sampling(found: Inspection) -> Table:
    columns = [Column("test"), Column("verdict"), Column("evidence"), Column("numbers")]
    rows = [[e.test, e.verdict, e.strength, e.text] for e in found.sampling.evidence]
    return Table(columns, rows, "Were the tokens drawn from the full distribution?")


def _places(title: str, kind: str, places: Sequence[Place], quote: bool = False) -> Table:
    columns = [Column(kind), Column("clipped", form=","), Column("of all clipped", form=".1%")]
    columns += [Column("of clipped A > 0", form=".1%"), Column("share clipped", form=".1%")]
    rows: list[list[Cell]] = [
        [quoted(p.name) if quote else p.name, p.clipped, p.share, p.share_positive, p.own] for p in places
    ]
    return Table(columns, rows, title)
