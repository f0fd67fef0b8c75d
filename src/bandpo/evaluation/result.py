"""The result of an evaluation: its estimates, in memory and in result.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bandpo.evaluation.statistics import Estimate

LABELS = {
    "greedy": "success, greedy",
    "entropy": "entropy (nats/token)",
    "spread": "entropy of right answers (nats)",
    "length": "length (tokens)",
    "truncated": "truncated",
    "timed_out": "not graded in time",
}


PART = re.compile(r"entropy\[(\d+:\d*)\]")


def part_name(part: slice) -> str:
    """Name of the metric for the entropy of a part of the completions: entropy[0:6], entropy[6:]."""
    return f"entropy[{part.start}:{'' if part.stop is None else part.stop}]"


@dataclass(frozen=True)
class EvaluationResult:
    """Estimates over prompts, and what they are based on.

    Attributes:
        prompts: Number of prompts.
        samples: Completions per prompt at the sampling temperature.
        temperature: The sampling temperature.
        timeouts: Number of completions that could not be graded in time.
        metrics: Name -> estimate, see docs/evaluation.md.
    """

    prompts: int
    samples: int
    temperature: float
    timeouts: int
    metrics: dict[str, Estimate]

    @property
    def success(self) -> Estimate:
        """Mean reward of the sampled completions."""
        return self.metrics[f"mean@{self.samples}"]

    def dump(self) -> dict[str, Any]:
        """The result as JSON; the inverse of `parse`."""
        return asdict(self)

    @classmethod
    def parse(cls, data: Mapping[str, Any], where: str = "the evaluation") -> EvaluationResult:
        """A result from the output of `dump`. Other keys, such as the settings in result.json, are ignored.

        Raises:
            ValueError: If a key is missing or a value has another type; the message starts with `where`.
        """
        try:
            return cls(
                prompts=int(data["prompts"]),
                samples=int(data["samples"]),
                temperature=float(data["temperature"]),
                timeouts=int(data["timeouts"]),
                metrics={name: Estimate(**estimate) for name, estimate in data["metrics"].items()},
            )
        except KeyError as error:
            raise ValueError(f"{where} has no {error.args[0]!r}, so it is not the result of an evaluation") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{where} is not the result of an evaluation ({error})") from error

    @classmethod
    def load(cls, path: Path) -> EvaluationResult:
        """The result in an evaluation's result.json.

        Raises:
            ValueError: If it is missing or damaged; the message names the file.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{str(path)!r} does not exist, so the evaluation did not finish") from None
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        return cls.parse(data, str(path))


def metric_rows(results: Sequence[EvaluationResult]) -> list[list[str]]:
    """One row per metric: its label, and its estimate in each result ('-' if it has none).

    The share that was not graded in time appears only if it is above zero somewhere.
    """
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    if not any(result.metrics["timed_out"].mean for result in results if "timed_out" in result.metrics):
        names = [name for name in names if name != "timed_out"]
    return [
        [
            metric_label(name, results[0].temperature),
            *(str(result.metrics[name]) if name in result.metrics else "-" for result in results),
        ]
        for name in names
    ]


def metric_label(name: str, temperature: float) -> str:
    """What a table calls a metric."""
    return LABELS.get(name) or f"{name} (temperature {temperature:g})"
