"""Reward for verl: Math-Verify through verl's own worker pool, which stops an answer that takes too long.

In a configuration: reward.custom_reward_function.path=pkg://bandpo.integrations.verl_reward
"""

from __future__ import annotations

from typing import Any

# verl's grader scores every answer 0 if Math-Verify is missing; here its absence ends the run at startup.
import math_verify  # noqa: F401
from verl.utils.reward_score import math_verify as grader


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **_: Any
) -> float:
    r"""1.0 if the answer in `solution_str` (in \boxed{}, else the last expression) equals `ground_truth`, else 0.0.

    Args:
        data_source, extra_info: Given by verl, not used.
        solution_str: The decoded response.
        ground_truth: The answer as text or LaTeX, without \boxed{}.
    """
    return float(grader.compute_score(solution_str, ground_truth))
