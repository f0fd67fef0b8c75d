"""Statistics of a study on synthetic runs whose truth is known, and against SciPy and hand counts."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from bandpo.lab.comparison import compare
from bandpo.lab.metrics import StudyResult
from bandpo.lab.scores import clip_fraction, end_entropy, final_score, mean_training_reward, smoothed_reward
from bandpo.lab.statistics import Interval, difference_p, holm, mean_interval, probability_of_improvement

SEEDS = 5
EFFECT = 0.02


def make_run(method, seed, correct=(4, 2, 0, 1), reward=None, entropy=None, point=None, updates=None, **changes):
    """A finished run of one update per rollout: 2 s and 100 tokens each, its entropy falling from 1."""
    reward = list(reward if reward is not None else np.linspace(0, 1, 20))
    steps = list(range(1, len(reward) + 1))
    entropy = entropy or [1 - i / len(steps) for i in range(len(steps))]
    empty = [None] * len(steps)
    held_out = {
        "samples": 4,
        "temperature": 1.0,
        "correct": list(correct),
        "greedy": [1, 0, 0, 0],
        "entropy": 0.3,
        "length": 5.0,
        "truncated": 0.0,
    }
    return {
        "method": method, "point": point or {}, "seed": seed, "status": "finished", "command": "bandpo train",
        "rule": {"name": "clip"}, "seconds": 60, "stopped_by": None, "updates_per_rollout": 1, "alarms": [],
        "rollouts": {"step": steps, "reward": reward, "tokens": [100 * s for s in steps],
                     "uniform": empty, "length": empty, "truncated": empty},
        "updates": {"bin": 1, "step": steps, "entropy": entropy, "seconds": [2.0 * s for s in steps],
                    "clip_fraction_low": [0.0] * len(steps), "clip_fraction_high": [0.1] * len(steps),
                    "divergence": empty, "grad_norm": empty, "ratio_max": empty, "ratio_min": empty,
                    **(updates or {})},
        "evaluation": {"before": held_out, "after": held_out},
        **changes,
    }  # fmt: skip


def make_result(runs, methods=("GRPO", "Band"), metric="mean"):
    study = {"recipe": "scratch", "methods": {m: {} for m in methods}, "reference": methods[0], "metric": metric}
    return StudyResult.parse(
        {
            "format": 2,
            "name": "made",
            "study": {**study, "seeds": [0]},
            "environment": None,
            "calibration": {},
            "runs": [*runs],
        }
    )


def one_run(*args, **changes):
    return make_result([make_run("GRPO", 0, *args, **changes)]).runs[0]


def simulated(dice):
    """Scores over seeds of a reference, of a method better by EFFECT, and of one that is not."""
    base = dice.normal(0.6, 0.05, SEEDS)
    scores = []
    for gain in (0.0, EFFECT, 0.0):
        chances = np.clip(base + gain + dice.normal(0, 0.03, SEEDS), 0, 1)
        runs = [one_run(dice.binomial(4, chance, 100).tolist()) for chance in chances]
        scores.append(np.array([final_score(run, "mean") for run in runs]))
    return scores


@pytest.mark.slow
def test_intervals_cover_the_truth_and_identical_methods_are_rarely_called_different():
    dice = np.random.default_rng(1)
    covered = finals = wrong = 0
    for _ in range(1000):
        reference, band, twin = simulated(dice)
        difference, final = mean_interval(band - reference), mean_interval(band)
        covered += difference.low <= EFFECT <= difference.high
        finals += final.low <= 0.6 + EFFECT <= final.high
        wrong += difference_p(twin, reference) < 0.05
    assert 920 <= covered <= 980
    assert 920 <= finals <= 980
    assert 20 <= wrong <= 70


@pytest.mark.slow
def test_many_seeds_are_resampled_and_cover_too():
    dice = np.random.default_rng(2)
    truth = math.exp(0.5)  # a skewed distribution, in which t errs to one side
    intervals = [mean_interval(dice.lognormal(size=50)) for _ in range(200)]
    covered = np.mean([i.low <= truth <= i.high for i in intervals])
    assert 0.89 <= covered <= 0.98
    assert np.mean([i.high - i.mean > i.mean - i.low for i in intervals]) > 0.95


def test_a_few_values_by_students_t():
    values = [0.5, 0.7, 0.6]
    half = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    found = mean_interval(values)
    assert (found.mean, found.low, found.high) == pytest.approx((0.6, 0.6 - half, 0.6 + half))
    assert mean_interval([0.5]) == Interval(0.5, None, None)
    assert mean_interval([0.5, 0.5]) == Interval(0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="values is empty"):
        mean_interval([])


def test_p_is_the_paired_tests():
    a, b = [0.9, 0.8, 0.75, 0.6], [0.7, 0.75, 0.5, 0.55]
    assert difference_p(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert difference_p([0.5], [0.1]) is None
    assert difference_p([0.5, 0.5], [0.5, 0.5]) == 1.0
    assert difference_p([0.75, 0.5], [0.5, 0.25]) == 0.0


def test_holm_on_the_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_alarm():
    dice = np.random.default_rng(3)
    alarms = sum(min(holm(list(dice.random(9)))) < 0.05 for _ in range(2000))
    assert 70 <= alarms <= 130


def test_probability_of_improvement_counts_pairs():
    dice = np.random.default_rng(4)
    a, b = dice.integers(0, 5, 7) / 4, dice.integers(0, 5, 6) / 4
    counted = np.mean([(x > y) + (x == y) / 2 for x in a for y in b])
    assert probability_of_improvement(a, b) == pytest.approx(counted)
    assert probability_of_improvement([0.5, 0.5], [0.5]) == 0.5


def test_scores_of_a_run():
    run = one_run()
    assert final_score(run, "mean") == 7 / 16
    assert final_score(run, "greedy") == 0.25
    assert final_score(run, "pass@2") == pytest.approx((1 + (1 - 1 / 6) + 0 + 0.5) / 4)
    assert final_score(run, "pass@4") == 0.75
    after = replace(run.evaluation.after, entropy=1.5, parts={"0:6": 2.5, "6:": 0.5})
    run = replace(run, evaluation=replace(run.evaluation, after=after))
    assert [final_score(run, name) for name in ("entropy", "entropy[0:6]", "entropy[6:]")] == [1.5, 2.5, 0.5]
    with pytest.raises(ValueError, match="'entropy\\[0:5\\]' is not recorded in a run"):
        final_score(run, "entropy[0:5]")
    assert final_score(run, "reward") == pytest.approx((18 / 19 + 1) / 2)
    assert mean_training_reward(run) == pytest.approx(0.5)
    assert end_entropy(run) == pytest.approx(0.075)
    for low, high, share in (
        ([0.1, None, 0.3], [0.2, 0.1, 0.0], 0.3),
        ([None], [0.25], 0.25),
        ([None], [None], None),
    ):
        run_of_sides = one_run(updates={"clip_fraction_low": low, "clip_fraction_high": high})
        assert clip_fraction(run_of_sides) == pytest.approx(share)
    steps, smooth = smoothed_reward(run)
    assert list(steps) == list(range(2, 21))
    assert smooth[0] == pytest.approx(0.5 / 19)


def test_compute_to_target():
    """The faster method is there in half the time, the slower one never."""
    slow, fast, never = np.linspace(0, 1, 20), np.minimum(np.linspace(0, 2, 20), 1), np.linspace(0, 0.4, 20)
    runs = [make_run(m, s, reward=r) for m, r in (("GRPO", slow), ("Fast", fast), ("Never", never)) for s in (0, 1)]
    grpo, quick, lost = compare(make_result(runs, ("GRPO", "Fast", "Never")))[0].results
    assert (grpo.target.reached, grpo.target.medians["updates"]) == (2, 20)
    assert (quick.target.reached, quick.target.runs) == (2, 2)
    assert quick.target.medians == {"updates": 11, "tokens": 1100, "seconds": 22}
    assert (lost.target.reached, lost.target.medians["updates"]) == (0, None)
    # Half-way between .026 and .974: the smoothed reward of the slow one is there at update 11, entropy .5.
    assert grpo.halfway_entropy.mean == pytest.approx(0.5)
    assert quick.halfway_entropy.mean == pytest.approx(0.7)
    assert lost.halfway_entropy is None


def test_a_median_with_a_run_that_never_gets_there():
    fast, never = np.minimum(np.linspace(0, 2, 20), 1), np.linspace(0, 0.4, 20)
    runs = [make_run("GRPO", s) for s in range(3)]
    runs += [make_run("Band", s, reward=r) for s, r in enumerate((fast, fast, never))]
    result = make_result(runs)
    grpo, band = compare(result)[0].results
    assert grpo.training_reward_difference is None
    gains = [mean_training_reward(run) - 0.5 for run in result.runs[3:]]  # the reference's reward rises from 0 to 1
    assert band.training_reward_difference.mean == pytest.approx(np.mean(gains))
    half = 4.302653 * np.std(gains, ddof=1) / 3**0.5  # t with two degrees of freedom
    difference, p = band.training_reward_difference, stats.ttest_1samp(gains, 0).pvalue
    assert difference.high - difference.mean == pytest.approx(half, rel=1e-5)
    assert band.training_reward_p == band.training_reward_p_corrected == pytest.approx(p)
    assert (band.target.reached, band.target.medians["updates"]) == (2, 11)


def test_seeds_are_paired():
    """A constant gain over very different seeds is seen, and a seed that one method lacks is left out of it."""
    counts = {0: [0, 0, 1, 0], 1: [2, 2, 2, 2], 2: [3, 3, 4, 3], 3: [4, 4, 4, 4]}
    runs = [make_run("GRPO", seed, correct) for seed, correct in counts.items()]
    runs += [make_run("Band", seed, [*correct[:3], correct[3] + 1]) for seed, correct in counts.items() if seed < 3]
    runs.append({"method": "Band", "point": {}, "seed": 3, "status": "failed"})
    band = compare(make_result(runs))[0].results[1]
    assert (band.seeds, band.failed) == ([0, 1, 2], 1)
    assert band.difference == Interval(1 / 16, 1 / 16, 1 / 16)
    assert band.p == 0.0


def test_each_place_of_the_sweep_stands_alone():
    runs = []
    for place, gain in (("1", 0), ("16", 2)):
        runs += [make_run("GRPO", s, [1, s], point={"updates": place}) for s in range(3)]
        runs += [make_run("Band", s, [1 + gain, s], point={"updates": place}) for s in range(3)]
    one, sixteen = compare(make_result(runs))
    assert (one.point, sixteen.point) == ({"updates": "1"}, {"updates": "16"})
    assert one.results[1].difference.mean == 0
    assert sixteen.results[1].difference.mean == 0.25
    assert one.results[0].difference is None


def test_the_correction_is_over_the_methods_of_a_place():
    dice = np.random.default_rng(5)
    names = ("GRPO", "A", "B", "C")
    runs = [make_run(m, s, dice.integers(0, 5, 50).tolist()) for m in names for s in range(5)]
    results = compare(make_result(runs, names))[0].results
    assert [r.p_corrected for r in results[1:]] == pytest.approx(holm([r.p for r in results[1:]]))
    assert any(r.p_corrected > r.p for r in results[1:])


def test_a_study_without_evaluation_goes_by_the_reward():
    runs = [
        make_run(m, s, reward=[0, level], evaluation=None)
        for m, level in (("GRPO", 0.5), ("Band", 0.75))
        for s in (0, 1)
    ]
    band = compare(make_result(runs, metric="reward"))[0].results[1]
    assert band.difference.mean == pytest.approx(0.25)
    assert band.pass_at == {}


def test_an_unfinished_study_has_rows_without_figures():
    runs = [make_run("Band", 0), {"method": "GRPO", "point": {}, "seed": 0, "status": "waiting"}]
    grpo, band = compare(make_result(runs))[0].results
    assert grpo.final is None
    assert (band.final.mean, band.difference, band.target) == (7 / 16, None, None)


def test_a_part_that_some_runs_never_reach_is_the_mean_of_the_others():
    def run(seed, parts):
        made = make_run("GRPO", seed)
        made["evaluation"]["after"]["parts"] = parts
        return made

    runs = [run(0, {"0:6": 1.0}), run(1, {"0:6": 2.0, "6:": 0.0}), run(2, {"0:6": 3.0, "6:": 0.5})]
    (method,) = compare(make_result(runs, ("GRPO",)))[0].results
    assert {part: interval.mean for part, interval in method.parts.items()} == {"0:6": 2.0, "6:": 0.25}
