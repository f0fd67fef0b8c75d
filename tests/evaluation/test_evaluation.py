"""Sampling and the estimates made from it."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bandpo.evaluation import Completion, Grade, Sampling, bootstrap_mean, evaluate_into, pass_at_k, sample
from bandpo.evaluation.evaluate import summarize
from bandpo.evaluation.sampling import encode
from bandpo.evaluation.store import read_grades
from bandpo.evaluation.voting import EXTRACTORS, canonical, extractor, final_answer, majority
from bandpo.tasks import REWARDS, Arithmetic, Problem, Score, Summands, benchmark
from helpers import held_elsewhere


def test_pass_at_k_equals_enumeration():
    for n, c in [(5, 0), (5, 2), (5, 5), (6, 1)]:
        outcomes = [1] * c + [0] * (n - c)
        for k in range(1, n + 1):
            draws = list(itertools.combinations(outcomes, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("n", "c", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1)])
def test_pass_at_k_refuses(n, c, k):
    with pytest.raises(ValueError, match="allowed:"):
        pass_at_k(n, c, k)


def test_bootstrap_interval_covers_the_mean():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        values = generator.binomial(1, 0.3, 60).tolist()
        estimate = bootstrap_mean(values, resamples=400)
        covered += estimate.low <= 0.3 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99
    assert bootstrap_mean([1.0, 1.0]) == bootstrap_mean([1.0])
    with pytest.raises(ValueError, match="empty"):
        bootstrap_mean([])


@pytest.mark.parametrize(
    ("finals", "rewards", "value"),
    [
        (["3", "3", "4"], [1, 1, 0], 1.0),
        (["3", "4", "4"], [1, 0, 0], 0.0),
        (["3", "4"], [1, 0], 0.5),
        (["3", "4", "5", "5", "3", "6"], [1, 0, 0, 0, 1, 0], 0.5),
        (["3", None, None, None], [1, 0, 0, 0], 1.0),
        ([None, None], [0, 0], 0.0),
        (["a", "a"], [0.5, 1.0], 0.75),
    ],
)
def test_majority(finals, rewards, value):
    assert majority(finals, rewards) == value
    assert majority(finals[::-1], rewards[::-1]) == value


def test_equal_numbers_have_one_writing():
    for group in (
        ["1000", "x = 1000", "1,000", "1000.0", "$1000$", "01000"],
        ["0.5", ".5", "1/2", r"\frac{1}{2}", r"\dfrac{2}{4}"],
        ["-1/2", r"-\frac{1}{2}", "-0.50"],
        [r"(1, 2)", r"\left(1,2\right)"],
    ):
        assert len({canonical(answer) for answer in group}) == 1, group
    apart = ["1,2", "12", "1/0", "2/1/2", "x", "X", "9" * 5000, "9" * 4999, "1e3", "1000", "1,0000", "10000"]
    assert len({canonical(answer) for answer in apart}) == len(apart)


@pytest.mark.parametrize(
    ("text", "final"),
    [
        (r"First 7, so \boxed{\frac{1}{2}}.", "1/2"),
        ("2 + 2 gives\nthe answer is 4 apples, not 5", "5"),
        ("1 + 2 = 3\nthen 3 + 1,000 = 1,003.", "1003"),
        (r"\boxed{10\text{ cm}^2}", "10"),
        (r"\boxed{\frac{270}7\text{ degrees}}", r"\frac{270}7"),
        (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{pmatrix}1\2\end{pmatrix}"),
        (r"\boxed{\text{Evelyn}}", "Evelyn"),
        (r"so we get \frac{1}{4} of it", "4"),
        ("The area\nis 10 cm^{2}", "10"),
        ("Thus\n<answer>it costs 18 dollars</answer>", "18"),
        ("-3", "-3"),
        ("no number here", None),
        ("", None),
    ],
)
def test_final_answer(text, final):
    assert final_answer(text) == final


def test_every_reward_says_how_it_reads_a_final_answer():
    assert set(EXTRACTORS) == set(REWARDS)
    assert extractor(Arithmetic(reward="math:isclose")) is None, "the user's own"


def test_only_a_task_that_grades_final_answers_votes(tiny, tmp_path):
    assert extractor(Arithmetic())("1 + 2 = 03") == "3"
    assert extractor(Arithmetic(reward="math"))("x = 1/2\n") == "1/2"
    task = Lookup(low=1, high=3, heldout=4)
    assert extractor(task) is None
    problems = [Problem("q", "a", details=lambda text: 0.5)]
    result = evaluate_into(tmp_path, *tiny, task, problems, **settings())
    assert "maj@2" not in result.result.metrics
    assert result.grades[0].finals == [None, None]


def test_sampling_entropy_length_and_order(tiny):
    model, tokenizer = tiny
    prompts = ["1+1=", "22+22=", "3"]
    drawn = sample(model, tokenizer, prompts, Sampling(samples=2, max_new_tokens=5, batch_size=4))
    assert [len(d) for d in drawn] == [2, 2, 2]
    again = sample(model, tokenizer, prompts, Sampling(samples=2, max_new_tokens=5, batch_size=4))
    assert drawn == again
    # The first step's entropy, computed from one plain forward pass.
    one = sample(model, tokenizer, prompts[:1], Sampling(samples=1, max_new_tokens=1))[0][0]
    with torch.no_grad():
        logits = model(torch.tensor([encode(prompts[0], tokenizer)])).logits[0, -1]
    expected = torch.distributions.Categorical(logits=logits).entropy().item()
    assert one.entropy == pytest.approx(expected, rel=1e-5)
    assert one.tokens == 1


def test_greedy_equals_argmax(tiny):
    model, tokenizer = tiny
    text = sample(model, tokenizer, ["7+8="], Sampling(samples=1, max_new_tokens=3, temperature=0))[0][0].text
    ids = encode("7+8=", tokenizer)
    with torch.no_grad():
        for _ in range(3):
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    assert text == tokenizer.decode(ids[-3:], skip_special_tokens=True)


def test_the_models_own_generation_settings_do_not_apply(tiny):
    model, tokenizer = tiny
    settings = Sampling(samples=8, max_new_tokens=12)
    plain = sample(model, tokenizer, ["7+8="], settings)
    best = sample(model, tokenizer, ["7+8="], replace(settings, temperature=0))
    for name, value in {
        "repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "temperature": 0.1, "top_k": 1, "top_p": 0.01,
        "min_p": 0.9, "typical_p": 0.1,
    }.items():  # fmt: skip
        setattr(model.generation_config, name, value)
    assert sample(model, tokenizer, ["7+8="], settings) == plain
    assert sample(model, tokenizer, ["7+8="], replace(settings, temperature=0)) == best


def test_a_small_nucleus_is_greedy(tiny):
    model, tokenizer = tiny
    settings = Sampling(samples=3, max_new_tokens=6)
    (narrow,) = sample(model, tokenizer, ["7+8="], replace(settings, top_p=1e-6))
    (best,) = sample(model, tokenizer, ["7+8="], replace(settings, temperature=0))
    (wide,) = sample(model, tokenizer, ["7+8="], settings)
    assert [c.text for c in narrow] == [c.text for c in best]
    assert [c.text for c in wide] != [c.text for c in best]
    assert narrow[0].entropy == pytest.approx(best[0].entropy), "entropy is that before truncation"


def test_padding_does_not_change_a_completion(tiny):
    model, tokenizer = tiny
    greedy = Sampling(samples=1, max_new_tokens=4, temperature=0)
    alone = sample(model, tokenizer, ["5"], greedy)[0][0]
    beside = sample(model, tokenizer, ["5", "a much longer prompt"], greedy)[0][0]
    assert alone.text == beside.text


def graded(rewards, finals, entropy=1.0):
    completions = [Completion("x", i + 1, truncated=i == 0, entropy=entropy) for i in range(len(rewards))]
    return Grade(Problem("q", "a"), completions, rewards, [False, *[True] * (len(rewards) - 1)], finals)


def test_the_estimates_of_hand_made_grades():
    grades = [graded([1.0, 0.5, 0.0], ["3", "4", "5"]), graded([1.0, 1.0, 0.0], ["3", "3", None])]
    means = {name: estimate.mean for name, estimate in summarize(grades, voting=True).items()}
    expected = {
        "mean@3": (0.5 + 2 / 3) / 2, "maj@3": (0.5 + 1) / 2, "pass@2": (2 / 3 + 1) / 2, "pass@3": 1.0,
        "entropy": 1.0, "length": 2.0, "truncated": 1 / 3, "timed_out": 2 / 3,
    }  # fmt: skip
    assert list(means) == list(expected)
    assert means == pytest.approx(expected)
    unknown = [*grades, graded([1.0, 1.0, 0.0], ["3", "3", None], entropy=None)]
    assert list(summarize(unknown, voting=True)) == [name for name in expected if name != "entropy"]


def settings(greedy=False, identity=None, progress=None, **changes):
    """Arguments of `evaluate_into`; `changes` are the sampling's."""
    sampling = Sampling(**{"samples": 2, "max_new_tokens": 4, "batch_size": 6, "seed": 5, **changes})
    identity = {"model": "tiny"} if identity is None else identity
    return {"sampling": sampling, "greedy": greedy, "identity": identity, "progress": progress}


