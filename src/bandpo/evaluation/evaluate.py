"""Grade a model on held-out problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from bandpo.evaluation.sampling import Completion, sample
from bandpo.evaluation.statistics import Estimate, bootstrap_mean, pass_at_k
from bandpo.tasks.base import Problem, Task


@dataclass(frozen=True)
class Grade:
    """A problem with its completions, their rewards, and how many of them could not be graded in time."""

    problem: Problem
    completions: list[Completion]
    rewards: list[float]
    timeouts: int = 0


@dataclass(frozen=True)
class EvaluationResult:
    """Estimates over held-out prompts, and what they rest on.

    Attributes:
        metrics: Name -> estimate: mean@n, pass@k for k = 1, 2, 4, ... up to n, entropy (nats a token),
            length (tokens), truncated (share), and greedy (success without sampling) where asked for.
        prompts: Number of prompts.
        samples: Completions a prompt at the sampling temperature.
        temperature: The sampling temperature.
        grades: Every sampled completion with its reward.
    """

    metrics: dict[str, Estimate]
    prompts: int
    samples: int
    temperature: float
    grades: list[Grade]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without the completions."""
        return {
            "prompts": self.prompts,
            "samples": self.samples,
            "temperature": self.temperature,
            "metrics": {name: asdict(value) for name, value in self.metrics.items()},
        }


def evaluate(
    model: Any,
    tokenizer: Any,
    task: Task,
    problems: list[Problem],
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    greedy: bool = True,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> EvaluationResult:
    """Success on `problems`: mean@n and pass@k at `temperature`, and greedily.

    A completion counts as correct for pass@k when its reward is at least 1.

    Raises:
        ValueError: If `problems` is empty or `samples` is below 1.
    """
    if not problems:
        raise ValueError("problems is empty; allowed is at least one problem")
    if samples < 1:
        raise ValueError(f"samples is {samples}, allowed is an integer >= 1")
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "seed": seed,
        "progress": progress,
    }
    grades = grade(model, tokenizer, task, problems, samples=samples, temperature=temperature, **settings)
    metrics = summarise(grades)
    if greedy:
        best = grade(model, tokenizer, task, problems, samples=1, temperature=0.0, **settings)
        metrics["greedy"] = bootstrap_mean([g.rewards[0] for g in best])
    return EvaluationResult(metrics, len(problems), samples, temperature, grades)


def grade(
    model: Any, tokenizer: Any, task: Task, problems: list[Problem], *, samples: int, **settings: Any
) -> list[Grade]:
    """Draw completions for each problem and reward them; `settings` are those of `sample`."""
    prompts = [task.prompt(problem, tokenizer) for problem in problems]
    drawn = sample(model, tokenizer, prompts, samples=samples, **settings)
    repeated = [problem for problem in problems for _ in range(samples)]
    scores = iter(task.score(repeated, [c.text for completions in drawn for c in completions]))
    grades = []
    for problem, completions in zip(problems, drawn, strict=True):
        own = list(islice(scores, samples))
        grades.append(Grade(problem, completions, [s.value for s in own], sum(s.timed_out for s in own)))
    return grades


def summarise(grades: list[Grade]) -> dict[str, Estimate]:
    """Estimates over problems that all have the same number of completions."""
    samples = len(grades[0].rewards)
    metrics = {f"mean@{samples}": bootstrap_mean([_mean(g.rewards) for g in grades])}
    correct = [sum(value >= 1 for value in g.rewards) for g in grades]
    k = 1
    while (k := 2 * k) <= samples:
        metrics[f"pass@{k}"] = bootstrap_mean([pass_at_k(samples, c, k) for c in correct])
    metrics["entropy"] = bootstrap_mean([_mean([c.entropy for c in g.completions]) for g in grades])
    metrics["length"] = bootstrap_mean([_mean([c.tokens for c in g.completions]) for g in grades])
    metrics["truncated"] = bootstrap_mean([_mean([c.truncated for c in g.completions]) for g in grades])
    return metrics


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values)
