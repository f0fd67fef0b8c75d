"""The task whose better strategy is rare, and what the bounds predict for it."""

import math

import pytest
from theory import predicted_rollouts

from bandpo import DCPO, Band, Clip, NoClip
from bandpo.runs.config import load_config
from bandpo.tasks import Tail


def test_shares_of_the_tail_task():
    train, heldout = Tail(rare=0.1, easy=0.25, heldout=500).problems()
    assert (len(train), len(heldout)) == (3500, 500)
    assert len({p.question for p in [*train, *heldout]}) == 4000
    assert all(p.answer == p.question[-1] for p in train)
    easy = [p for p in [*train, *heldout] if p.question[0] == p.question[-1]]
    assert len(easy) == 1000
    hard = [p for p in train if p.question[0] != p.question[-1]]
    assert {p.solution in (p.question[0], p.question[-1]) for p in hard} == {True}
    better = sum(p.solution == p.answer for p in hard) / len(hard)
    assert better == pytest.approx(0.1, abs=0.03)


def test_both_strategies_are_graded():
    task = Tail()
    problem = next(p for p in task.problems()[0] if p.question[0] != p.question[-1])
    assert [s.value for s in task.score([problem] * 2, [problem.question[0], problem.question[-1]])] == [0, 1]


def test_the_tail_task_is_one_of_seeds_and_of_the_recipe():
    assert Tail(seed=1).problems() == Tail(seed=1).problems() != Tail(seed=2).problems()
    assert isinstance(load_config("tail").task, Tail)
    with pytest.raises(ValueError, match="heldout is 4000, but there are only 4000"):
        Tail(easy=0.25, heldout=4000)


def test_a_fixed_clip_takes_a_logarithm_of_rollouts():
    for high in (0.2, 0.28, 1.0):
        expected = math.ceil(math.log(0.5 / 0.02) / math.log1p(high))
        assert predicted_rollouts(Clip(0.2, high), 0.02, 0.5) == expected
    assert predicted_rollouts(Clip(0.2, 0.28), 0.02, 0.5) == 14
    assert predicted_rollouts(NoClip(), 0.02, 0.5) == 1


def test_band_by_bisection_of_the_divergence():
    def grown(p, radius):
        low, high = p, 1 - 1e-12
        for _ in range(200):
            q = (low + high) / 2
            kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
            low, high = (q, high) if kl <= radius else (low, q)
        return low

    for radius in (0.01, 0.05, 0.2):
        p, rollouts = 0.02, 0
        while p < 0.5:
            p, rollouts = grown(p, radius), rollouts + 1
        assert predicted_rollouts(Band(radius), 0.02, 0.5) == rollouts
    assert predicted_rollouts(Band(0.05), 0.02, 0.5) == 4


def test_total_variation_adds_its_radius():
    assert predicted_rollouts(Band(0.05, "tv"), 0.02, 0.5) == 10
    assert predicted_rollouts(DCPO(), 0.02, 0.5) == 5


def test_bad_probabilities_and_a_rule_that_lets_nothing_grow():
    for start, target in ((0, 0.5), (0.5, 0.02), (0.5, 1)):
        with pytest.raises(ValueError, match=f"start is {start} and target {target}"):
            predicted_rollouts(Clip(), start, target)
    with pytest.raises(ValueError, match="grow by a factor of 1"):
        predicted_rollouts(Clip(0.2, 0.0), 0.02, 0.5)
