"""Logged tokens for the page: strict JSON of anything that `bandpo inspect` reads.

Columns are little-endian arrays in base64: a third shorter than decimals and exact, so that the page and
`bandpo inspect` agree on tokens at the edge of a rule.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bandpo.report.dumps import read_log
from bandpo.report.inspection import POSITIONS, choose_edge
from bandpo.report.ledger import entropy_change
from bandpo.report.token_logs import ENTROPIES, LOGPS, TokenLog

LIMIT = 100_000  # tokens that a page shows; 40 bytes each
LISTED = 200  # problems
LONGEST = 300  # characters of a token


def token_data(
    paths: Sequence[Path], decode: Callable[[int], str] | None = None, limit: int = LIMIT
) -> dict[str, object]:
    """The tokens of files and directories, as static/tokens.js expects them.

    Returns:
        `tokens`, `completions` and `prompts`, the numbers in the log; `edge`, the columns of the ratio and a sentence
        (`bandpo.report.inspection.Edge`), or None; `files`, `problems` and `notes` of the log; `left_out`, a
        sentence if it has more tokens than `limit`, else "". Of the N tokens and S completions that are shown:
        `texts` (V), `kinds` (N, index into `texts`), `columns` (name -> N values, None where none was logged; with
        `effect`, the change of the entropy by `bandpo.report.ledger`), `positions` (N), `stretches` (starts of
        position ranges), `starts` (S + 1, first token of each completion), `groups` (S, index into `names`,
        -1 unknown), `names` (texts of the prompts), `places` (S times number of the file and line). Arrays of numbers
        are {"type", "base64"}.

    Raises:
        ValueError: If a path does not exist or contains no log, or the limit is not above 0.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}; allowed: a number of tokens >= 1")
    log = read_log(paths, decode)
    rows = _shown(log, limit)
    where = np.flatnonzero(np.isin(log.completion, rows))[:limit]
    edge = choose_edge(log)
    texts, kinds = np.unique(log.tokens[where], return_inverse=True)
    groups, members = np.unique(log.groups[rows], return_inverse=True)
    unknown = int(len(groups) > 0 and groups[0] == -1)
    ends = np.searchsorted(log.completion[where], rows, side="right")
    return {
        "tokens": len(log),
        "completions": len(log.groups),
        "prompts": len(set(log.groups.tolist()) - {-1}),
        "edge": None if edge is None else asdict(edge),
        "files": [asdict(file) | {"file": _clean(file.file)} for file in log.files],
        "problems": [_sentence(problem) for problem in log.problems[:LISTED]],
        "more_problems": max(0, len(log.problems) - LISTED),
        "notes": [_sentence(note) for note in log.notes],
        "left_out": _left_out(log, where, rows),
        "texts": [_clean(log.texts[kind][:LONGEST]) for kind in texts],
        "kinds": _packed(kinds),
        "columns": _columns(log, where),
        "positions": _packed(log.positions[where]),
        "stretches": list(POSITIONS),
        "starts": _packed(np.concatenate([np.zeros(1, np.int64), ends])),
        "groups": (members - unknown).tolist(),
        "names": [_clean(log.prompts[group]) for group in groups[unknown:]],
        "places": log.places[rows].tolist(),
    }


def _shown(log: TokenLog, limit: int) -> NDArray[np.int64]:
    """Completions to show: all of them, or whole prompts spread evenly over the log, up to the limit."""
    if len(log) <= limit:
        return np.arange(len(log.groups))
    lengths = np.bincount(log.completion, minlength=len(log.groups))
    alone = log.groups < 0
    keys = np.where(alone, len(log.groups) + np.arange(len(log.groups)), log.groups)
    _, first, unit = np.unique(keys, return_index=True, return_inverse=True)
    sizes = np.bincount(unit, lengths)
    order = np.argsort(first, kind="stable")  # units in the order of the log
    share = limit / len(log)
    due = np.floor(np.cumsum(sizes[order]) * share / sizes.mean())  # one more whenever a whole unit is due
    chosen = order[np.flatnonzero(np.diff(due, prepend=0) > 0)]
    chosen = chosen[np.cumsum(sizes[chosen]) <= limit]
    if not len(chosen):  # the first does not fit: take as many of its completions as do, or part of one
        rows = np.flatnonzero(unit == order[0])
        return rows[: max(1, int((np.cumsum(lengths[rows]) <= limit).sum()))]
    return np.flatnonzero(np.isin(unit, chosen))


def _left_out(log: TokenLog, where: NDArray[np.int64], rows: NDArray[np.int64]) -> str:
    if len(where) == len(log):
        return ""
    return (
        f"{len(where):,} of {len(log):,} tokens are shown, {len(rows):,} of {len(log.groups):,} completions, spread "
        "over all files. Every count below is of these; bandpo inspect counts all."
    )


def _columns(log: TokenLog, where: NDArray[np.int64]) -> dict[str, dict[str, str] | None]:
    columns = {name: log.columns[name][where] for name in (*LOGPS, *ENTROPIES, "advantages")}
    given = [log.columns[name][where] for name in ("logps", "old_logps", "entropy", "advantages", "mean_slope")]
    with np.errstate(over="ignore", invalid="ignore"):
        columns["effect"] = entropy_change(*given).astype(np.float32)
    return {name: _packed(values) if np.isfinite(values).any() else None for name, values in columns.items()}


def _packed(values: NDArray[np.generic]) -> dict[str, str]:
    """An array as JSON: float32, or the shortest unsigned integers that hold it."""
    kind = "f4"
    if values.dtype.kind != "f":
        largest = int(values.max()) if values.size else 0
        kind = next(k for k, top in (("u1", 2**8), ("u2", 2**16), ("u4", 2**32)) if largest < top)
    return {"type": kind, "base64": base64.b64encode(values.astype(f"<{kind}").tobytes()).decode("ascii")}


def _sentence(found: object) -> dict[str, object]:
    return {key: _clean(value) if isinstance(value, str) else value for key, value in vars(found).items()}


def _clean(text: str) -> str:
    """Text that UTF-8 can encode: a lone surrogate as its code."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
