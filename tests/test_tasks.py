"""Tasks and rewards."""

import json
import math

import pytest
from pydantic import ValidationError

from bandpo.tasks import Arithmetic, Problem, Questions, last_integer_reward, math_reward
from bandpo.tasks.arithmetic import written_sum


@pytest.mark.parametrize(
    ("completion", "answer", "value"),
    [
        ("The answer is \\boxed{\\frac{1}{2}}.", "0.5", 1.0),
        ("so we get 12 apples.", "12", 1.0),
        ("\\boxed{x^2 + 2x + 1}", "(x+1)^2", 1.0),
        ("The answer is 13.", "12", 0.0),
        ("I do not know", "12", 0.0),
        ("", "12", 0.0),
        ("\\boxed{{{{", "12", 0.0),
        ("\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}", "\\left( 3, \\frac{\\pi}{2} \\right)", 1.0),
    ],
)
def test_math_reward(completion, answer, value):
    assert math_reward(completion, answer) == value


def test_math_reward_refuses_an_empty_reference():
    with pytest.raises(ValueError, match="reference answer"):
        math_reward("12", " ")


@pytest.mark.parametrize(
    ("completion", "answer", "value"),
    [
        ("7+5=12;132", "132", 1.0),
        ("132 or 133", "132", 0.0),
        ("1,024", "1024", 1.0),
        ("-3", "-3", 1.0),
        ("", "3", 0.0),
    ],
)
def test_last_integer_reward(completion, answer, value):
    assert last_integer_reward(completion, answer) == value


def test_arithmetic_splits_every_problem_once():
    train, heldout = Arithmetic(low=1, high=9, operations=("+", "*"), heldout=30).problems()
    assert len(train) + len(heldout) == 2 * 81
    assert not {p.question for p in train} & {p.question for p in heldout}
    for problem in train + heldout:
        assert int(problem.answer) == eval(problem.question)
    assert Arithmetic(seed=0).problems() == Arithmetic(seed=0).problems()
    assert Arithmetic(seed=0).problems() != Arithmetic(seed=1).problems()


def test_written_sum_ends_in_the_sum():
    assert written_sum(47, 85) == "7+5=12;4+8+1=13;132"
    for a in range(0, 120, 7):
        for b in range(0, 120, 11):
            *steps, last = written_sum(a, b).split(";")
            assert int(last) == a + b
            for step in steps:
                left, right = step.split("=")
                assert eval(left) == int(right)


def test_questions_from_a_file(questions):
    task = Questions(data=str(questions), heldout=5, limit=10)
    train, heldout = task.problems()
    assert (len(train), len(heldout)) == (10, 5)
    assert not {p.question for p in train} & {p.question for p in heldout}
    other, apart = Questions(data=str(questions), heldout=5, heldout_data=str(questions)).problems()
    assert (len(other), len(apart)) == (15, 5)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], ["holds no problem"]),
        ([{"question": "2+2?"}], ["row 1", "'answer'"]),
        ([{"question": "2+2?", "answer": "4"}, {"question": "3+3?", "answer": ""}], ["row 2", "'answer'"]),
        (["not json"], ["line 1", "not JSON"]),
        ([[1, 2]], ["line 1", "list"]),
        ([{"question": "2+2?", "answer": "4"}], ["heldout is 100", "1 problems"]),
    ],
)
def test_bad_data_is_named(tmp_path, lines, words):
    path = tmp_path / "bad.jsonl"
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        Questions(data=str(path)).problems()
    for word in words:
        assert word in str(caught.value)


def test_missing_data_is_named():
    with pytest.raises(ValueError, match=r"'nowhere.jsonl' does not exist"):
        Questions(data="nowhere.jsonl").problems()


@pytest.mark.parametrize(
    "settings", [{"low": 5, "high": 4}, {"heldout": 400}, {"operations": ()}, {"steps": True, "operations": ("-",)}]
)
def test_impossible_arithmetic(settings):
    with pytest.raises(ValidationError):
        Arithmetic(**settings)


def test_prompt_follows_the_tokenizer(tiny):
    _, tokenizer = tiny
    task = Arithmetic(template="What is {question}?", system="Be brief.")
    problem = Problem("1 + 2", "3")
    assert task.prompt(problem, tokenizer) == "What is 1 + 2?"
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert task.prompt(problem, tokenizer) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1 + 2?"},
    ]
    assert Arithmetic(chat=False).prompt(problem, tokenizer) == "1 + 2"


def test_nan_reward_stops_training():
    from bandpo.tasks.rewards import REWARDS
    from bandpo.training.job import trl_reward

    REWARDS["broken"] = lambda completion, answer: math.nan
    try:
        with pytest.raises(ValueError, match="'broken' is nan"):
            trl_reward(Arithmetic(reward="broken"), [Problem("1", "1")])(
                completions=["1"], problem=[0], log_metric=lambda name, value: None
            )
    finally:
        del REWARDS["broken"]
