"""Grade a model on problems into a directory, so that an interrupted evaluation goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bandpo.evaluation.sampling import Sampler, sample
from bandpo.evaluation.statistics import Estimate, bootstrap_mean, pass_at_k
from bandpo.evaluation.store import GREEDY, RESULT, SAMPLES, Grade, append, claim, restore
from bandpo.evaluation.voting import extractor, majority
from bandpo.files import write_atomic
from bandpo.tasks.base import Problem, Task


@dataclass(frozen=True)
class EvaluationResult:
    """Estimates over prompts, and what they rest on.

    Attributes:
        metrics: Name -> estimate, see docs/evaluation.md.
        prompts: Number of prompts.
        samples: Completions a prompt at the sampling temperature.
        temperature: The sampling temperature.
        grades: Every sampled completion with its reward.
        greedy: The same for the completions without sampling; empty where not asked for.
    """

    metrics: dict[str, Estimate]
    prompts: int
    samples: int
    temperature: float
    grades: list[Grade]
    greedy: list[Grade]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without the completions; `timeouts` counts those that could not be graded in time."""
        return {
            "prompts": self.prompts,
            "samples": self.samples,
            "temperature": self.temperature,
            "timeouts": sum(sum(g.timed_out) for g in (*self.grades, *self.greedy)),
            "metrics": {name: asdict(value) for name, value in self.metrics.items()},
        }


def evaluate_into(
    directory: Path,
    model: Any,
    tokenizer: Any,
    task: Task,
    problems: list[Problem],
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float = 1.0,
    greedy: bool = False,
    batch_size: int,
    seed: int,
    identity: dict[str, Any],
    sampler: Sampler = sample,
    progress: Callable[[int], None] | None = None,
) -> EvaluationResult:
    """Sample and grade `problems` chunk by chunk, keep every completion, and write the estimates.

    A chunk is appended to samples.jsonl (greedy.jsonl) once it is done, and its seed depends on `seed` and its
    place alone. So an evaluation that was interrupted leaves the same files as one that was not, and one that is
    finished is only read back. A completion is correct for pass@k when its reward is at least 1.

    Args:
        directory: Where to write; made if missing. If it holds an evaluation with the same settings, that one
            is continued.
        greedy: Also draw one completion a problem without sampling.
        model, tokenizer: What `sampler` draws from.
        batch_size: Completions generated at a time. Padding and the order of random numbers depend on it, so another
            one gives other samples from the same distribution.
        identity: What besides the settings here tells evaluations apart, e.g. the model's path.
        progress: Called with the number of completions that have just been finished.

    Raises:
        ValueError: If there is no problem, `samples` is below 1, or `directory` holds something else, another
            evaluation, or damaged files; nothing is changed then.
    """
    if not problems:
        raise ValueError("problems is empty; allowed is at least one problem")
    if samples < 1:
        raise ValueError(f"samples is {samples}, allowed is an integer >= 1")
    settings = {
        **identity,
        "task": task.model_dump(mode="json"),
        "prompts": len(problems),
        "samples": samples,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "greedy": greedy,
        "batch_size": batch_size,
        "seed": seed,
    }
    claim(directory, settings)

    def grade_all(log: Path, samples: int, temperature: float) -> list[Grade]:
        chunk = max(1, batch_size // samples)
        grades = restore(log, problems, chunk)
        if progress is not None and grades:
            progress(len(grades) * samples)
        for start in range(len(grades), len(problems), chunk):
            done = grade(
                model,
                tokenizer,
                task,
                problems[start : start + chunk],
                samples=samples,
                max_new_tokens=max_new_tokens,
                sampler=sampler,
                temperature=temperature,
                top_p=top_p if temperature else 1.0,
                batch_size=batch_size,
                seed=chunk_seed(seed, start),
                progress=progress,
            )
            append(log, done)
            grades += done
        return grades

    grades = grade_all(directory / SAMPLES, samples, temperature)
    best = grade_all(directory / GREEDY, 1, 0.0) if greedy else []
    metrics = summarise(grades, voting=extractor(task) is not None)
    if greedy:
        metrics["greedy"] = bootstrap_mean([g.rewards[0] for g in best])
    result = EvaluationResult(metrics, len(problems), samples, temperature, grades, best)
    write_atomic(directory / RESULT, json.dumps({**settings, **result.as_dict()}, indent=2) + "\n")
    return result


def chunk_seed(seed: int, start: int) -> int:
    """Seed of the chunk that begins with problem `start`; no two chunks or seeds share one by being neighbours."""
    return int(np.random.SeedSequence((seed, start)).generate_state(1)[0])


def grade(
    model: Any,
    tokenizer: Any,
    task: Task,
    problems: list[Problem],
    *,
    samples: int,
    sampler: Sampler,
    **settings: Any,
) -> list[Grade]:
    """Draw completions for each problem and reward them; `settings` are the sampler's."""
    prompts = [task.prompt(problem, tokenizer) for problem in problems]
    drawn = sampler(model, tokenizer, prompts, samples=samples, **settings)
    repeated = [problem for problem in problems for _ in range(samples)]
    scores = iter(task.score(repeated, [c.text for completions in drawn for c in completions]))
    extract = extractor(task)
    grades = []
    for problem, completions in zip(problems, drawn, strict=True):
        own = list(islice(scores, samples))
        finals = [extract(c.text) if extract else None for c in completions]
        grades.append(Grade(problem, completions, [s.value for s in own], [s.timed_out for s in own], finals))
    return grades


def summarise(grades: list[Grade], voting: bool) -> dict[str, Estimate]:
    """Estimates over problems that all have the same number of completions; maj@n only where they can vote."""
    samples = len(grades[0].rewards)
    values: dict[str, list[float]] = {f"mean@{samples}": [_mean(g.rewards) for g in grades]}
    if voting and samples > 1:
        values[f"maj@{samples}"] = [majority(g.finals, g.rewards) for g in grades]
    correct = [sum(value >= 1 for value in g.rewards) for g in grades]
    for k in sorted({2**i for i in range(1, samples.bit_length())} | {samples} - {1}):
        values[f"pass@{k}"] = [pass_at_k(samples, c, k) for c in correct]
    entropies = [[c.entropy for c in g.completions if c.entropy is not None] for g in grades]
    if all(len(known) == samples for known in entropies):
        values["entropy"] = [_mean(known) for known in entropies]
    values["length"] = [_mean([c.tokens for c in g.completions]) for g in grades]
    values["truncated"] = [_mean([c.truncated for c in g.completions]) for g in grades]
    values["timed_out"] = [_mean(g.timed_out) for g in grades]
    return {name: bootstrap_mean(own) for name, own in values.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
