"""Shared command-line options as types: data, prompts and sampling."""

from __future__ import annotations

from typing import Annotated

import typer

# Data
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first problems.", show_default="all")]
Columns = Annotated[
    str | None, typer.Option(help="The data have the columns of this known data set.", show_default="none")
]
QuestionKey = Annotated[str | None, typer.Option(help="Column of questions.", show_default="question")]
AnswerKey = Annotated[str | None, typer.Option(help="Column of answers.", show_default="answer")]
Split = Annotated[str | None, typer.Option(help="Split of a hub data set.", show_default="its test split")]
Subset = Annotated[str | None, typer.Option(help="Configuration of a hub data set.", show_default="none")]

# Prompts and rewards
Template = Annotated[
    str | None,
    typer.Option(
        help="User message: boxed, plain, qa, tags, or a string with {question}.",
        show_default="boxed for data sets known by name, plain otherwise",
    ),
]
System = Annotated[str | None, typer.Option(help="System message.", show_default="the model's own")]
Chat = Annotated[bool, typer.Option(help="Use the chat template if the model has one.")]
RewardName = Annotated[str | None, typer.Option(help="How completions are graded.", show_default="math")]

# Models and sampling
ModelPath = Annotated[
    str, typer.Argument(help="Hub name, local directory, GGUF file, LoRA adapter, or a run directory.")
]
Checkpoint = Annotated[
    int | None, typer.Option(help="For a run directory: the checkpoint of this update.", show_default="the end")
]
Samples = Annotated[int, typer.Option(min=1, help="Completions per problem.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Length limit of a completion.")]
Temperature = Annotated[float, typer.Option(min=0, help="Sampling temperature.")]
TopP = Annotated[float, typer.Option(help="Nucleus sampling: sample from this share of the probability mass.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Also one completion per problem without sampling.")]
BackendName = Annotated[str, typer.Option(help="auto, transformers or vllm.")]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Completions generated at a time.", show_default="64, with vllm 1024")
]
DtypeName = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed of sampling.")]
