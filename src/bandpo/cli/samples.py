"""bandpo samples"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer


@dataclass(frozen=True)
class Shown:
    """A completion for display: which one it is, and facts about it."""

    where: str
    problem: int
    question: str
    answer: str | None
    text: str
    reward: float
    notes: tuple[str, ...]
    truncated: bool | None

    @property
    def right(self) -> bool:
        return self.reward >= 1


def samples(
    directory: Annotated[
        Path, typer.Argument(help="Run directory (its training), RUN/eval/after, or an output of bandpo eval.")
    ],
    wrong: Annotated[bool, typer.Option("--wrong", help="Only completions with a reward below 1.")] = False,
    right: Annotated[bool, typer.Option("--right", help="Only completions with a reward of 1.")] = False,
    truncated: Annotated[
        bool, typer.Option("--truncated", help="Only completions that reached the length limit.")
    ] = False,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="For an evaluation: completions without sampling.")
    ] = False,
    problem: Annotated[
        int | None, typer.Option(min=1, help="Only the N-th problem of a data set or rollout.", show_default="all")
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="For a run: the rollout at this update.", show_default="all")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many.")] = 10,
) -> None:
    """Show completions with their rewards: panels on a terminal, plain text in a pipe."""
    if wrong and right:
        raise ValueError("--wrong and --right exclude each other; give one of them")
    everything = find_samples(directory, step, greedy)
    if truncated:
        everything = only_truncated(everything, directory)
    chosen = (
        one
        for one in everything
        if (not wrong or not one.right) and (not right or one.right) and (problem is None or one.problem == problem)
    )
    shown = list(islice(chosen, limit))
    if not shown:
        typer.echo("no completion matches, or none has been written yet", err=True)
        return
    print_samples(shown)
    if next(chosen, None) is not None:
        typer.echo(f"more match; --limit is {limit}", err=True)


def find_samples(directory: Path, step: int | None, greedy: bool) -> Iterator[Shown]:
    """The completions of a run's training, of one evaluation, or of all evaluations in a directory.

    Raises:
        ValueError: If there are none, or an option does not apply to them.
    """
    from bandpo.evaluation.store import SETTINGS
    from bandpo.runs.run_dir import RunDirectory

    run = RunDirectory(directory)
    if run.config.is_file():
        if greedy:
            raise ValueError(f"--greedy is for evaluations; give {str(directory / 'eval' / 'after')!r}")
        return of_training(run.samples, step)
    if step is not None:
        raise ValueError(f"--step is for run directories, which {str(directory)!r} is not")
    folders = sorted({path.parent for path in (*directory.glob(SETTINGS), *directory.glob(f"*/{SETTINGS}"))})
    if not folders:
        raise ValueError(f"{str(directory)!r} is neither a run directory nor an output of bandpo eval")
    return of_evaluations(folders, greedy)


def of_evaluations(folders: list[Path], greedy: bool) -> Iterator[Shown]:
    from bandpo.evaluation.store import GREEDY, SAMPLES, read_grades
    from bandpo.tasks.base import Message, transcript

    for folder in folders:
        for number, grade in enumerate(read_grades(folder / (GREEDY if greedy else SAMPLES)), 1):
            rows = zip(grade.completions, grade.rewards, grade.timed_out, grade.finals, strict=True)
            for completion, reward, late, final in rows:
                notes = [f"{completion.tokens} tokens"]
                notes += ["truncated"] if completion.truncated else []
                notes += ["not graded in time"] if late else []
                notes += [] if final is None else [f"final answer {final}"]
                yield Shown(
                    folder.name,
                    number,
                    transcript([*grade.problem.context, Message("user", grade.problem.question)]),
                    grade.problem.answer,
                    completion.text,
                    reward,
                    tuple(notes),
                    completion.truncated,
                )


def of_training(file: Path, step: int | None) -> Iterator[Shown]:
    """Rows {step, prompt, completion, advantage, REWARD: value, ...}; several rewards are summed."""
    from bandpo.files import read_lines
    from bandpo.runs.run_dir import rewards_of

    current, numbers = None, dict[str, int]()
    for row in read_lines(file):
        if step is not None and row["step"] != step:
            continue
        if row["step"] != current:
            current, numbers = row["step"], {}
        number = numbers.setdefault(row["prompt"], len(numbers) + 1)
        notes = [f"advantage {row['advantage']:.2f}"]
        notes += [f"{row['tokens']} tokens"] if "tokens" in row else [f"{len(row['completion'])} characters"]
        yield Shown(
            f"update {current}",
            number,
            row["prompt"],
            None,
            row["completion"],
            sum(rewards_of(row).values()),
            tuple(notes),
            row.get("truncated"),
        )


def only_truncated(everything: Iterator[Shown], directory: Path) -> Iterator[Shown]:
    for one in everything:
        if one.truncated is None:
            raise ValueError(f"the samples of {str(directory)!r} do not record which were truncated")
        if one.truncated:
            yield one


def print_samples(shown: list[Shown]) -> None:
    from rich.console import Console

    console = Console()
    before = None
    for one in shown:
        key = (one.where, one.problem)
        head = f"{one.where}, problem {one.problem}" + ("" if one.answer is None else f", answer {one.answer}")
        title = ", ".join([f"reward {one.reward:g}", *one.notes])
        if console.is_terminal:
            if key != before:
                console.print(_panel(one.question, head, "blue"))
            console.print(_panel(one.text, title, "green" if one.right else "red"))
        else:
            if key != before:
                typer.echo(f"=== {head}\n{one.question}")
            typer.echo(f"--- {title}\n{one.text}")
        before = key


def _panel(text: str, title: str, color: str) -> Any:
    from rich.panel import Panel
    from rich.text import Text

    return Panel(Text(text), title=Text(title), title_align="left", border_style=color)
