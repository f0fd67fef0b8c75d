"""bandpo grade"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

_CHUNK = 64
_SHOWN = 10


@dataclass(frozen=True)
class Row:
    """One line of the file."""

    line: int
    completion: str
    answer: str
    expected: float | None


@dataclass(frozen=True)
class Verdict:
    """The reward of a row, and the text that was compared with the reference."""

    line: int
    reward: float
    timed_out: bool
    extracted: str | None
    answer: str
    expected: float | None

    @property
    def error(self) -> float:
        """Above 0 for a false positive, below 0 for a false negative."""
        return 0.0 if self.expected is None else self.reward - self.expected


def grade(
    file: Annotated[
        Path, typer.Argument(help="JSON lines with completion, answer and, if known, expected (the right reward).")
    ],
    reward: Annotated[
        str, typer.Option(help="math, exact, last_integer, choice, or your own module:function.")
    ] = "math",
    expressions: Annotated[
        bool, typer.Option("--expressions", help="Print what was compared with the answer for every row.")
    ] = False,
    time_limit: Annotated[float, typer.Option(min=0.01, help="Seconds to grade one completion.")] = 5.0,
    output: Annotated[
        Path | None, typer.Option(help="Write one verdict per row to this new JSON lines file.", show_default="none")
    ] = None,
) -> None:
    """Try a reward on your own completions before training on it.

    If rows have an expected reward, disagreements are counted and shown: a false positive is a completion that gets
    more than expected, a false negative one that gets less.
    """
    from rich.console import Console

    from bandpo.progress import make_progress
    from bandpo.tasks.rewards import resolve_reward

    resolve_reward(reward)
    if output is not None and output.exists():
        raise ValueError(f"--output {str(output)!r} exists; give the name of a new file")
    rows = read_rows(file)
    verdicts: list[Verdict] = []
    with make_progress(Console(stderr=True)) as progress:
        bar = progress.add_task("grading", total=len(rows), figures="")
        for start in range(0, len(rows), _CHUNK):
            verdicts += judge(file, rows[start : start + _CHUNK], reward, time_limit)
            progress.update(bar, completed=len(verdicts))
    if output is not None:
        write_verdicts(output, verdicts)
    print_verdicts(verdicts, expressions)


def read_rows(file: Path) -> list[Row]:
    """The rows of a JSON lines file.

    Raises:
        ValueError: If the file cannot be read or a line is invalid; the message names the line and the key.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(f"cannot read {str(file)!r}: {reason}") from error
    rows = [_row(f"{file}, line {n}", n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not rows:
        raise ValueError(f"{str(file)!r} has no rows")
    without = [row.line for row in rows if row.expected is None]
    if 0 < len(without) < len(rows):
        raise ValueError(f"{file}, line {without[0]} has no 'expected', which other lines have")
    return rows


def _row(where: str, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where} is a {type(row).__name__}; allowed: an object")
    for key in ("completion", "answer"):
        if key not in row:
            raise ValueError(f"{where} has no {key!r}; its keys are {', '.join(map(repr, row)) or 'none'}")
    completion, answer, expected = row["completion"], row["answer"], row.get("expected")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    for key, value in (("completion", completion), ("answer", answer)):
        if not isinstance(value, str):
            raise ValueError(f"{where}: {key} is {value!r}; allowed: a string")
    if not answer.strip():
        raise ValueError(f"{where}: answer is empty")
    if "expected" in row and not isinstance(expected, int | float):
        raise ValueError(f"{where}: expected is {expected!r}; allowed: a number or a boolean")
    return Row(number, completion, answer, None if expected is None else float(expected))


def judge(file: Path, rows: Sequence[Row], reward: str, time_limit: float) -> list[Verdict]:
    """Grade rows.

    Raises:
        ValueError: If the reward cannot grade a row; the message names its line.
    """
    from bandpo.tasks.rewards import REWARDS, scores

    read = _extractor(reward)
    if reward in REWARDS and reward == "math":
        found = scores(reward, [row.completion for row in rows], [row.answer for row in rows], time_limit)
    else:
        found = []
        for row in rows:
            try:
                found += scores(reward, [row.completion], [row.answer], time_limit)
            except ValueError as error:
                raise ValueError(f"{file}, line {row.line}: {error}") from error
    return [
        Verdict(row.line, score.value, score.timed_out, read(row.completion), row.answer, row.expected)
        for row, score in zip(rows, found, strict=True)
    ]


def _extractor(reward: str) -> Callable[[str], str | None]:
    """The text that a reward compares with the answer; a custom one may compare anything."""
    from bandpo.tasks.answers import final_answer, last_integer, stated_answer
    from bandpo.tasks.notation import normalize
    from bandpo.tasks.rewards import chosen_letter

    def mathematics(completion: str) -> str | None:
        found = final_answer(completion)
        return None if found is None else normalize(found)

    known = {"math": mathematics, "exact": stated_answer, "last_integer": last_integer, "choice": chosen_letter}
    return known.get(reward, lambda _: None)


def write_verdicts(output: Path, verdicts: Sequence[Verdict]) -> None:
    from bandpo.files import write_atomic

    output.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(one), ensure_ascii=False, allow_nan=False) for one in verdicts]
    write_atomic(output, "".join(f"{line}\n" for line in lines))


def print_verdicts(verdicts: Sequence[Verdict], expressions: bool) -> None:
    """The counts, and the rows that disagree or, with `expressions`, all of them."""
    right = sum(one.reward >= 1 for one in verdicts)
    late = sum(one.timed_out for one in verdicts)
    figures: dict[str, Any] = {"rows": len(verdicts), "right": right, "not graded in time": late}
    wrong = [one for one in verdicts if abs(one.error) > 1e-9]
    if verdicts[0].expected is not None:
        figures["agreement"] = f"{1 - len(wrong) / len(verdicts):.2%}"
        figures["false positives"] = sum(one.error > 0 for one in wrong)
        figures["false negatives"] = sum(one.error < 0 for one in wrong)
    shown = verdicts if expressions else wrong[:_SHOWN]
    for one in shown:
        typer.echo(_describe(one))
    if not expressions and len(wrong) > _SHOWN:
        typer.echo(f"{len(wrong) - _SHOWN} more disagree; --expressions prints all rows, --output writes them")
    for name, value in figures.items():
        typer.echo(f"{name:20}{value}")


def _describe(one: Verdict) -> str:
    kind = "" if abs(one.error) <= 1e-9 else ", false positive" if one.error > 0 else ", false negative"
    late = ", not graded in time" if one.timed_out else ""
    found = "no answer" if one.extracted is None else _short(one.extracted)
    return f"line {one.line}: reward {one.reward:g}{kind}{late}: {found} for {_short(one.answer)}"


def _short(text: str, length: int = 100) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[:length]}..."
