"""bandpo eval"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bandpo.cli import options
from bandpo.evaluation.sampling import Sampling

if TYPE_CHECKING:
    from rich.console import Console

    from bandpo.evaluation.result import EvaluationResult
    from bandpo.tasks import Problem, Questions


def evaluate(
    model: options.ModelPath,
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK...", help="Data sets: gsm8k, math500, amc23, aime24, aime25, math, a file, or a hub name."
        ),
    ],
    checkpoint: options.Checkpoint = None,
    samples: options.Samples = Sampling.samples,
    max_new_tokens: options.MaxNewTokens = Sampling.max_new_tokens,
    temperature: options.Temperature = Sampling.temperature,
    top_p: options.TopP = Sampling.top_p,
    greedy: options.Greedy = False,
    limit: options.Limit = None,
    template: options.Template = None,
    system: options.System = None,
    chat: options.Chat = True,
    reward: options.RewardName = None,
    columns: options.Columns = None,
    question_key: options.QuestionKey = None,
    answer_key: options.AnswerKey = None,
    split: options.Split = None,
    subset: options.Subset = None,
    backend: options.BackendName = "auto",
    batch_size: options.BatchSize = None,
    dtype: options.DtypeName = "float32",
    seed: options.Seed = Sampling.seed,
    output: Annotated[
        Path | None, typer.Option(help="Directory to write, or to resume.", show_default="eval/DATE-TIME")
    ] = None,
) -> None:
    """Evaluate a model on data sets: mean@n, maj@n, pass@k, entropy, length, truncation, with 95% intervals.

    Every completion is kept (see bandpo samples). An interrupted evaluation resumes if --output is the same.
    """
    from bandpo.cli.quiet import quiet_libraries
    from bandpo.evaluation.backends import choose_backend
    from bandpo.evaluation.identity import fingerprint
    from bandpo.models import resolve
    from bandpo.runs.locate import locate_model
    from bandpo.tasks.reading import absolute

    quiet_libraries()
    path = locate_model(model, checkpoint)
    engine = choose_backend(backend, path)
    sampling = Sampling(samples, max_new_tokens, temperature, top_p, batch_size or engine.batch_size, seed)
    _check(sampling, dtype)
    columns_of = {"columns": columns, "question_key": question_key, "answer_key": answer_key}
    prompts = {"template": template, "system": system, "chat": None if chat else False, "reward": reward}
    data = _read(tasks, limit, {**columns_of, "split": split, "subset": subset, **prompts})
    weights = fingerprint(Path(resolve(path)))
    identity = {"model": absolute(path), "weights": weights, "dtype": dtype, **engine.identity}
    output = output or Path("eval") / f"{datetime.now():%Y%m%d-%H%M%S}"
    loaded = engine.load(path, dtype, seed)
    _check_positions(loaded, data, max_new_tokens)
    try:
        _evaluate_all(loaded, data, output, sampling, greedy, identity, engine.sample)
    except (KeyboardInterrupt, SystemExit):
        typer.echo(f"interrupted; the same command with --output {output} resumes", err=True)
        raise


def _check(sampling: Sampling, dtype: str) -> None:
    from bandpo.runs.config import MODEL_DTYPES
    from bandpo.words import nearest

    if dtype not in MODEL_DTYPES:
        raise ValueError(f"--dtype is {dtype!r}{nearest(dtype, MODEL_DTYPES)}; allowed: {', '.join(MODEL_DTYPES)}")
    if sampling.temperature == 0 and sampling.samples > 1:
        raise ValueError(
            f"--temperature 0 would draw the same completion {sampling.samples} times; give --samples 1, or --greedy "
            "with samples at another temperature"
        )


def _check_positions(loaded: tuple[Any, Any], data: Data, max_new_tokens: int) -> None:
    """Refuse prompts that leave too little room; vLLM checks that itself."""
    from bandpo.evaluation.positions import find_shortage
    from bandpo.evaluation.sampling import encode

    model, tokenizer = loaded
    if not hasattr(model, "config"):
        return
    prompts = [task.prompt(problem, tokenizer) for task, problems in data.values() for problem in problems]
    shortage = find_shortage(model.config, [len(encode(prompt, tokenizer)) for prompt in prompts], max_new_tokens)
    if shortage is not None:
        raise ValueError(shortage.sentence("--max-new-tokens "))


Data = dict[str, tuple["Questions", list["Problem"]]]
"""Short name of a data set -> the task that prompts and grades, and the problems."""


def _read(sources: Sequence[str], limit: int | None, settings: Mapping[str, Any]) -> Data:
    """The data sets; None keeps the task's own setting."""
    from bandpo.evaluation.identity import names_apart
    from bandpo.tasks import DATASETS, benchmark

    given = {key: value for key, value in settings.items() if value is not None}
    data: Data = {}
    for name, source in zip(names_apart(sources), sources, strict=True):
        task, problems = benchmark(source, **{"template": "boxed" if source in DATASETS else "plain", **given})
        data[name] = task, problems[:limit]
    return data


def _evaluate_all(
    loaded: tuple[Any, Any],
    data: Data,
    output: Path,
    sampling: Sampling,
    greedy: bool,
    identity: Mapping[str, Any],
    sampler: Any,
) -> None:
    from rich.console import Console

    from bandpo.evaluation import evaluate_into
    from bandpo.progress import make_progress

    console = Console()
    console.print(f"writing {output}", soft_wrap=True, markup=False, highlight=False)
    results = {}
    with make_progress(console) as progress:
        for name, (task, problems) in data.items():
            bar = progress.add_task(name, total=len(problems) * (sampling.samples + greedy), figures="")
            results[name] = evaluate_into(
                output / name,
                *loaded,
                task,
                problems,
                sampling,
                greedy=greedy,
                identity=identity,
                sampler=sampler,
                progress=partial(progress.advance, bar),
            ).result
            progress.update(bar, figures=f"success {results[name].success.mean:.3f}")
    print_results(console, results)


def print_results(console: Console, results: Mapping[str, EvaluationResult]) -> None:
    """One table with a row per metric and a column per data set."""
    from rich.table import Table

    from bandpo.evaluation.result import metric_rows

    table = Table("", *(f"{name} ({result.prompts})" for name, result in results.items()))
    for row in metric_rows(list(results.values())):
        table.add_row(*row)
    # In a file, numbers must not be cut off to fit a width.
    console.print(table, width=None if console.is_terminal else 1000)
