"""bandpo eval"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[str, typer.Argument(help="Hub name, local directory (a run's model/ too), GGUF file.")],
    data: Annotated[list[str], typer.Argument(help="JSONL files of {question, answer}, or data sets on the hub.")],
    samples: Annotated[int, typer.Option(min=1, help="Completions a problem.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length limit of a completion.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 is greedy.")] = 1.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first problems.", show_default="all")] = None,
    template: Annotated[str, typer.Option(help="The user's message, around {question}.")] = "{question}",
    system: Annotated[str | None, typer.Option(help="System message.", show_default="the model's own")] = None,
    chat: Annotated[bool, typer.Option(help="Use the chat template, where the model has one.")] = True,
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "test",
    batch_size: Annotated[int, typer.Option(min=1, help="Completions generated at a time.")] = 64,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Directory to write, or to go on with.", show_default="eval/DATE-TIME")
    ] = None,
) -> None:
    """Evaluate a model on problems graded by Math-Verify: mean@n, pass@k, entropy, length, truncation.

    Every completion is kept. With the same --output an interrupted evaluation goes on where it was.
    """
    import torch
    from pydantic import ValidationError
    from rich.console import Console
    from rich.table import Table

    from bandpo.cli.train import quiet_libraries
    from bandpo.evaluation import evaluate_into
    from bandpo.progress import make_progress
    from bandpo.tasks import Questions
    from bandpo.training.config import MODEL_DTYPES
    from bandpo.training.models import load_model
    from bandpo.training.summary import label

    if dtype not in MODEL_DTYPES:
        raise ValueError(f"--dtype is {dtype!r}, allowed are {', '.join(MODEL_DTYPES)}")
    quiet_libraries()
    try:
        tasks = [
            Questions(data=source, split=split, template=template, system=system, chat=None if chat else False)
            for source in data
        ]
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
    problems = [task.read(task.data)[:limit] for task in tasks]
    names = [Path(source).stem for source in data]
    if len(set(names)) < len(names):
        raise ValueError(f"two data sets have the same name: {', '.join(sorted(names))}")
    output = output or Path("eval") / f"{datetime.now():%Y%m%d-%H%M%S}"
    loaded, tokenizer = load_model(model, dtype)
    loaded.to("cuda" if torch.cuda.is_available() else "cpu")
    console = Console()
    table = Table("", *names)
    with make_progress(console) as progress:
        results = []
        for task, name, chosen in zip(tasks, names, problems, strict=True):
            bar = progress.add_task(name, total=len(chosen) * samples, figures="")
            results.append(
                evaluate_into(
                    output / name,
                    loaded,
                    tokenizer,
                    task,
                    chosen,
                    samples=samples,
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    batch_size=batch_size,
                    seed=seed,
                    identity={"model": model, "dtype": dtype},
                    progress=partial(progress.advance, bar),
                )
            )
    for metric in results[0].metrics:
        table.add_row(label(metric, temperature), *(str(result.metrics[metric]) for result in results))
    console.print(table)
    console.print(f"wrote {output}", soft_wrap=True)
