"""Tasks and rewards."""

import json
import math
import random
import sys
from collections import Counter

import pytest
from pydantic import ValidationError

from bandpo.tasks import (
    DATASETS,
    TASKS,
    TEMPLATES,
    Arithmetic,
    Mixture,
    Problem,
    Questions,
    ReasoningGym,
    Summands,
    benchmark,
    exact_reward,
    last_integer_reward,
    math_reward,
)
from bandpo.tasks.arithmetic import written_sum
from bandpo.tasks.rewards import choice_reward, chosen_letter, coin_reward, summands_reward


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
        ("007", "7", 1.0),
        ("-0", "0", 1.0),
        ("9" * 5000, "9" * 5000, 1.0),
        ("9" * 5000, "9", 0.0),
    ],
)
def test_last_integer_reward(completion, answer, value):
    assert last_integer_reward(completion, answer) == value


def test_last_integer_needs_an_integer():
    with pytest.raises(ValueError, match="reference answer is '1/2'"):
        last_integer_reward("1", "1/2")


@pytest.mark.parametrize(
    ("completion", "answer", "value"),
    [
        ("so \\boxed{a  b}", "a b", 1.0),
        ("The answer is A.", "A", 1.0),
        ("A", "A", 1.0),
        ("A\nor B", "A", 0.0),
        ("\\boxed{0.5}", "1/2", 0.0),
        ("", "A", 0.0),
    ],
)
def test_exact_reward(completion, answer, value):
    assert exact_reward(completion, answer) == value


def test_arithmetic_splits_every_problem_once():
    train, heldout = Arithmetic(low=1, high=9, operations=("+", "*"), heldout=30).problems()
    assert len(train) + len(heldout) == 2 * 81
    assert not {p.question for p in train} & {p.question for p in heldout}
    for problem in train + heldout:
        assert int(problem.answer) == eval(problem.question)
    assert Arithmetic(seed=0).problems() == Arithmetic(seed=0).problems()
    assert Arithmetic(seed=0).problems() != Arithmetic(seed=1).problems()


def test_written_sum_ends_in_the_sum():
    assert written_sum(47, 85, 0, random.Random(0)) == "7+5=12;4+8+1=13;132"
    for a in range(0, 120, 7):
        for b in range(0, 120, 11):
            *steps, last = written_sum(a, b, 0, random.Random(0)).split(";")
            assert int(last) == a + b
            for step in steps:
                left, right = step.split("=")
                assert eval(left) == int(right)


def test_slips_are_as_frequent_as_asked_and_carried_on():
    train, heldout = Arithmetic(low=10, high=99, steps=True, slips=0.4).problems()
    right = total = 0
    for problem in train + heldout:
        *steps, last = problem.solution.split(";")
        sums = [int(step.split("=")[1]) for step in steps]
        right += sum(eval(step.split("=")[0]) == value for step, value in zip(steps, sums, strict=True))
        total += len(steps)
        assert steps[1].count("+") == 1 + (sums[0] >= 10)
        assert last == f"{sums[1]}{sums[0] % 10}"
        assert int(problem.answer) == eval(problem.question)
    # A random number from 0 to 19 is right in one case of twenty; 16,200 sums.
    assert abs(right / total - (0.6 + 0.4 / 20)) < 0.016
    assert (
        Arithmetic(steps=True).problems()[0][0].question
        == Arithmetic(steps=True, slips=0.4).problems()[0][0].question
    )


def test_letters_stand_before_the_sum_and_follow_their_weights():
    plain, lettered = (Arithmetic(low=10, high=99, steps=True, letters=k).problems()[0] for k in (0, 6))
    assert [p.question for p in plain] == [p.question for p in lettered]
    counts = Counter()
    for one, other in zip(plain, lettered, strict=True):
        letters, blank, rest = other.solution[:6], other.solution[6], other.solution[7:]
        assert (blank, rest) == (" ", one.solution)
        assert last_integer_reward(other.solution, other.answer) == 1
        counts.update(letters)
    total, harmonic = sum(counts.values()), sum(1 / rank for rank in range(1, 17))
    for rank, letter in enumerate("abcdefghijklmnop", 1):
        assert abs(counts[letter] / total - 1 / rank / harmonic) < 0.008  # 4 standard errors of 48,000 letters
    assert len(counts) == 16