def test_result_reports_what_the_rewards_say(tiny, tmp_path):
    model, tokenizer = tiny
    task = Arithmetic(low=1, high=3, heldout=4)
    problems = task.problems()[1]
    result = evaluate_into(tmp_path, model, tokenizer, task, problems, **settings(samples=4, greedy=True))
    assert list(result.result.metrics) == [
        *("mean@4", "maj@4", "pass@2", "pass@4"),
        *("entropy", "length", "truncated", "timed_out", "greedy"),
    ]
    means = [sum(g.rewards) / 4 for g in result.grades]
    assert result.result.metrics["mean@4"].mean == pytest.approx(sum(means) / 4)
    votes = [majority(g.finals, g.rewards) for g in result.grades]
    assert result.result.metrics["maj@4"].mean == pytest.approx(sum(votes) / 4)
    assert result.result.metrics["pass@4"].mean == pytest.approx(sum(max(g.rewards) for g in result.grades) / 4)
    prompts = [task.prompt(p, tokenizer) for p in problems]
    best = sample(model, tokenizer, prompts, Sampling(samples=1, max_new_tokens=4, temperature=0))
    assert [g.completions for g in result.greedy] == best
    assert result.result.metrics["greedy"].mean == sum(g.rewards[0] for g in result.greedy) / 4
    assert list(read_grades(tmp_path / "greedy.jsonl")) == result.greedy
    narrow = evaluate_into(tmp_path / "narrow", model, tokenizer, task, problems, **settings(top_p=1e-6))
    assert [[c.text for c in g.completions] for g in narrow.grades] == [[b[0].text] * 2 for b in best]
    assert model.training


