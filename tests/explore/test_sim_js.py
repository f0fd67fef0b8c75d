"""The page's simulator: one update against the package's to the last digits, whole curves within sampling error."""

import math

import pytest
import torch
from node import run_node

from bandpo.core.registry import make_rule
from bandpo.explore.page import PRESETS, known_rules, presets
from bandpo.lab.bandit import Counts, Policies, Samples, entropy_of, group_advantages, simulate
from bandpo.lab.simulation import Simulation, load_simulation


def full(stated):
    return known_rules()[stated["name"]]["options"] | stated


def samples_of(settings, log_pi, random):
    """A rollout of arbitrary actions and rewards, as bandpo.lab.bandit has it."""
    s = settings
    actions = torch.randint(s.vocabulary, (s.prompts, s.positions, s.group), generator=random)
    rewards = (torch.rand(s.prompts, s.group, generator=random) < 0.5).double()

    def by_sequence(x):
        return x.transpose(1, 2).reshape(-1, s.positions)

    entropy = entropy_of(log_pi).unsqueeze(-1).expand(actions.shape)
    old = log_pi.gather(-1, actions)
    advantages = group_advantages(rewards, s.advantage).reshape(-1, 1)
    return Samples(actions, by_sequence(old), by_sequence(entropy), advantages, torch.zeros_like(actions), None), old


RULES = [
    {"name": "band", "radius": 0.002},
    {"name": "band", "radius": [0.001, 0.02], "divergence": "js", "cap": 1.3, "floor": 0.7},
    {"name": "clip", "high": 0.28},
    {"name": "ipo", "radius": 0.01},
    {"name": "estr"},
    {"name": "none"},
]


@pytest.mark.parametrize("optimizer", ["gradient", "adam", "adam-token", "adam-shared"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_updates_are_those_of_the_simulator(rule, optimizer):
    rate = 0.7 if optimizer == "gradient" else 0.05
    settings = Simulation(
        prompts=3, positions=2, vocabulary=7, group=5, optimizer=optimizer, learning_rate=rate, advantage="mean"
    )
    random = torch.Generator().manual_seed(5)
    policies = Policies(settings, make_rule(**rule))
    policies.logits = torch.randn(3, 2, 7, dtype=torch.float64, generator=random)
    start, rollouts, expected, counts = policies.logits.flatten().tolist(), [], [], []
    for _ in range(2):
        log_pi = policies.logits.log_softmax(-1)
        samples, old = samples_of(settings, log_pi, random)
        rollouts.append(
            {
                "actions": samples.actions.flatten().tolist(),
                "old": old.flatten().tolist(),
                "entropy": entropy_of(log_pi).flatten().tolist(),
                "advantages": samples.advantages.flatten().tolist(),
            }
        )
        for _ in range(6):
            seen = Counts()
            policies._update(samples, seen)
            counts.append((seen.clipped[0].sum(1) * 10).tolist())
            expected.append(policies.logits.flatten())
    driver = """(() => {
      const policies = new Policies(given.settings, makeRule(given.rule)), found = [];
      policies.logits = Float64Array.from(given.start);
      for (const samples of given.rollouts) for (let i = 0; i < 6; i++) {
        const clipped = policies.update(samples);
        found.push([[...policies.logits], clipped]);
      }
      return found;
    })()"""
    given = {"settings": settings.model_dump(mode="json"), "rule": full(rule), "start": start, "rollouts": rollouts}
    for (logits, clipped), after, sides in zip(run_node(driver, given, "band", "sim"), expected, counts, strict=True):
        torch.testing.assert_close(torch.tensor(logits, dtype=torch.float64), after, rtol=1e-10, atol=1e-10)
        assert clipped == [pytest.approx(side) for side in sides]
    assert rule["name"] == "none" or sum(map(sum, counts)) > 0


@pytest.mark.parametrize("kind", ["mean", "mean/std"])
def test_advantages_are_those_of_the_simulator(kind):
    rewards = [1.0, 0.0, 0.0, 1.0, 1.0]
    seen = run_node(f"groupAdvantages(given, '{kind}')", rewards, "band", "sim")
    expected = group_advantages(torch.tensor([rewards], dtype=torch.float64), kind)[0]
    torch.testing.assert_close(torch.tensor(seen, dtype=torch.float64), expected)


@pytest.mark.slow
def test_curves_agree_within_the_sampling_error():
    settings = {"prompts": 96, "rollouts": 12, "positions": 2, "deciding": 1, "answers": 2, "first_rank": 4}
    rules = {"clip": {"name": "clip"}, "band": {"name": "band"}}
    ours = Simulation(**settings, vocabulary=32, rules=rules)
    driver = "[...simulate(given.settings, given.rules)].map((x) => x.states)"
    given = {"settings": ours.model_dump(mode="json"), "rules": [full(rule) for rule in rules.values()]}
    seen = run_node(driver, given, "band", "sim")
    for i, run in enumerate(simulate(ours).runs.values()):
        assert seen[0][i]["entropy_neutral"] == pytest.approx(run.entropy_neutral.mean[0], rel=1e-5)
        for name in ("success", "entropy_neutral", "entropy_deciding"):
            series = getattr(run, name)
            for rollout in (4, 12):
                error = math.sqrt(2) * series.error[rollout]
                assert abs(seen[rollout][i][name] - series.mean[rollout]) < 4 * error, (i, name, rollout)
        for name in ("clip_fraction_low", "clip_fraction_high"):
            series = getattr(run, name)
            error = math.sqrt(2) * series.error[-1]
            assert abs(seen[-1][i][name] - series.mean[-1]) < 4 * error, (i, name)


def test_coins_are_fair_and_tokens_as_likely_as_the_policy_says():
    settings = Simulation(prompts=200, vocabulary=4, group=50, advantage="mean").model_dump(mode="json")
    driver = """(() => {
      const policies = new Policies(given, null), { actions, advantages } = policies.sample();
      const shares = [0, 1, 2, 3].map((token) => actions.filter((one) => one === token).length / actions.length);
      return [...shares, advantages.filter((one) => one > 0).length / advantages.length];
    })()"""
    *shares, heads = run_node(driver, settings, "band", "sim")
    pi = (-1.5 * torch.log1p(torch.arange(4, dtype=torch.float64))).softmax(0).tolist()
    for seen, expected in zip([*shares, heads], [*pi, 0.5], strict=True):
        assert abs(seen - expected) < 4 * math.sqrt(expected * (1 - expected) / 10_000)


def test_rules_have_common_random_numbers():
    settings = Simulation(prompts=4, rollouts=2, vocabulary=8, group=4).model_dump(mode="json")
    driver = "[...simulate(given.settings, [given.rule, given.rule])].map((x) => x.states)"
    states = run_node(driver, {"settings": settings, "rule": full({"name": "band"})}, "band", "sim")
    assert all(one == other for one, other in states)
    assert states[0] != states[2]


def test_logits_that_overflow_are_one_sentence():
    settings = Simulation(prompts=4, rollouts=9, learning_rate=1e308).model_dump(mode="json")
    driver = """(() => {
      try { return [...simulate(given.settings, [given.rule])]; } catch (error) { return error.message; }
    })()"""
    seen = run_node(driver, {"settings": settings, "rule": full({"name": "none"})}, "band", "sim")
    assert "learning rate is 1e+308; allowed: a smaller one" in str(seen)


def test_presets_are_the_packages_simulations():
    for key, preset in presets().items():
        simulation = load_simulation(PRESETS[key].simulation)
        assert preset["rules"].items() <= simulation.rules.items()
        for name, value in preset["settings"].items():
            assert name == "prompts" or value == getattr(simulation, name)
