"""bandpo eval"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    model: Annotated[
        str, typer.Argument(help="Hub name, local directory, GGUF file, LoRA adapter, or a run directory.")
    ],
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK...", help="Data sets: gsm8k, math500, amc23, aime24, aime25, math, a file, or a hub name."
        ),
    ],
    checkpoint: Annotated[
        int | None, typer.Option(help="Of a run directory, the checkpoint of this update.", show_default="the end")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Completions a problem.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length limit of a completion.")] = 2048,
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Sample from this share of the probability mass.")] = 1.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Also one completion a problem without sampling.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first problems.", show_default="all")] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="The user's message: boxed, plain, qa, tags, or a text with {question}.",
            show_default="boxed for data sets known by name, plain otherwise",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.", show_default="the model's own")] = None,
    chat: Annotated[bool, typer.Option(help="Use the chat template, where the model has one.")] = True,
    reward: Annotated[str | None, typer.Option(help="How completions are graded.", show_default="math")] = None,
    columns: Annotated[
        str | None, typer.Option(help="The data has the columns of this known data set.", show_default="none")
    ] = None,
    question_key: Annotated[str | None, typer.Option(help="Column of questions.", show_default="question")] = None,
    answer_key: Annotated[str | None, typer.Option(help="Column of answers.", show_default="answer")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a hub data set.", show_default="its test split")] = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of a hub data set.", show_default="none")] = None,
    backend: Annotated[str, typer.Option(help="auto, transformers or vllm.")] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Completions generated at a time.", show_default="64, with vllm 1024"),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Directory to write, or to go on with.", show_default="eval/DATE-TIME")
    ] = None,
) -> None:
    """Evaluate a model on data sets: mean@n, maj@n, pass@k, entropy, length, truncation, with 95% intervals.

    Every completion is kept (see bandpo samples). With the same --output an interrupted evaluation goes on where
    it was.
    """
    from rich.console import Console

    from bandpo.cli.train import quiet_libraries
    from bandpo.evaluation import evaluate_into
    from bandpo.evaluation.backends import choose_backend
    from bandpo.models import resolve
    from bandpo.progress import make_progress
    from bandpo.runs.config import MODEL_DTYPES
    from bandpo.tasks import DATASETS, benchmark

    if dtype not in MODEL_DTYPES:
        raise ValueError(f"--dtype is {dtype!r}, allowed are {', '.join(MODEL_DTYPES)}")
    if not 0 < top_p <= 1:
        raise ValueError(f"--top-p is {top_p:g}, allowed is a share above 0 and at most 1")
    if temperature == 0 and samples > 1:
        raise ValueError(
            f"--temperature 0 would draw the same completion {samples} times; give --samples 1, or --greedy beside "
            "samples at another temperature"
        )
    quiet_libraries()
    names = names_apart(tasks)
    choices: dict[str, Any] = {
        "system": system,
        "chat": None if chat else False,
        "reward": reward,
        "columns": columns,
        "question_key": question_key,
        "answer_key": answer_key,
        "split": split,
        "subset": subset,
    }
    given = {key: value for key, value in choices.items() if value is not None}
    chosen = []
    for source in tasks:
        default = "boxed" if source in DATASETS else "plain"
        task, problems = benchmark(source, template=template or default, **given)
        chosen.append((task, problems[:limit]))
    path = locate_model(model, checkpoint)
    engine = choose_backend(backend, path)
    weights = fingerprint(Path(resolve(path)))
    output = output or Path("eval") / f"{datetime.now():%Y%m%d-%H%M%S}"
    loaded, tokenizer = engine.load(path, dtype, seed)
    console = Console()
    console.print(f"writing {output}", soft_wrap=True, markup=False, highlight=False)
    with make_progress(console) as progress:
        results = []
        for name, (task, problems) in zip(names, chosen, strict=True):
            bar = progress.add_task(name, total=len(problems) * (samples + greedy), figures="")
            result = evaluate_into(
                output / name,
                loaded,
                tokenizer,
                task,
                problems,
                samples=samples,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                greedy=greedy,
                batch_size=batch_size or engine.batch_size,
                seed=seed,
                identity={
                    "model": path,
                    "weights": weights,
                    "dtype": dtype,
                    "backend": engine.name,
                    "entropy_from": engine.entropy,
                },
                sampler=engine.sample,
                progress=partial(progress.advance, bar),
            )
            progress.update(bar, figures=f"success {result.metrics[f'mean@{samples}'].mean:.3f}")
            results.append(result.as_dict())
    print_results(console, names, results)


def print_results(console: Any, names: Sequence[str], results: Sequence[dict[str, Any]]) -> None:
    """One table: a row a metric, a column a data set."""
    from rich.table import Table

    from bandpo.runs.summary import metric_rows

    table = Table("", *(f"{name} ({result['prompts']})" for name, result in zip(names, results, strict=True)))
    for row in metric_rows(results):
        table.add_row(*row)
    # In a file, figures must not be cut off for want of room.
    console.print(table, width=None if console.is_terminal else 1000)


def names_apart(sources: Sequence[str]) -> list[str]:
    """A short name for each data set, with as many of its folders as tell it apart from the others.

    Raises:
        ValueError: If one is given twice.
    """
    from bandpo.tasks.reading import is_path, without_suffix

    paths = []
    for source in sources:
        path = without_suffix(Path(source).expanduser().resolve() if is_path(source) else Path(source))
        paths.append([part for part in path.parts if part != path.anchor])
    names = []
    for i, parts in enumerate(paths):
        others = paths[:i] + paths[i + 1 :]
        depths = (d for d in range(1, len(parts) + 1) if all(parts[-d:] != other[-d:] for other in others))
        names.append("-".join(parts[-next(depths, len(parts)) :]))
    if len(set(names)) < len(names):
        raise ValueError(f"a data set is given twice: {', '.join(sources)}")
    return names


def locate_model(model: str, checkpoint: int | None) -> str:
    """The model's path or name; of a run directory its final model, or a checkpoint.

    Raises:
        ValueError: If the run has no such model; the ones it has are named.
    """
    from bandpo.runs.run_dir import RunDirectory
    from bandpo.training.checkpoints import list_checkpoints, step_of

    run = RunDirectory(Path(model).expanduser())
    if not run.config.is_file():
        if checkpoint is not None:
            raise ValueError(f"--checkpoint is {checkpoint}, but {model!r} is not a run directory")
        return model
    found = run.model if checkpoint is None else run.checkpoints / f"checkpoint-{checkpoint}"
    if not found.is_dir():
        known = ", ".join(str(step_of(p)) for p in list_checkpoints(run.checkpoints)) or "none"
        raise ValueError(f"run {model!r} has no {found.relative_to(run.path)}; its checkpoints: {known}")
    return str(found)


def fingerprint(path: Path) -> str | None:
    """What tells a model's weights from others of the same size: a checksum of both ends of its files.

    None for a name on the hub.
    """
    files = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.suffix in (".safetensors", ".bin"))
    checksum = 0
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as stream:
            for start in (0, max(0, size - (1 << 20))):
                stream.seek(start)
                checksum = zlib.crc32(stream.read(1 << 20), checksum)
        checksum = zlib.crc32(str(size).encode(), checksum)
    return f"{checksum:08x}" if files else None