def test_nothing_to_evaluate(tiny, tmp_path):
    with pytest.raises(ValueError, match="problems is empty"):
        evaluate_into(tmp_path / "out", *tiny, Arithmetic(low=1, high=3, heldout=4), [], **settings())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "bad",
    [
        {"samples": 0}, {"max_new_tokens": 0}, {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0},
        {"top_p": 1.5}, {"batch_size": 0}, {"seed": -1},
    ],
)  # fmt: skip
def test_sampling_refuses(bad):
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=f"^{name} is {value}; allowed: "):
        Sampling(**bad)


class StopError(Exception):
    pass


def stop_after(limit):
    seen = []

    def count(n):
        seen.append(n)
        if sum(seen) > limit:
            raise StopError

    return count


def test_an_interrupted_evaluation_goes_on_and_gives_the_same(tiny, tmp_path):
    task = Arithmetic(low=1, high=4, heldout=10)
    problems = task.problems()[1]
    whole = evaluate_into(tmp_path / "whole", *tiny, task, problems, **settings(greedy=True))
    assert len((tmp_path / "whole" / "samples.jsonl").read_text().splitlines()) == 10
    for limit in (6, 12, 26):  # chunks of 3 problems: 2 are done; 1 restored and 1 made; all, and 1 greedy chunk
        with pytest.raises(StopError):
            evaluate_into(
                tmp_path / "cut", *tiny, task, problems, **settings(greedy=True, progress=stop_after(limit))
            )
        with (tmp_path / "cut" / ("greedy.jsonl" if limit > 20 else "samples.jsonl")).open("ab") as log:
            log.write('{"question": "½'.encode()[:-1])  # a crash in the middle of a character
    resumed = evaluate_into(tmp_path / "cut", *tiny, task, problems, **settings(greedy=True))
    assert resumed == whole
    for name in ("samples.jsonl", "greedy.jsonl", "result.json", "settings.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    again = evaluate_into(tmp_path / "cut", None, tiny[1], task, problems, **settings(greedy=True))
    assert again == whole, "a finished evaluation needs no model"


def test_an_evaluation_has_one_writer(tiny, tmp_path):
    task = Arithmetic(low=1, high=4, heldout=4)
    problems = task.problems()[1]
    whole = evaluate_into(tmp_path, *tiny, task, problems, **settings())
    with held_elsewhere(tmp_path), pytest.raises(ValueError, match="another process is working in"):
        evaluate_into(tmp_path, *tiny, task, problems, **settings())
    assert evaluate_into(tmp_path, *tiny, task, problems, **settings()) == whole


def test_a_chunk_counts_only_as_a_whole(tiny, tmp_path):
    task = Arithmetic(low=1, high=4, heldout=10)
    problems = task.problems()[1]
    whole = evaluate_into(tmp_path, *tiny, task, problems, **settings())
    log = tmp_path / "samples.jsonl"
    data = log.read_bytes()
    for kept in (2, 4, 9):
        log.write_bytes(b"".join(data.splitlines(keepends=True)[:kept]))
        assert evaluate_into(tmp_path, *tiny, task, problems, **settings()) == whole
        assert log.read_bytes() == data


def test_another_evaluation_is_not_overwritten(tiny, tmp_path):
    task = Arithmetic(low=1, high=4, heldout=4)
    problems = task.problems()[1]
    evaluate_into(tmp_path / "a", *tiny, task, problems, **settings())
    for words, changes in (
        ("another seed", {"seed": 6}),
        ("another model", {"identity": {"model": "other"}}),
        ("another model", {"identity": {}}),
        ("another greedy", {"greedy": True}),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate_into(tmp_path / "a", *tiny, task, problems, **settings(**changes))
    with pytest.raises(ValueError, match="line 1 belongs to another problem"):
        evaluate_into(tmp_path / "a", *tiny, task, problems[::-1], **settings())
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine")
    (tmp_path / "c").write_text("mine")
    for taken in "bc":
        with pytest.raises(ValueError, match="not an evaluation"):
            evaluate_into(tmp_path / taken, *tiny, task, problems, **settings())
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".settings.json.partial").write_text("{")  # a crash in the first moment
    evaluate_into(tmp_path / "d", *tiny, task, problems, **settings())


@pytest.mark.parametrize("damaged", [b"{", b"[]", b'{"question": "x"}', b"\xff\xfe", b"\0\0"])
@pytest.mark.parametrize("name", ["settings.json", "samples.jsonl", "greedy.jsonl"])
def test_a_damaged_file_is_named_and_kept(tiny, tmp_path, name, damaged):
    task = Arithmetic(low=1, high=4, heldout=4)
    problems = task.problems()[1]
    evaluate_into(tmp_path, *tiny, task, problems, **settings(greedy=True))
    lines = (tmp_path / name).read_bytes().splitlines(keepends=True)
    (tmp_path / name).write_bytes(lines[0] + damaged + b"\n" + b"".join(lines[2:]))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"{name}(, line 2)? is"):
        evaluate_into(tmp_path, *tiny, task, problems, **settings(greedy=True))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


