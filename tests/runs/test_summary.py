"""What `bandpo train` says while it trains and at its end."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from bandpo.evaluation.result import EvaluationResult
from bandpo.evaluation.statistics import Estimate
from bandpo.progress import make_progress
from bandpo.runs.callbacks import ProgressDisplay
from bandpo.runs.summary import RunSummary, outcome, print_summary


def graded(success: tuple[float, float, float], entropy: tuple[float, float, float]) -> EvaluationResult:
    metrics = {"mean@4": Estimate(*success), "entropy": Estimate(*entropy)}
    return EvaluationResult(prompts=30, samples=4, temperature=1.0, timeouts=0, metrics=metrics)


def summary(**changed):
    return RunSummary(
        **{
            "steps": 32,
            "rollouts": 8,
            "seconds": 206.4,
            "rule": {"name": "band", "radius": 0.05},
            "before": graded((0.2, 0.1, 0.3), (2.1, 2.0, 2.2)),
            "after": graded((0.9, 0.8, 1.0), (0.4, 0.3, 0.5)),
            **changed,
        }
    )


def test_the_outcome_is_one_sentence():
    assert outcome(summary()) == (
        "In 32 updates (8 rollouts, 206 s) mean@4 rose from 0.200 to 0.900 and entropy fell from 2.100 to 0.400."
    )


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ((0.4, 0.31, 0.5), "mean@4 rose from 0.200 to 0.400"),
        ((0.4, 0.3, 0.5), "mean@4 shows no clear change (0.200 before, 0.400 after)"),
        ((0.15, 0.05, 0.25), "mean@4 shows no clear change (0.200 before, 0.150 after)"),
        ((0.04, 0.0, 0.09), "mean@4 fell from 0.200 to 0.040"),
    ],
)
def test_a_change_is_stated_only_if_the_intervals_are_apart(after, said):
    assert said in outcome(summary(after=graded(after, (2.1, 2.0, 2.2))))


def test_a_run_without_evaluation_says_so():
    assert outcome(summary(before=None, after=None)) == (
        "Made 32 updates (8 rollouts, 206 s); the recipe asks for no evaluation."
    )


@pytest.mark.parametrize(("rule", "other"), [("band", "clip"), ("clip", "band"), ("none", "clip")])
def test_the_end_names_three_commands(tmp_path, rule, other):
    written = io.StringIO()
    print_summary(summary(rule={"name": rule}), tmp_path / "run", Console(file=written, width=80))
    lines = written.getvalue().splitlines()
    start = lines.index("next:")
    commands = [line.split("  ")[1] for line in lines[start + 1 :]]
    run = tmp_path / "run"
    assert commands == [
        f"bandpo samples {run}",
        f"bandpo explore {run}",
        f"bandpo train {run / 'config.yaml'} rule.name={other}",
    ]
    assert len({line.rindex("  ") for line in lines[start + 1 :]}) == 1  # aligned


def test_a_log_file_gets_one_aligned_row_per_rollout():
    written = io.StringIO()
    with make_progress(Console(file=written, width=80), transient=True) as progress:
        display = ProgressDisplay(progress)
        state = SimpleNamespace(max_steps=16, global_step=0)
        display.on_train_begin(None, state, None)
        for step in range(1, 17):
            state.global_step = step
            logs = {"entropy": 2.0 / step, "band/clip_fraction": 0.01 * step}
            display.on_log(None, state, None, logs | ({"reward": step / 16} if step % 8 == 1 else {}))
        display.on_train_end(None, state, None)
    lines = [line for line in written.getvalue().splitlines() if line]
    assert [line.split() for line in lines] == [
        ["update", "reward", "entropy", "clipped"],
        ["8/16", "0.06", "0.68", "4.5%"],
        ["16/16", "0.56", "0.17", "12.5%"],
    ]
    assert len({len(line) for line in lines}) == 1