def test_a_coin_is_fair_and_falls_alike_on_the_same_text():
    texts = [f"text {i}" for i in range(4000)]
    one, other = ([coin_reward(text, answer) for text in texts] for answer in ("1", "2"))
    assert one == [coin_reward(text, "1") for text in texts]
    assert set(one) == {0.0, 1.0}
    assert abs(sum(one) / 4000 - 0.5) < 0.032  # 4 standard errors
    assert abs(sum(a == b for a, b in zip(one, other, strict=True)) / 4000 - 0.5) < 0.032


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
        ([], ["has no problems"]),
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
    "settings",
    [
        {"low": 5, "high": 4},
        {"heldout": 400},
        {"operations": ()},
        {"steps": True, "operations": ("-",)},
        {"slips": 0.1},
        {"steps": True, "slips": 1.0},
        {"letters": 6},
        {"steps": True, "letters": -1},
    ],
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


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


ROWS = {
    "gsm8k": (
        {"question": "Two and two?", "answer": "It is 2+2=<<2+2=4>>4.\n#### 1,004"},
        ("Two and two?", "1004", "It is 2+2=4."),
    ),
    "math": (
        {"problem": "Half?", "level": "Level 3", "type": "Algebra", "solution": "So $\\boxed{\\frac{1}{2}}$."},
        ("Half?", "\\frac{1}{2}", "So $\\boxed{\\frac{1}{2}}$."),
    ),
    "math500": (
        {"problem": "Half?", "solution": "So.", "answer": "\\frac12", "level": 3},
        ("Half?", "\\frac12", "So."),
    ),
    "dapo-math-17k": (
        {"prompt": "What is 6 times 6?", "solution": "36", "reward_model": {"ground_truth": "36", "style": "rule"}},
        ("What is 6 times 6?", "36", None),
    ),
    "amc23": ({"id": 0, "question": "Three cubed?", "answer": 27.0}, ("Three cubed?", "27", None)),
    "aime24": ({"id": 60, "problem": "P", "solution": "S", "answer": "033"}, ("P", "033", "S")),
    "aime25": ({"problem": "P", "answer": 70, "id": "0"}, ("P", "70", None)),
    "commonsense-qa": (
        {"id": "0", "question": "Q?", "choices": {"label": ["A", "B"], "text": ["x", "y"]}, "answerKey": "B"},
        ("Q?\nA. x\nB. y", "B", None),
    ),
}


@pytest.mark.parametrize("name", DATASETS)
def test_rows_of_every_known_data_set(name, tmp_path):
    row, expected = ROWS[name]
    _, problems = benchmark(write(tmp_path / "rows.jsonl", [row]), columns=name)
    assert [(p.question, p.answer, p.solution) for p in problems] == [expected]