class Lookup(Arithmetic):
    """A task whose grader needs details that JSON cannot hold."""

    def score(self, problems, completions):
        return [Score(p.details(c), timed_out=not c) for p, c in zip(problems, completions, strict=True)]


def test_details_of_a_grader_stay_out_of_the_files(tiny, tmp_path):
    task = Lookup(low=1, high=3, heldout=4)
    problems = [Problem(f"q{i}", "a", "solution", f"part{i}", details=lambda text: 0.5) for i in range(3)]
    result = evaluate_into(tmp_path, *tiny, task, problems, **settings())
    assert evaluate_into(tmp_path, None, tiny[1], task, problems, **settings()) == result
    assert all(grade.problem is problem for grade, problem in zip(result.grades, problems, strict=True))
    (first, *_) = read_grades(tmp_path / "samples.jsonl")
    assert first.problem == Problem("q0", "a", origin="part0")
    assert first.rewards == [0.5, 0.5]
    other = [Problem(p.question, p.answer, origin="elsewhere", details=p.details) for p in problems]
    with pytest.raises(ValueError, match="another problem"):
        evaluate_into(tmp_path, None, tiny[1], task, other, **settings())


def test_an_evaluation_of_an_older_version_is_continued(tiny, questions, tmp_path, monkeypatch):
    """It stored relative paths."""
    monkeypatch.chdir(questions.parent)
    task, problems = benchmark(questions.name)
    identity = {"model": str(tmp_path)}
    options = settings(identity=identity)
    whole = evaluate_into(tmp_path / "out", *tiny, task, problems[:4], **options)
    stored = tmp_path / "out" / "settings.json"
    older = json.loads(stored.read_text())
    assert older["task"]["data"] == str(questions)
    older["task"]["data"], older["model"] = questions.name, "."
    del older["task"]["subset"]
    stored.write_text(json.dumps(older))
    assert evaluate_into(tmp_path / "out", *tiny, task, problems[:4], **options) == whole
    older["task"]["seed"] = 9
    stored.write_text(json.dumps(older))
    with pytest.raises(ValueError, match="another task"):
        evaluate_into(tmp_path / "out", *tiny, task, problems[:4], **options)


