"""bandpo grade."""

import json
import subprocess
import sys

import pytest

ROWS = [
    {"completion": "So \\boxed{\\frac{1}{2}}.", "answer": "0.5", "expected": 1},
    {"completion": "The answer is 7.", "answer": 7, "expected": True},
    {"completion": "The answer is 8.", "answer": "8", "expected": 0},
    {"completion": "I do not know", "answer": "3", "expected": 1.0},
    {"completion": "\\boxed{10^{10^{10}}}", "answer": "3", "expected": False},
]


def write(path, rows):
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8"
    )


def figures(printed):
    lines = [line.rsplit(maxsplit=1) for line in printed.splitlines() if not line.startswith("line ")]
    return {name.strip(): value for name, value in lines}


@pytest.mark.slow
def test_agreement_and_errors_are_counted(bandpo, tmp_path):
    write(tmp_path / "rows.jsonl", ROWS)
    printed = bandpo("grade", "rows.jsonl", "--time-limit", "2", "--output", "verdicts.jsonl")
    assert figures(printed) == {
        "rows": "5",
        "right": "3",
        "not graded in time": "1",
        "agreement": "60.00%",
        "false positives": "1",
        "false negatives": "1",
    }
    assert "line 3: reward 1, false positive: 8 for 8" in printed
    assert "line 4: reward 0, false negative" in printed
    assert "line 1" not in printed
    verdicts = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [(v["line"], v["reward"], v["timed_out"]) for v in verdicts] == [
        (1, 1.0, False),
        (2, 1.0, False),
        (3, 1.0, False),
        (4, 0.0, False),
        (5, 0.0, True),
    ]
    assert verdicts[0]["extracted"] == "\\frac{1}{2}"
    with pytest.raises(ValueError, match=r"'verdicts\.jsonl' exists"):
        bandpo("grade", "rows.jsonl", "--output", "verdicts.jsonl")


def test_expressions_of_every_row(bandpo, tmp_path):
    write(tmp_path / "rows.jsonl", [{"completion": "so I get pi/2", "answer": "\\frac{\\pi}{2}"}])
    printed = bandpo("grade", "rows.jsonl", "--expressions")
    assert "line 1: reward 1: \\pi /2 for \\frac{\\pi}{2}" in printed
    assert figures(printed) == {"rows": "1", "right": "1", "not graded in time": "0"}


def test_other_rewards(bandpo, tmp_path, monkeypatch):
    write(tmp_path / "rows.jsonl", [{"completion": "1 and 2", "answer": "2", "expected": 1}])
    (tmp_path / "own_grade.py").write_text("def half(completion, answer): return 0.5\n", encoding="utf-8")
    assert figures(bandpo("grade", "rows.jsonl", "--reward", "last_integer"))["agreement"] == "100.00%"
    assert figures(bandpo("grade", "rows.jsonl", "--reward", "exact"))["false negatives"] == "1"
    assert figures(bandpo("grade", "rows.jsonl", "--reward", "own_grade:half"))["false negatives"] == "1"
    with pytest.raises(ValueError, match="did you mean 'exact'"):
        bandpo("grade", "rows.jsonl", "--reward", "exat")


GOOD = {"completion": "5", "answer": "5"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows"),
        ([GOOD, "{"], "line 2 is not JSON"),
        ([GOOD, "[1]"], "line 2 is a list; allowed: an object"),
        ([GOOD, {"completion": "5", "gold": "5"}], "line 2 has no 'answer'; its keys are 'completion', 'gold'"),
        ([{"answer": "5"}], "line 1 has no 'completion'"),
        ([GOOD | {"answer": ["5"]}], "line 1: answer is \\['5'\\]; allowed: a string"),
        ([GOOD | {"answer": " "}], "line 1: answer is empty"),
        ([GOOD | {"completion": None}], "line 1: completion is None; allowed: a string"),
        ([GOOD | {"expected": "yes"}], "line 1: expected is 'yes'; allowed: a number"),
        ([GOOD | {"expected": 1}, GOOD], "line 2 has no 'expected', which other lines have"),
    ],
)
def test_mistakes_are_named_with_their_line(bandpo, tmp_path, rows, message):
    write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=message) as caught:
        bandpo("grade", "rows.jsonl")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_and_a_row_that_a_reward_refuses(bandpo, tmp_path):
    with pytest.raises(ValueError, match=r"cannot read 'nothing\.jsonl'"):
        bandpo("grade", "nothing.jsonl")
    write(tmp_path / "rows.jsonl", [GOOD, {"completion": "5", "answer": "x"}])
    with pytest.raises(ValueError, match=r"line 2: the reference answer is 'x'"):
        bandpo("grade", "rows.jsonl", "--reward", "last_integer")


def test_the_module_needs_no_torch():
    code = "import bandpo, sys; before = set(sys.modules); import bandpo.cli.grade; print(set(sys.modules) - before)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'bandpo.cli.grade'" in ended.stdout
    assert "'torch'" not in ended.stdout
    assert "'sympy'" not in ended.stdout
