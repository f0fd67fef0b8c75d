"""Sampling and the estimates made from it."""

import itertools

import numpy as np
import pytest
import torch

from bandpo.evaluation import bootstrap_mean, evaluate, pass_at_k, sample
from bandpo.evaluation.resumable import evaluate_into
from bandpo.evaluation.sampling import encode
from bandpo.tasks import Arithmetic


def test_pass_at_k_equals_enumeration():
    for n, c in [(5, 0), (5, 2), (5, 5), (6, 1)]:
        outcomes = [1] * c + [0] * (n - c)
        for k in range(1, n + 1):
            draws = list(itertools.combinations(outcomes, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("n", "c", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1)])
def test_pass_at_k_refuses(n, c, k):
    with pytest.raises(ValueError, match="allowed is"):
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


def test_sampling_entropy_length_and_order(tiny):
    model, tokenizer = tiny
    prompts = ["1+1=", "22+22=", "3"]
    drawn = sample(model, tokenizer, prompts, samples=2, max_new_tokens=5, batch_size=4)
    assert [len(d) for d in drawn] == [2, 2, 2]
    again = sample(model, tokenizer, prompts, samples=2, max_new_tokens=5, batch_size=4)
    assert drawn == again
    # The first step's entropy, computed from one plain forward pass.
    one = sample(model, tokenizer, prompts[:1], samples=1, max_new_tokens=1)[0][0]
    with torch.no_grad():
        logits = model(torch.tensor([encode(prompts[0], tokenizer)])).logits[0, -1]
    expected = torch.distributions.Categorical(logits=logits).entropy().item()
    assert one.entropy == pytest.approx(expected, rel=1e-5)
    assert one.tokens == 1


def test_greedy_equals_argmax(tiny):
    model, tokenizer = tiny
    text = sample(model, tokenizer, ["7+8="], samples=1, max_new_tokens=3, temperature=0)[0][0].text
    ids = encode("7+8=", tokenizer)
    with torch.no_grad():
        for _ in range(3):
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    assert text == tokenizer.decode(ids[-3:], skip_special_tokens=True)


def test_padding_does_not_change_a_completion(tiny):
    model, tokenizer = tiny
    alone = sample(model, tokenizer, ["5"], samples=1, max_new_tokens=4, temperature=0)[0][0]
    beside = sample(model, tokenizer, ["5", "a much longer prompt"], samples=1, max_new_tokens=4, temperature=0)[0][0]
    assert alone.text == beside.text


def test_evaluate_reports_what_the_rewards_say(tiny):
    model, tokenizer = tiny
    task = Arithmetic(low=1, high=3, heldout=4)
    problems = task.problems()[1]
    result = evaluate(model, tokenizer, task, problems, samples=4, max_new_tokens=6)
    assert set(result.metrics) == {"mean@4", "pass@2", "pass@4", "entropy", "length", "truncated", "greedy"}
    means = [sum(g.rewards) / 4 for g in result.grades]
    assert result.metrics["mean@4"].mean == pytest.approx(sum(means) / 4)
    assert result.metrics["pass@4"].mean == pytest.approx(sum(max(g.rewards) for g in result.grades) / 4)
    assert model.training == tiny[0].training
    for bad in ({"problems": []}, {"samples": 0}):
        with pytest.raises(ValueError, match="allowed is"):
            evaluate(model, tokenizer, task, **{"problems": problems, "samples": 1, "max_new_tokens": 2, **bad})


def settings(**changes):
    return {
        "samples": 2,
        "max_new_tokens": 4,
        "temperature": 1.0,
        "batch_size": 6,
        "seed": 5,
        "identity": {"model": "tiny"},
        **changes,
    }


def test_an_interrupted_evaluation_goes_on_and_gives_the_same(tiny, tmp_path):
    task = Arithmetic(low=1, high=4, heldout=10)
    problems = task.problems()[1]
    whole = evaluate_into(tmp_path / "whole", *tiny, task, problems, **settings())
    assert len((tmp_path / "whole" / "samples.jsonl").read_text().splitlines()) == 4  # chunks of 3 problems

    class StopError(Exception):
        pass

    def stop_after(limit):
        seen = []

        def count(n):
            seen.append(n)
            if sum(seen) > limit:
                raise StopError

        return count

    for limit in (6, 12):  # the second time, six completions are restored and six more are made
        with pytest.raises(StopError):
            evaluate_into(tmp_path / "cut", *tiny, task, problems, **settings(progress=stop_after(limit)))
    with (tmp_path / "cut" / "samples.jsonl").open("a") as log:
        log.write('{"start": 6, "gra')  # a crash in the middle of a line
    resumed = evaluate_into(tmp_path / "cut", *tiny, task, problems, **settings())
    assert resumed == whole
    for name in ("samples.jsonl", "result.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    again = evaluate_into(tmp_path / "cut", None, None, task, problems, **settings())
    assert again == whole, "a finished evaluation needs no model"


def test_another_evaluation_is_not_overwritten(tiny, tmp_path):
    task = Arithmetic(low=1, high=4, heldout=4)
    problems = task.problems()[1]
    evaluate_into(tmp_path / "a", *tiny, task, problems, **settings())
    with pytest.raises(ValueError, match="another seed"):
        evaluate_into(tmp_path / "a", *tiny, task, problems, **settings(seed=6))
    with pytest.raises(ValueError, match="another model"):
        evaluate_into(tmp_path / "a", *tiny, task, problems, **settings(identity={"model": "other"}))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an evaluation"):
        evaluate_into(tmp_path / "b", *tiny, task, problems, **settings())
    with pytest.raises(ValueError, match="empty"):
        evaluate_into(tmp_path / "c", *tiny, task, [], **settings())