@pytest.mark.parametrize(
    ("reward", "completions", "answer"),
    [
        ("last_integer", ["18.00", "18", "so 1,2,3"], "18"),
        ("last_integer", ["it is \u22125", "-5", "5"], "-5"),
        ("last_integer", ["1,2,3", "3", "123"], "3"),
        ("last_integer", ["about 18.5", "18", "5"], "18"),
        ("exact", ["the answer is 4 cats.", "The answer is 4  cats", "dog"], "4 cats"),
    ],
)
def test_completions_vote_for_what_the_reward_reads(reward, completions, answer):
    """Those rewarded alike vote together, and for nothing that is rewarded otherwise."""
    values = [REWARDS[reward](completion, answer) for completion in completions]
    finals = [EXTRACTORS[reward](completion) for completion in completions]
    right = {final for final, value in zip(finals, values, strict=True) if value == 1}
    assert len(right) == 1
    assert not right & {final for final, value in zip(finals, values, strict=True) if value == 0}
    assert majority(finals, values) == (1.0 if sum(values) > 1 else 0.5)


def test_cuts_give_the_entropy_of_each_part(tiny, tmp_path):
    task = Arithmetic(low=1, high=3, heldout=4)
    problems = task.problems()[1]
    whole = evaluate_into(tmp_path / "whole", *tiny, task, problems, **settings(samples=4))
    cut = evaluate_into(tmp_path / "cut", *tiny, task, problems, **settings(samples=4, cuts=(1, 3)))
    metrics = cut.result.metrics
    assert [name for name in metrics if name not in whole.result.metrics] == [
        "entropy[0:1]", "entropy[1:3]", "entropy[3:]"
    ]  # fmt: skip
    for grade in cut.grades:
        for completion in grade.completions:
            lengths = [min(completion.tokens, end) - start for start, end in ((0, 1), (1, 3), (3, 99))]
            shares = zip(lengths, completion.parts, strict=True)
            total = sum(length * part for length, part in shares if part is not None)
            assert total / completion.tokens == pytest.approx(completion.entropy)
    assert metrics["entropy[0:1]"].mean == pytest.approx(
        sum(c.parts[0] for g in cut.grades for c in g.completions) / 16
    )
    again = evaluate_into(tmp_path / "cut", None, tiny[1], task, problems, **settings(samples=4, cuts=(1, 3)))
    assert again == cut


@pytest.mark.parametrize("cuts", [(0,), (3, 3), (4, 2)])
def test_impossible_cuts_are_refused(cuts):
    with pytest.raises(ValueError, match=r"cuts are .* increasing integers >= 1"):
        Sampling(cuts=cuts)


def test_different_right_answers_and_their_entropy():
    task = Summands(heldout=10)
    problem = Problem("7", "7")

    def graded(*texts):
        rewards = [score.value for score in task.score([problem] * len(texts), texts)]
        completions = [Completion(text, 3, False, None) for text in texts]
        return Grade(problem, completions, rewards, [False] * len(texts), [extractor(task)(text) for text in texts])

    grades = [graded("3+4", "03+4", "4+3", "5+5"), graded("1+6", "1+6", "1+6", "1+6"), graded("x", "9", "1+1", "8")]
    metrics = summarize(grades, voting=True, many=task.many_answers)
    assert metrics["distinct@4"].mean == pytest.approx((2 + 1 + 0) / 3)
    thirds = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) + 1 / 6
    assert metrics["spread"].mean == pytest.approx(thirds / 3)
    assert "distinct@4" not in summarize(grades, voting=True, many=Arithmetic.many_answers)
    assert "distinct@4" not in summarize(grades, voting=False, many=True)
