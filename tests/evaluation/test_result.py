"""An evaluation's result in memory, in its file and in a table."""

import json

import pytest

from bandpo.evaluation import Estimate, EvaluationResult
from bandpo.evaluation.result import metric_rows

# As version 0.1 wrote it, with its settings beside the estimates.
FILE = {
    "when": "after",
    "task": {"name": "arithmetic"},
    "prompts": 8,
    "samples": 2,
    "max_new_tokens": 4,
    "temperature": 1.0,
    "top_p": 1.0,
    "greedy": True,
    "batch_size": 64,
    "seed": 0,
    "timeouts": 0,
    "metrics": {
        "mean@2": {"mean": 0.25, "low": 0.125, "high": 0.375},
        "entropy": {"mean": 1.5, "low": 1.25, "high": 1.75},
        "timed_out": {"mean": 0.0, "low": 0.0, "high": 0.0},
    },
}


def test_a_result_survives_its_file(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(FILE))
    result = EvaluationResult.load(path)
    assert (result.prompts, result.samples, result.temperature, result.timeouts) == (8, 2, 1.0, 0)
    assert result.success == Estimate(0.25, 0.125, 0.375)
    assert list(result.metrics) == ["mean@2", "entropy", "timed_out"]
    assert result.dump() == {key: FILE[key] for key in ("prompts", "samples", "temperature", "timeouts", "metrics")}
    assert EvaluationResult.parse(json.loads(json.dumps(result.dump()))) == result


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"{", "is damaged"),
        (b"\xff", "is damaged"),
        (b"[]", "is not the result of an evaluation"),
        (b"{}", "has no 'prompts'"),
        (json.dumps({**FILE, "metrics": {"length": {"mean": 1}}}).encode(), "is not the result of an evaluation"),
        (json.dumps({**FILE, "samples": None}).encode(), "is not the result of an evaluation"),
        (json.dumps({**FILE, "metrics": []}).encode(), "is not the result of an evaluation"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, words):
    path = tmp_path / "result.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        EvaluationResult.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_of_results():
    first = EvaluationResult.parse(FILE)
    late = Estimate(0.5, 0.5, 0.5)
    second = EvaluationResult(8, 4, 1.0, 16, {"mean@4": Estimate(1, 1, 1), "timed_out": late})
    rate = "mean@2 (temperature 1)"
    assert metric_rows([first]) == [
        [rate, "0.250 [0.125, 0.375]"],
        ["entropy (nats/token)", "1.500 [1.250, 1.750]"],
    ]
    assert metric_rows([first, second]) == [
        [rate, "0.250 [0.125, 0.375]", "-"],
        ["entropy (nats/token)", "1.500 [1.250, 1.750]", "-"],
        ["not graded in time", "0.000 [0.000, 0.000]", "0.500 [0.500, 0.500]"],
        ["mean@4 (temperature 1)", "-", "1.000 [1.000, 1.000]"],
    ]
