"""Evaluate a model on problems into a directory, so that an interrupted evaluation can resume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bandpo.evaluation.result import EvaluationResult, part_name
from bandpo.evaluation.sampling import Progress, Sampler, Sampling, sample, slices
from bandpo.evaluation.statistics import Estimate, bootstrap_mean, pass_at_k
from bandpo.evaluation.store import GREEDY, RESULT, SAMPLES, Grade, append, claim, restore
from bandpo.evaluation.voting import extractor, majority
from bandpo.files import locked, write_json
from bandpo.tasks.base import Problem, Task


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        result: The estimates.
        grades: Every sampled completion with its reward.
        greedy: The same for the completions without sampling; empty if there are none.
    """

    result: EvaluationResult
    grades: list[Grade]
    greedy: list[Grade]


def evaluate_into(
    directory: Path,
    model: Any,
    tokenizer: Any,
    task: Task,
    problems: list[Problem],
    sampling: Sampling,
    *,
    greedy: bool = False,
    identity: Mapping[str, Any],
    sampler: Sampler = sample,
    progress: Progress | None = None,
) -> Evaluation:
    """Sample and grade `problems` chunk by chunk, keep every completion, and write the estimates.

    A chunk is appended to samples.jsonl (greedy.jsonl) once it is done, and its seed depends only on the sampling's
    seed and its position. An interrupted evaluation therefore ends with the same files as one that was not, and a
    finished one is only read back. A completion is correct for pass@k if its reward is at least 1.

    Args:
        directory: Where to write; created if missing. An evaluation in it with the same settings is
            resumed.
        model, tokenizer: The model that `sampler` draws from.
        task: Builds the prompts and grades the completions.
        problems: The problems.
        sampling: How completions are drawn.
        greedy: Also draw one completion per problem without sampling.
        identity: What distinguishes evaluations besides these settings, e.g. the model's path.
        sampler: Draws the completions; `sample` uses transformers.
        progress: Called with the number of completions that have just been finished.

    Raises:
        ValueError: If problems is empty, or `directory` contains something else, another evaluation, or damaged
            files, or another process is working in it; nothing is changed then.
    """
    if not problems:
        raise ValueError("problems is empty; allowed: at least one problem")
    settings = {
        **identity,
        "task": task.model_dump(mode="json"),
        "prompts": len(problems),
        **asdict(sampling),
        "greedy": greedy,
    }
    claim(directory, settings, task)
    with locked(directory):
        grade_chunk = partial(grade, model, tokenizer, task, sampler=sampler, progress=progress)
        grades = _grade_all(directory / SAMPLES, problems, sampling, grade_chunk, progress)
        best = _grade_all(directory / GREEDY, problems, sampling.greedy(), grade_chunk, progress) if greedy else []
        metrics = summarize(grades, extractor(task) is not None, task.many_answers, sampling.cuts)
        if greedy:
            metrics["greedy"] = bootstrap_mean([g.rewards[0] for g in best])
        timeouts = sum(sum(g.timed_out) for g in (*grades, *best))
        result = EvaluationResult(len(problems), sampling.samples, sampling.temperature, timeouts, metrics)
        write_json(directory / RESULT, {**settings, **result.dump()})
    return Evaluation(result, grades, best)


def _grade_all(
    log: Path,
    problems: list[Problem],
    sampling: Sampling,
    grade_chunk: Callable[[list[Problem], Sampling], list[Grade]],
    progress: Progress | None,
) -> list[Grade]:
    """The grades of all problems: those in `log`, and new ones, which are appended to it."""
    size = max(1, sampling.batch_size // sampling.samples)
    grades = restore(log, problems, size)
    if progress is not None and grades:
        progress(len(grades) * sampling.samples)
    for start in range(len(grades), len(problems), size):
        own = replace(sampling, seed=chunk_seed(sampling.seed, start))
        done = grade_chunk(problems[start : start + size], own)
        append(log, done)
        grades += done
    return grades


def chunk_seed(seed: int, start: int) -> int:
    """Seed of the chunk that begins with problem `start`; neighboring chunks or seeds never share one."""
    return int(np.random.SeedSequence((seed, start)).generate_state(1)[0])


def grade(
    model: Any,
    tokenizer: Any,
    task: Task,
    problems: list[Problem],
    sampling: Sampling,
    sampler: Sampler = sample,
    progress: Progress | None = None,
) -> list[Grade]:
    """Draw completions for each problem and reward them."""
    prompts = [task.prompt(problem, tokenizer) for problem in problems]
    drawn = sampler(model, tokenizer, prompts, sampling, progress)
    repeated = [problem for problem in problems for _ in range(sampling.samples)]
    scores = iter(task.score(repeated, [c.text for completions in drawn for c in completions]))
    extract = extractor(task)
    grades = []
    for problem, completions in zip(problems, drawn, strict=True):
        own = list(islice(scores, sampling.samples))
        finals = [extract(c.text) if extract else None for c in completions]
        grades.append(Grade(problem, completions, [s.value for s in own], [s.timed_out for s in own], finals))
    return grades


def summarize(
    grades: list[Grade], voting: bool, many: bool = False, cuts: tuple[int, ...] | None = None
) -> dict[str, Estimate]:
    """Estimates over problems that all have the same number of completions.

    Args:
        voting: Whether completions state final answers, as maj@n requires.
        many: Whether to also count different right answers.
        cuts: As the sampling's.
    """
    samples = len(grades[0].rewards)
    values: dict[str, list[float]] = {f"mean@{samples}": [_mean(g.rewards) for g in grades]}
    if voting and samples > 1:
        values[f"maj@{samples}"] = [majority(g.finals, g.rewards) for g in grades]
    correct = [sum(value >= 1 for value in g.rewards) for g in grades]
    for k in sorted({2**i for i in range(1, samples.bit_length())} | {samples} - {1}):
        values[f"pass@{k}"] = [pass_at_k(samples, c, k) for c in correct]
    if voting and many:
        right = [right_answers(g) for g in grades]
        values[f"distinct@{samples}"] = [len(counts) for counts in right]
        values["spread"] = [spread(counts.values()) for counts in right]
    entropies = [[c.entropy for c in g.completions if c.entropy is not None] for g in grades]
    if all(len(known) == samples for known in entropies):
        values["entropy"] = [_mean(known) for known in entropies]
    for i, part in enumerate(slices(cuts)):
        of_part = [[e for c in g.completions for e in c.parts[i : i + 1] if e is not None] for g in grades]
        if any(of_part):
            values[part_name(part)] = [_mean(known) for known in of_part if known]
    values["length"] = [_mean([c.tokens for c in g.completions]) for g in grades]
    values["truncated"] = [_mean([c.truncated for c in g.completions]) for g in grades]
    values["timed_out"] = [_mean(g.timed_out) for g in grades]
    return {name: bootstrap_mean(own) for name, own in values.items()}


def right_answers(grade: Grade) -> Counter[str]:
    """How often each right final answer was given."""
    return Counter(f for f, value in zip(grade.finals, grade.rewards, strict=True) if f is not None and value >= 1)


def spread(counts: Iterable[int]) -> float:
    """Miller-Madow entropy in nats from counts: -sum q ln q + (kinds - 1) / (2 draws)."""
    drawn = np.array(list(counts), dtype=float)
    if not drawn.size:
        return 0.0
    share = drawn / drawn.sum()
    return float(-(share * np.log(share)).sum() + (drawn.size - 1) / (2 * drawn.sum()))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
