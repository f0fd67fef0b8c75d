"""The exact simulator: against formulas, finite differences and PyTorch's own Adam."""

import math
import re

import pytest
import torch
from scipy.stats import spearmanr

from bandpo.core import registry
from bandpo.core.registry import make_rule
from bandpo.lab.bandit import (
    Optimizer,
    Policies,
    entropy_change,
    entropy_of,
    entropy_slope,
    group_advantages,
    logit_gradients,
    simulate,
)
from bandpo.lab.simulation import (
    EDGES,
    Simulation,
    SimulationResult,
    agreements,
    ledger_totals,
    load_simulation,
    simulation_names,
)

SMALL = {"prompts": 32, "vocabulary": 16, "group": 8, "rollouts": 3, "updates": 4}
DECIDING = {"positions": 3, "deciding": 1, "answers": 2, "first_rank": 2}


def log_softmax(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


# --- theory ------------------------------------------------------------------------------------------------


def test_entropy_change_is_the_finite_difference():
    log_pi = log_softmax(5, 2, 9)
    change = torch.randn(5, 2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    h = 1e-5
    up, down = (entropy_of((log_pi + sign * h * change).log_softmax(-1)) for sign in (1, -1))
    torch.testing.assert_close(entropy_change(log_pi, change), (up - down) / (2 * h), rtol=1e-8, atol=1e-8)
    pi = log_pi.exp()
    covariance = (pi * log_pi * change).sum(-1) - (pi * log_pi).sum(-1) * (pi * change).sum(-1)
    torch.testing.assert_close(entropy_change(log_pi, change), -covariance)


def test_logit_gradients_are_those_of_autograd():
    logits = log_softmax(3, 2, 7).requires_grad_()
    actions = torch.randint(7, (3, 2, 5), generator=torch.Generator().manual_seed(2))
    slopes = torch.randn(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    columns = torch.randint(4, (3, 2, 5), generator=torch.Generator().manual_seed(4))
    log_pi = logits.log_softmax(-1)
    found = logit_gradients(log_pi.detach().exp(), actions, slopes, columns)
    for column in range(4):
        surrogate = (log_pi.gather(-1, actions) * slopes * (columns == column)).sum()
        (expected,) = torch.autograd.grad(surrogate, logits, retain_graph=True)
        torch.testing.assert_close(found[column], expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_rare_token_moves_entropy_by_the_mean_slope(sign):
    """Rewarding it raises entropy by eta E_pi[S] to first order, punishing it lowers it by as much."""
    log_pi, eta = torch.tensor([[[0.7, 0.2, 0.1 - 1e-9, 1e-9]]], dtype=torch.float64).log(), 1e-4
    token, zero = torch.tensor([[[3]]]), torch.zeros(1, 1, 1, dtype=torch.long)
    gradient = logit_gradients(log_pi.exp(), token, torch.full((1, 1, 1), float(sign), dtype=torch.float64), zero)[0]
    mean_slope = float((log_pi.exp() * entropy_slope(log_pi)).sum())
    assert mean_slope > 0.1
    moved = float(entropy_of((log_pi + eta * gradient).log_softmax(-1)) - entropy_of(log_pi))
    assert moved == pytest.approx(sign * eta * mean_slope, rel=1e-3)


# --- ledger ------------------------------------------------------------------------------------------------


def test_a_rule_that_clips_nothing_keeps_nothing_out():
    wide = {"name": "clip", "low": 1.0, "high": 1e6}
    result = simulate(Simulation(**SMALL, **DECIDING, rules={"none": {"name": "none"}, "wide": wide}))
    none, wide = result.runs.values()
    assert none.ledger.kept_out_high == none.ledger.kept_out_low == [0.0] * 3
    assert none.clip_fraction_high.mean == none.clip_fraction_low.mean == [0.0] * 3
    assert none.ledger == wide.ledger
    assert all(value != 0 for value in none.ledger.realized)


RULES = {
    "none": {"name": "none"}, "clip": {"name": "clip"}, "higher": {"name": "clip", "high": 0.28},
    "dcpo": {"name": "dcpo"}, "band": {"name": "band"}, "tv": {"name": "band", "divergence": "tv"},
    "upper": {"name": "band", "floor": 0.8}, "lower": {"name": "band", "cap": 1.2},
    "tight": {"name": "band", "radius": 0.005},
}  # fmt: skip
PLAIN = {"learning_rate": 0.1, "updates": 40, "rollouts": 1}
SETTINGS = [
    PLAIN,
    {**PLAIN, **DECIDING},
    {**PLAIN, **DECIDING, "lag": 1, "rollouts": 2},
    {**PLAIN, **DECIDING, "learning_rate": 0.005, "optimizer": "adam"},
    {**PLAIN, **DECIDING, "learning_rate": 0.005, "optimizer": "adam-token"},
    {**PLAIN, **DECIDING, "learning_rate": 0.003, "optimizer": "adam-shared"},
]


@pytest.mark.slow
def test_the_ledger_foretells_the_change_of_entropy():
    """Over rules and settings, at small steps; within each setting too, where the rules alone differ."""
    predicted, realized = [], []
    for setting in SETTINGS:
        runs = simulate(Simulation(**{**SMALL, **setting, "rules": RULES})).runs.values()
        totals = [ledger_totals(run) for run in runs]
        columns = [[total[name] for total in totals] for name in ("predicted", "realized")]
        assert len(set(columns[1])) > 5, "the rules do the same here"
        assert spearmanr(*columns).statistic >= 0.9, setting
        predicted += columns[0]
        realized += columns[1]
    assert spearmanr(predicted, realized).statistic >= 0.95
    assert predicted == pytest.approx(realized, abs=0.03)


@pytest.mark.parametrize("optimizer", ["gradient", "adam-shared"])
def test_the_ledger_by_kind_adds_up(optimizer):
    rate = 2.0 if optimizer == "gradient" else 0.05
    settings = Simulation(**SMALL, **DECIDING, optimizer=optimizer, learning_rate=rate, rules={"c": {"name": "clip"}})
    run = simulate(settings).runs["c"]
    for name in ("let_in_high", "let_in_low", "kept_out_high", "kept_out_low", "realized"):
        parts = (getattr(x, name) for x in (run.ledger_deciding, run.ledger_neutral, run.ledger))
        for deciding, neutral, whole in zip(*parts, strict=True):
            assert (deciding + 2 * neutral) / 3 == pytest.approx(whole)
    entropy = run.entropy_deciding.mean
    assert sum(run.ledger_deciding.realized) == pytest.approx(entropy[-1] - entropy[0])
    assert any(run.ledger_deciding.kept_out_high)
    assert any(run.ledger_neutral.kept_out_low)
    (coin,) = simulate(Simulation(**SMALL, rules={"c": {"name": "clip"}})).runs.values()
    assert coin.ledger_deciding is None
    assert coin.ledger_neutral == coin.ledger


def test_the_ledger_by_probability_adds_up():
    settings = Simulation(**SMALL, **DECIDING, learning_rate=2.0, rules={"c": {"name": "clip"}})
    run = simulate(settings).runs["c"]
    for name, rollouts in run.ledger_by_probability.items():
        assert [sum(bins) for bins in rollouts] == pytest.approx(getattr(run.ledger, name), abs=1e-12)
        assert any(sum(value != 0 for value in bins) > 2 for bins in rollouts)
    adam = simulate(Simulation(**SMALL, optimizer="adam", learning_rate=0.01)).runs["band"]
    assert adam.ledger_by_probability is None


def test_a_token_is_entered_in_the_bin_of_its_old_probability():
    """One update by hand: the tokens of one bin alone, through the gradients that they have."""
    settings = Simulation(**SMALL | {"rollouts": 1, "updates": 1}, rules={"c": {"name": "none"}}, learning_rate=0.1)
    policies = Policies(settings, make_rule("none"))
    seen = []
    sample = policies._sample
    policies._sample = lambda log_pi: seen.append(sample(log_pi)) or seen[-1]
    log_pi = policies.logits.log_softmax(-1)
    policies.rollout()
    (samples,) = seen
    slopes = policies._by_prompt(samples.advantages.expand(-1, 1)) / settings.group
    for place in range(len(EDGES) - 1):
        old = log_pi.gather(-1, samples.actions).exp()
        one = (old >= EDGES[place]) & (old < EDGES[place + 1])
        for column, sign in enumerate((slopes > 0, slopes <= 0)):
            kept = torch.where(one & sign, slopes, 0.0)
            gradient = logit_gradients(log_pi.exp(), samples.actions, kept, torch.zeros_like(samples.actions))[0]
            expected = float(entropy_change(log_pi, 0.1 * gradient).mean())
            assert float(policies.entries_by_bin[0][column, place]) == pytest.approx(expected, abs=1e-12)


def test_the_ledger_names_the_side_that_clips():
    runs = simulate(Simulation(**SMALL, learning_rate=1.0, rules={
        "above": {"name": "clip", "low": 1.0, "high": 0.1}, "below": {"name": "clip", "low": 0.1, "high": 1e6},
    })).runs  # fmt: skip
    above, below = runs["above"], runs["below"]
    for run, side, other in ((above, "high", "low"), (below, "low", "high")):
        assert sum(getattr(run, f"clip_fraction_{side}").mean) > 0
        assert any(getattr(run.ledger, f"kept_out_{side}"))
        assert not any(getattr(run, f"clip_fraction_{other}").mean)
        assert not any(getattr(run.ledger, f"kept_out_{other}"))


# --- parts -------------------------------------------------------------------------------------------------


def test_advantages():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    mean, scaled = group_advantages(rewards, "mean"), group_advantages(rewards, "mean/std")
    assert mean.tolist() == [[0.75, -0.25, -0.25, -0.25], [0.0] * 4]
    assert scaled[0].tolist() == pytest.approx((mean[0] / (0.5 + 1e-4)).tolist())
    assert scaled[1].tolist() == [0.0] * 4


@pytest.mark.slow
def test_adam_is_pytorchs():
    logits = torch.zeros(2, 3, 4, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.Adam([logits], lr=0.1, maximize=True)
    ours, optimizer = logits.detach().clone(), Optimizer("adam", 0.1)
    for seed in range(5):
        parts = log_softmax(4, 2, 3, 4, seed=seed)
        logits.grad = parts[0] + parts[1]
        theirs.step()
        ours += optimizer.step(parts)[:2].sum(0)
    torch.testing.assert_close(ours, logits.detach())


@pytest.mark.parametrize(("name", "dims"), [("adam", ()), ("adam-token", (0, 1)), ("adam-shared", (0, 1, 2))])
def test_a_second_moment_is_shared_by_its_dimensions(name, dims):
    gradients = torch.stack([log_softmax(2, 3, 4)] + [torch.zeros(2, 3, 4, dtype=torch.float64)] * 3)
    square = gradients[0].square()
    root = (square.mean(dims, keepdim=True) if dims else square).sqrt()
    torch.testing.assert_close(Optimizer(name, 0.1).step(gradients)[0], 0.1 * gradients[0] / (root + 1e-8))


def test_one_rollout_by_hand():
    """Two updates of plain ascent under a fixed clip, token by token in plain Python."""
    settings = Simulation(prompts=2, vocabulary=3, group=4, rollouts=1, updates=2, learning_rate=2.0, seed=3,
                          rules={"clip": {"name": "clip"}})  # fmt: skip
    policies = Policies(settings, make_rule("clip"))
    seen = []
    sample = policies._sample
    policies._sample = lambda log_pi: seen.append(sample(log_pi)) or seen[-1]
    start = policies.logits.clone()
    policies.rollout()
    (samples,) = seen
    assert bool((samples.advantages != 0).any())
    for prompt in range(2):
        z, old = start[prompt, 0].tolist(), start[prompt, 0].softmax(-1).tolist()
        for _ in range(2):
            total = sum(map(math.exp, z))
            pi = [math.exp(x) / total for x in z]
            step = [0.0] * 3
            for i in range(4):
                a, advantage = int(samples.actions[prompt, 0, i]), float(samples.advantages[4 * prompt + i])
                ratio = pi[a] / old[a]
                if (advantage > 0 and ratio > 1.2) or (advantage < 0 and ratio < 0.8):
                    continue
                for k in range(3):
                    step[k] += 2.0 * advantage * ratio * ((k == a) - pi[k]) / 4
            z = [x + d for x, d in zip(z, step, strict=True)]
        assert policies.logits[prompt, 0].tolist() == pytest.approx(z)


def test_a_completion_is_right_if_all_deciding_positions_are():
    settings = Simulation(prompts=64, positions=3, vocabulary=4, deciding=2, answers=[1, 2], advantage="mean")
    policies = Policies(settings, make_rule("band"))
    samples = policies._sample(policies.logits.log_softmax(-1))
    right = ((samples.actions == 1) | (samples.actions == 2))[:, :2]
    rewards = (right[:, 0] & right[:, 1]).double()
    assert 0.1 < float(rewards.mean()) < 0.4
    assert samples.advantages.view(64, 16).tolist() == (rewards - rewards.mean(1, keepdim=True)).tolist()


def test_states_are_exact():
    settings = Simulation(**SMALL, positions=3, deciding=2, answers=[1, 4], rules={"band": {"name": "band"}})
    run = simulate(settings).runs["band"]
    pi = torch.arange(1, 17, dtype=torch.float64).pow(-1.5)
    pi = pi / pi.sum()
    right = pi[[1, 4]]
    within = right / right.sum()
    entropy = float(-(pi * pi.log()).sum())
    assert run.success.mean[0] == pytest.approx(float(right.sum()) ** 2)
    assert run.entropy_neutral.mean[0] == pytest.approx(entropy)
    assert run.entropy_deciding.mean[0] == pytest.approx(entropy)
    assert run.spread.mean[0] == pytest.approx(float(-(within * within.log()).sum()))
    assert run.success.mean[-1] > run.success.mean[0]
    lengths = {len(run.success.mean), len(run.divergence.mean) + 1, len(run.ledger.realized) + 1}
    assert lengths == {4}
    assert all(value > 0 for value in run.divergence.mean)
    whole = [(a * 2 + b) / 3 for a, b in zip(run.entropy_deciding.mean, run.entropy_neutral.mean, strict=True)]
    assert sum(run.ledger.realized) == pytest.approx(whole[-1] - whole[0])


def test_shares_by_probability_add_up():
    run = simulate(Simulation(**SMALL, learning_rate=1.0, rules={"clip": {"name": "clip"}})).runs["clip"]
    assert all(len(row) == len(EDGES) - 1 for row in run.clip_high_by_probability)
    first = [share for share in run.clip_high_by_probability[0] if share is not None]
    assert min(first) <= run.clip_fraction_high.mean[0] <= max(first)
    assert max(first) > 0


def test_rules_see_the_same_random_numbers():
    """A rule that clips nothing gives, to the bit, what the unclipped control gives."""
    rules = {"clip": {"name": "clip"}, "band": {"name": "band", "radius": 1e6}, "none": {"name": "none"}}
    runs = simulate(Simulation(**SMALL, rules=rules)).runs
    assert runs["band"].entropy_neutral == runs["none"].entropy_neutral
    assert runs["clip"].entropy_neutral != runs["none"].entropy_neutral


def test_lag_samples_from_an_older_policy():
    for lag in (0, 1, 2):
        policies = Policies(Simulation(**SMALL, lag=lag), make_rule("band"))
        history, drawn = [], []
        sample = policies._sample
        policies._sample = lambda log_pi, sample=sample, drawn=drawn: drawn.append(log_pi) or sample(log_pi)
        for _ in range(4):
            history.append(policies.logits.log_softmax(-1))
            policies.rollout()
        assert not torch.equal(history[0], history[1])
        for i, sampler in enumerate(drawn):
            assert torch.equal(sampler, history[max(0, i - lag)])


@pytest.mark.parametrize("name", registry.RULES)
def test_every_rule_finds_what_it_needs(name):
    settings = Simulation(prompts=4, positions=2, group=4, rollouts=1, updates=2, rules={"one": {"name": name}})
    assert simulate(settings).runs["one"].entropy_neutral.mean[-1] > 0


def test_a_rule_of_ones_own():
    rules = {"mine": {"name": "bandpo.core.rivals:RIPO", "radius": 0.1}}
    assert simulate(Simulation(**SMALL, rules=rules)).runs["mine"].rule == rules["mine"]


# --- settings and files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"group": 1}, "group is 1: input should be greater than or equal to 2"),
        ({"prompts": 1}, "prompts is 1"),
        ({"lag": -1}, "lag is -1: input should be greater than or equal to 0"),
        ({"learning_rate": 0}, "learning_rate is 0: input should be greater than 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        (
            {"optimizer": "sgd"},
            "optimizer is 'sgd': input should be 'gradient', 'adam', 'adam-token' or 'adam-shared'",
        ),
        ({"advantage": "std"}, "advantage is 'std'"),
        ({"answers": 65}, "answers is 65; allowed: 1 to 64"),
        ({"answers": 0}, "answers is 0; allowed: 1 to 64"),
        ({"answers": 61, "first_rank": 4}, "answers is 61; allowed: 1 to 60, the ranks from 4 up"),
        ({"answers": [1, 1]}, "answers are [1, 1]; allowed: distinct ranks from 0 to 63"),
        ({"answers": [64]}, "answers are [64]; allowed: distinct ranks from 0 to 63"),
        ({"answers": []}, "answers are []"),
        ({"deciding": 2}, "deciding is 2; allowed: 0 to positions, 1"),
        ({"vocab": 3}, "unknown key 'vocab'"),
        ({"rules": {}}, "rules is {}"),
        ({"rules": {"a": {"radius": 1}}}, "rules.a has no name"),
        ({"rules": {"a": {"name": "band", "radius": 0}}}, "radius must be > 0 and finite, got 0"),
        ({"rules": {"a": {"name": "bnd"}}}, "unknown clip rule 'bnd'"),
        (
            {"learning_rate": 1e308, "optimizer": "adam", "prompts": 8},
            "learning_rate is 1e+308",
        ),
        ({"expected": [{"metric": "success", "prompts": 9, "values": {"bnd": 1}}]}, "unknown rule 'bnd'"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ValueError) as caught:
        simulate(Simulation(**settings))
    said = str(caught.value)
    assert words in said
    assert "\n" not in said


def test_results_return_from_their_file(tmp_path):
    result = simulate(Simulation(**SMALL, **DECIDING), "small")
    result.save(tmp_path / "small.json")
    loaded = SimulationResult.load(tmp_path / "small.json")
    assert loaded.dump() == result.dump()
    assert loaded.settings == result.settings
    split = re.sub(r'"ledger_(deciding|neutral|by_probability)": (\{[^{}]*\}|null), ', "", result.dump())
    assert "ledger_" not in split
    (tmp_path / "older.json").write_text(split)
    assert SimulationResult.load(tmp_path / "older.json").runs["band"].ledger_deciding is None
    (tmp_path / "small.json").write_text(result.dump().replace('"seconds"', '"secs"'))
    with pytest.raises(ValueError, match="seconds"):
        SimulationResult.load(tmp_path / "small.json")


@pytest.mark.parametrize("name", simulation_names())
def test_packaged_simulations_run(name):
    assert bool(load_simulation(name).expected) == (name != "control"), "the look that it reproduces"
    short = load_simulation(name, ["prompts=4", "rollouts=1", "updates=1", "changes={}"])
    assert not short.expected, "numbers that belong to other settings"
    simulate(short)


def test_expected_beside_seen():
    value = {"metric": "entropy_neutral", "prompts": 128, "rounding": 0.0}
    expected = [
        {**value, "rollout": 0, "values": {"band": 2.0}},
        {**value, "rollout": 3, "values": {"band": 2.0}},
        {**value, "success": 0.999, "values": {"band": 2.0}},
        {**value, "metric": "clip_fraction_low", "values": {"band": 0.0}},
    ]
    result = simulate(Simulation(**SMALL, **DECIDING, expected=expected))
    start, end, never, clipped = agreements(result)
    run = result.runs["band"]
    assert (start.seen, end.seen) == (run.entropy_neutral.mean[0], run.entropy_neutral.mean[3])
    assert end.error == pytest.approx(run.entropy_neutral.error[3] * math.sqrt(1 + 32 / 128))
    assert end.z == pytest.approx((end.seen - 2.0) / end.error)
    assert (never.seen, never.z) == (None, None)
    assert clipped.seen == pytest.approx(sum(run.clip_fraction_low.mean) / 3)