def test_dapo_in_the_form_of_verl(tmp_path):
    prompt = (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
        "$Answer (without quotes) where $Answer is the answer to the problem.\n\nWhat is 6 times 6?\n\nRemember to "
        'put your answer on its own line after "Answer:".'
    )
    row = {"prompt": [{"role": "user", "content": prompt}], "reward_model": {"ground_truth": "36"}}
    train, _ = Questions(
        data=write(tmp_path / "a.jsonl", [row] * 3),
        columns="dapo-math-17k",
        heldout_data=write(tmp_path / "b.jsonl", [{"prompt": "x", "reward_model": {"ground_truth": 1}}]),
    ).problems()
    assert train == [Problem("What is 6 times 6?", "36")]


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the hub that remembers what was asked of it."""
    import datasets

    asked = []

    def load_dataset(repository, subset=None, *, split):
        asked.append((repository, subset, split))
        if repository == "nobody/nothing":
            raise FileNotFoundError("there is no such data set\nat all")
        return [
            {"problem": f"{subset} {i}?", "level": f"Level {i}", "solution": f"\\boxed{{{i}}}"} for i in range(1, 6)
        ]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_known_data_sets_come_from_the_hub(hub):
    task = Questions(data="math", levels=[3, 5], heldout=4)
    train, heldout = task.problems()
    assert (len(train), len(heldout)) == (7 * 2 - 4, 4)
    assert {p.answer for p in train + heldout} == {"3", "5"}
    assert len(hub) == 7
    assert {(repository, split) for repository, _, split in hub} == {("EleutherAI/hendrycks_math", "train")}
    hub.clear()
    assert len(benchmark("math", subset="algebra")[1]) == 5
    assert hub == [("EleutherAI/hendrycks_math", "algebra", "test")]
    hub.clear()
    benchmark("me/mine", columns="math", split="validation")
    assert hub == [("me/mine", None, "validation")]


@pytest.mark.parametrize(
    ("source", "settings", "words"),
    [
        ("nobody/nothing", {}, ["'nobody/nothing'", "there is no such data set"]),
        ("dapo-math-17k", {}, ["'dapo-math-17k'", "no test split", "task.split"]),
        ("math", {"levels": [9]}, ["'math'", "has no problems"]),
        ("math", {"tempalte": "boxed"}, ["'tempalte'", "did you mean 'template'"]),
        ("math", {"template": "boxd"}, ["'boxd'", "did you mean 'boxed'"]),
        ("math", {"columns": "mth"}, ["'mth'", "did you mean 'math'"]),
        ("math", {"heldout": 0}, ["heldout is 0"]),
        ("me/mine", {}, ["me/mine, row 1", "'question'", "'problem', 'level', 'solution'"]),
        ("me/mine", {"columns": "gsm8k"}, ["me/mine, row 1", "'question'"]),
    ],
)
def test_mistakes_about_data_sets_are_named(hub, source, settings, words):
    with pytest.raises(ValueError) as caught:
        benchmark(source, **settings)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_name_near_a_known_one_is_suggested(monkeypatch):
    import datasets

    def nothing(*_, **__):
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", nothing)
    with pytest.raises(ValueError, match=r"'gsm8' \(did you mean 'gsm8k'\?\).*ConnectionError"):
        benchmark("gsm8")


def test_a_solution_without_an_answer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"row 1: no answer in 'solution': 'so \$7\$'"):
        benchmark(write(tmp_path / "a.jsonl", [{"problem": "P", "solution": "so $7$"}]), columns="math")
    with pytest.raises(ValueError, match=r"levels is \[3\], but .*row 1 has no 'level'"):
        benchmark(write(tmp_path / "a.jsonl", [{"question": "P", "answer": "7"}]), levels=[3])


def test_json_and_parquet_files(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"question": "a\u2028b?", "answer": "1"}, {"question": "c?", "answer": "2"}]
    expected = [Problem("a\u2028b?", "1"), Problem("c?", "2")]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    (tmp_path / "b.json").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    for name in ("a.json", "b.json", "c.parquet"):
        assert benchmark(str(tmp_path / name))[1] == expected
    (tmp_path / "d.parquet").write_text("x", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a parquet file"):
        benchmark(str(tmp_path / "d.parquet"))
    (tmp_path / "e.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match="is a int; allowed: an object"):
        benchmark(str(tmp_path / "e.json"))


def test_a_question_that_stands_twice_counts_once(tmp_path):
    rows = [{"question": f"{i % 3}?", "answer": str(i)} for i in range(9)]
    with pytest.warns(UserWarning, match="3 questions occur more than once"):
        train, heldout = Questions(data=write(tmp_path / "a.jsonl", rows), heldout=1).problems()
    assert {(p.question, p.answer) for p in train + heldout} == {("0?", "0"), ("1?", "1"), ("2?", "2")}
    assert len(train) == 2


def test_what_is_held_out_is_not_trained_on(questions):
    train, heldout = Questions(data=str(questions), heldout=5, heldout_data=str(questions)).problems()
    assert len(train) == 15
    assert not {p.question for p in train} & {p.question for p in heldout}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_by_name(name, tiny):
    task = Arithmetic(template=name, chat=False)
    assert task.prompt(Problem("1 + 2", "3"), tiny[1]) == TEMPLATES[name].replace("{question}", "1 + 2")
    assert "{question}" in TEMPLATES[name]


@pytest.fixture
def own_rewards(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def half(completion, answer): return 0.5\n"
        "def word(completion, answer): return 'good'\n"
        "def length(text, scale=1): return scale * len(text)\n"
        "number = 3\n",
        encoding="utf-8",
    )
    (tmp_path / "broken_rewards.py").write_text("1/0\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield
    sys.modules.pop("my_rewards", None)


def test_own_rewards(own_rewards):
    assert Arithmetic(reward="my_rewards:half").score([Problem("1 + 1", "2")], ["x"]) == [(0.5, False)]
    with pytest.raises(ValueError, match="'my_rewards:word' returned 'good', a str; allowed: a number"):
        Arithmetic(reward="my_rewards:word").score([Problem("1 + 1", "2")], ["x"])


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ("mth", ["'mth'", "did you mean 'math'", "module:function"]),
        ("nowhere_at_all:f", ["'nowhere_at_all'", "ModuleNotFoundError"]),
        ("broken_rewards:f", ["'broken_rewards'", "ZeroDivisionError"]),
        ("my_rewards:hlf", ["my_rewards has no 'hlf'", "did you mean 'half'"]),
        ("my_rewards:number", ["is a int; allowed: a function"]),
    ],
)
def test_wrong_rewards_are_named(own_rewards, reward, words):
    with pytest.raises(ValidationError) as caught:
        Arithmetic(reward=reward)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.slow
def test_time_limit_of_a_task(monkeypatch):
    from bandpo.tasks.grading import DEFAULT_TIME_LIMIT, Grader

    limits = []
    grade = Grader.grade
    monkeypatch.setattr(Grader, "grade", lambda self, some, limit: limits.append(limit) or grade(self, some, limit))
    problems, completions = [Problem("?", "7"), Problem("?", "1/2")], ["\\boxed{10^{10^{10}}}", "\\boxed{0.5}"]
    assert Questions(data="x", time_limit=0.3).score(problems, completions) == [(0.0, True), (1.0, False)]
    Questions(data="x").score(problems[1:], completions[1:])
    ReasoningGym(dataset="chain_sum", time_limit=2.5).score([Problem("?", "7")], ["7"])
    assert limits == [0.3, DEFAULT_TIME_LIMIT, 2.5]


@pytest.mark.slow
def test_reasoning_gym():
    task = ReasoningGym(dataset="chain_sum", options={"max_terms": 3}, size=30, heldout=10, seed=1)
    train, heldout = task.problems()
    assert (len(train), len(heldout)) == (30, 10)
    assert not {p.question for p in train} & {p.question for p in heldout}
    assert task.problems() == (train, heldout)
    assert task.model_copy(update={"seed": 2}).problems()[0] != train
    for problem in train:
        assert eval(problem.question.split(":")[1].rstrip("= ")) == int(problem.answer)
    one = train[0]
    completions = [f"<answer>{one.answer}</answer>", f"\\boxed{{{one.answer}}}", "<answer>x</answer>", ""]
    assert [s.value for s in task.score([one] * 4, completions)] == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.slow
def test_reasoning_gym_scores_with_its_own_judgement():
    """countdown has many right answers, none of which its entry need name."""
    task = ReasoningGym(dataset="countdown", size=3, heldout=1)
    problem = task.problems()[0][0]
    target, terms = problem.details["metadata"]["target"], problem.details["metadata"]["expression"]
    scores = task.score([problem] * 2, [f"<answer>({terms})</answer>", f"<answer>{target}</answer>"])
    assert scores[0].value == 1.0
    assert scores[1].value < 1.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dataset": "chain_sun"}, ["'chain_sun'", "did you mean 'chain_sum'"]),
        ({"dataset": "chain_sum", "options": {"min_term": 1}}, ["'min_term'", "did you mean 'min_terms'"]),
        ({"dataset": "chain_sum", "options": {"min_terms": -1}}, ["min_terms must be positive"]),
        ({"dataset": "chain_sum", "reward": "math"}, ["reward"]),
    ],
)
def test_impossible_reasoning_gym(settings, words):
    with pytest.raises(ValidationError) as caught:
        ReasoningGym(**settings)
    for word in words:
        assert word in str(caught.value)


def test_reasoning_gym_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(ValidationError, match=r"pip install 'bandpo\[gym\]'"):
        ReasoningGym(dataset="chain_sum")


SUMS = {"name": "arithmetic", "low": 1, "high": 9, "heldout": 11, "template": "Add {question}."}
PRODUCTS = {"name": "arithmetic", "low": 1, "high": 9, "operations": ["*"], "heldout": 21, "reward": "exact"}


def test_mixture_keeps_each_part_as_it_is(tiny):
    task = Mixture(parts=[SUMS, PRODUCTS])
    train, heldout = task.problems()
    assert (len(train), len(heldout)) == (2 * 81 - 32, 32)
    assert task.problems() == (train, heldout)
    assert {p.origin for p in train[:20]} == {"arithmetic", "arithmetic-2"}
    for problem in (train[0], train[-1], heldout[0]):
        prompt = f"Add {problem.question}." if "+" in problem.question else problem.question
        assert task.prompt(problem, tiny[1]) == prompt
    # The last integer counts for the sums only; every third is wrong.
    scores = task.score(train, [f"it is\n{p.answer if i % 3 else -1}" for i, p in enumerate(train)])
    assert [s.value for s in scores] == [float("+" in p.question and i % 3 > 0) for i, p in enumerate(train)]


@pytest.mark.parametrize(("weights", "sizes"), [([1, 3], (20, 60)), ([0.1, 3.7], (1, 60)), ([1, 1000], (1, 60))])
def test_mixture_weights(weights, sizes):
    parts = [{**SUMS, "heldout": 11}, PRODUCTS]  # 70 and 60 to train on
    train, _ = Mixture(parts=parts, weights=weights).problems()
    assert tuple(sum(p.origin == origin for p in train) for origin in ("arithmetic", "arithmetic-2")) == sizes
    assert len(set(train)) == len(train)
    assert Mixture(parts=parts, weights=weights).problems()[0] == train
    assert Mixture(parts=parts, weights=weights, seed=1).problems()[0] != train


def test_mixture_with_other_held_out_parts(tiny):
    other = {**SUMS, "template": "qa", "heldout": 81 - 1}
    task = Mixture(parts=[SUMS, PRODUCTS], heldout_parts=[other])
    train, heldout = task.problems()
    assert {p.origin for p in heldout} == {"heldout/arithmetic"}
    assert len(heldout) == 80
    assert not {p.question for p in train} & {p.question for p in heldout}
    assert task.prompt(heldout[0], tiny[1]) == f"Question: {heldout[0].question}\nAnswer:"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"parts": []}, "at least 1 item"),
        ({"parts": [SUMS], "template": "qa"}, "template of a mixture must be set in its parts"),
        ({"parts": [SUMS], "weights": [1, 2]}, "weights has 2 numbers for 1 parts"),
        ({"parts": [SUMS], "weights": [0]}, "allowed: finite numbers > 0"),
        ({"parts": [SUMS], "weights": [math.nan]}, "allowed: finite numbers > 0"),
        ({"parts": [SUMS, {**PRODUCTS, "chat": False}]}, "agree on chat"),
        ({"parts": [{"name": "mixture", "parts": [SUMS]}]}, "mixture"),
    ],
)
def test_impossible_mixtures(settings, words):
    with pytest.raises(ValidationError, match=words):
        Mixture(**settings)


def test_a_part_with_nothing_left_is_named():
    other = {**SUMS, "heldout": 80, "seed": 5}
    with pytest.raises(ValueError, match="part 'arithmetic' of the mixture has no problem left"):
        Mixture(parts=[{**SUMS, "train_size": 1, "heldout": 80}], heldout_parts=[other]).problems()


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"name": "mixture", "parts": [SUMS, {**SUMS, "lwo": 1}]}, ["'task.parts.1.lwo'", "did you mean 'low'"]),
        (
            {"name": "mixture", "parts": [SUMS], "heldout_parts": [{**SUMS, "hihg": 1}]},
            ["'task.heldout_parts.0.hihg'", "did you mean 'high'"],
        ),
        ({"name": "mixture", "parts": [{"name": "arithmetc"}]}, ["in task.parts.0", "did you mean 'arithmetic'"]),
        (
            {"name": "mixture", "parts": [{"name": "mixture", "parts": [SUMS]}]},
            ["'mixture' in task.parts.0; known tasks: arithmetic"],
        ),
        ({"name": "mixture", "parts": [{"name": "questions"}]}, ["'task.parts.0.data' is missing"]),
        ({"name": "mixture", "parts": [{**SUMS, "low": "a"}]}, ["task.parts.0.low is 'a'", "integer"]),
        ({"name": "mixture", "part": [SUMS]}, ["'task.part'", "did you mean 'parts'"]),
        ({"name": "reasoning-gim"}, ["'reasoning-gim'", "did you mean 'reasoning-gym'"]),
        ({"low": 1}, ["task has no name", "arithmetic"]),
        ({"name": "arithmetic", "template": "boxd"}, ["task.template", "did you mean 'boxed'"]),
    ],
)
def test_mistakes_in_a_recipe_come_out_as_one_sentence(task, words):
    from bandpo.runs.config import validate_config

    with pytest.raises(ValueError) as caught:
        validate_config({"model": {"path": "x"}, "task": task})
    assert "\n" not in str(caught.value)
    assert "union" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_tasks_page_names_everything():
    from typer.testing import CliRunner

    from bandpo.cli.app import app
    from bandpo.tasks import REWARDS, SHAPING

    page = CliRunner().invoke(app, ["tasks"], env={"COLUMNS": "200"}).output
    for name in (*TASKS, *DATASETS, *TEMPLATES, *REWARDS, *SHAPING, "task.time_limit", "[low, high]", "buffer=512"):
        assert name in page
    one = CliRunner().invoke(app, ["tasks", "mixture"], env={"COLUMNS": "200"}).output
    assert "task.parts" in one
    assert "task.low" not in one
    mistake = CliRunner().invoke(app, ["tasks", "mixtur"]).exception
    assert "did you mean 'mixture'" in str(mistake)


def test_nan_reward_stops_training():
    from bandpo.runs.build import trl_reward
    from bandpo.tasks.rewards import REWARDS

    REWARDS["broken"] = lambda completion, answer: math.nan
    try:
        with pytest.raises(ValueError, match="'broken' returned nan"):
            trl_reward(Arithmetic(reward="broken"), [Problem("1", "1")])(
                completions=["1"], problem=[0], log_metric=lambda name, value: None
            )
    finally:
        del REWARDS["broken"]


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        *(
            (text, "B")
            for text in ("B", " (b)\n", "B. river", "b) river", "B: river", "**B**", "option B", "Choice (B)")
        ),
        *(
            (text, "B")
            for text in (
                r"\boxed{B}",
                r"\boxed{\text{B}}",
                r"\boxed{\textbf{(B) river}}",
                "It is a bank.\nThe answer is B.",
            )
        ),
        ("<answer>C</answer>", "C"),
        ("C, because A is wrong", "C"),
        *((text, None) for text in ("", "bank", "a bank", "A river", "A or B", "I think B", "B5", "5", "It's B")),
    ],
)
def test_choice_reward(completion, letter):
    assert chosen_letter(completion) == letter
    for answer in "ABC":
        assert choice_reward(completion, answer) == (answer == letter)


def test_choice_reward_refuses_a_reference_that_is_no_letter():
    with pytest.raises(ValueError, match="reference answer is '2'; reward 'choice' needs a letter"):
        choice_reward("B", "2")


@pytest.mark.parametrize(
    ("completion", "answer", "value"),
    [
        ("3+4", "7", 1),
        (" 03 + 4\n", "7", 1),
        ("3+4", "3+4", 1),
        *(("4+3", answer, 0) for answer in ("3+4", "8")),
        *((text, "7", 0) for text in ("7", "0+7", "7+0", "-1+8", "3+4+0", "3+4=7", "3 4", "", "3.0+4")),
    ],
)
def test_summands_reward(completion, answer, value):
    assert summands_reward(completion, answer) == value


def test_summands_are_named_as_often_as_said():
    train, heldout = Summands(low=20, high=59, heldout=10, slips=0.25, size=20_000).problems()
    assert len(train) == 20_000
    assert {p.question for p in train} | {p.question for p in heldout} == {str(n) for n in range(20, 60)}
    assert not {p.question for p in train} & {p.question for p in heldout}
    right = ones = expected_right = expected_ones = 0.0
    for problem in train:
        total, first = int(problem.question), int(problem.solution.split("+")[0])
        assert 1 <= first < total
        right += summands_reward(problem.solution, problem.answer)
        ones += first == 1
        expected_right += 0.75 + 0.25 / (total - 1)
        expected_ones += 1 / sum(1 / a for a in range(1, total))
    assert abs(right - expected_right) / 20_000 < 0.013  # 4 standard errors
    assert abs(ones - expected_ones) / 20_000 < 0.013
    rarest = Summands(heldout=10, only_rarest=True).problems()[1]
    assert [p.answer for p in rarest] == [f"{int(p.question) - 1}+1" for p in rarest]


@pytest.mark.parametrize("settings", [{"low": 9, "high": 8}, {"low": 20, "high": 29, "heldout": 10}, {"slips": 1.0}])
def test_impossible_summands(settings):
    with pytest.raises(ValidationError):
        Summands(**settings)
