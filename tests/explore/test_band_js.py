"""The page's operator and rules against the package's, in float64, through node."""

import math

import pytest
import torch
from node import run_node

from bandpo.core.band import band, binary_divergence
from bandpo.core.registry import make_rule
from bandpo.core.tokens import Tokens
from bandpo.explore.page import SHOWN, known_rules
from helpers import NAMES

RADII = (1e-6, 1e-3, 0.05, 0.3, 2.0)
LOG_P = torch.cat(
    [
        torch.linspace(-40, -0.05, 50, dtype=torch.float64),
        -torch.logspace(-14, -1, 12, dtype=torch.float64),
        torch.tensor([0.0, -100.0, -200.0, -300.0, -math.inf], dtype=torch.float64),
    ]
)


def numbers(values):
    return torch.tensor([float(x) for x in values], dtype=torch.float64)


def listed(x):
    """A tensor as JSON can say it: null for -inf."""
    return [None if value == -math.inf else value for value in x.tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_bounds_are_those_of_band(name):
    driver = """given.radii.map((r) => given.old.map((a) =>
      bandBounds(a ?? -Infinity, [r, 2 * r], getDivergence(given.name))))"""
    found = run_node(driver, {"old": listed(LOG_P), "radii": RADII, "name": name}, "band")
    assert len(RADII) * len(LOG_P) > 300
    for radius, rows in zip(RADII, found, strict=True):
        expected = band(LOG_P, (radius, 2 * radius), name)
        for side, bound in enumerate((expected.log_lower, expected.log_upper)):
            seen = numbers(row[side] for row in rows)
            close = torch.isclose(seen, bound, rtol=1e-9, atol=1e-15)
            assert bool(close.all()), (name, radius, side, LOG_P[~close], seen[~close], bound[~close])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_divergence_and_membership_are_those_of_band(name):
    old = LOG_P[torch.isfinite(LOG_P)].repeat_interleave(8)
    shift = torch.tensor([-5.0, -0.5, -1e-3, -1e-9, 0.0, 1e-9, 1e-2, 1.0], dtype=torch.float64).repeat(len(old) // 8)
    new = (old + shift).clamp(max=0.0)
    driver = "given.new.map((b, i) => binaryDivergence(b, given.old[i], getDivergence(given.name)))"
    seen = numbers(run_node(driver, {"old": listed(old), "new": listed(new), "name": name}, "band"))
    expected = binary_divergence(new, old, name)
    torch.testing.assert_close(seen, expected, rtol=1e-9, atol=1e-300)
    options = {"radius": [0.02, 0.05], "divergence": name}
    rule = {"name": "band", "cap": None, "floor": None} | options
    driver = "given.new.map((b, i) => Number(makeRule(given.rule).inside(b, given.old[i])))"
    seen = numbers(run_node(driver, {"old": listed(old), "new": listed(new), "rule": rule}, "band")).bool()
    assert torch.equal(seen, make_rule("band", **options).inside(new, old))


STATED = [{"name": name} for name in SHOWN] + [
    {"name": "band", "radius": [0.01, 0.2], "divergence": "js", "cap": 10, "floor": 0.8},
    {"name": "band", "divergence": "chi2", "floor": 1},
    {"name": "clip", "low": 0.1, "high": 0.28},
    {"name": "dcpo", "cap": None},
    {"name": "ipo", "radius": 0.02, "divergence": "kl", "cap": 3},
    {"name": "adaptive-band", "radius": 0.1, "reference": 2, "smallest": 0.5, "largest": 0.9, "divergence": "chi2"},
    {"name": "relaxed-band", "radius": 0.01, "divergence": "tv", "low": 1},
    {"name": "estr", "threshold": 0.1, "epsilon": 0.1},
]


@pytest.mark.slow
@pytest.mark.parametrize("stated", STATED, ids=str)
def test_rules_are_those_of_the_registry(stated):
    name = stated["name"]
    full = {"name": name} | known_rules()[name]["options"] | stated
    old = LOG_P[(LOG_P > -50) & (LOG_P < 0)].repeat_interleave(10)
    shift = torch.tensor([-3, -0.5, -0.19, -0.01, -1e-7, 0, 1e-7, 0.02, 0.2, 2.5], dtype=torch.float64)
    new = torch.minimum(old + shift.repeat(len(old) // 10), old / 2)
    advantage, entropy = torch.ones_like(old), torch.linspace(0, 4, len(old), dtype=torch.float64)
    advantage[::3], advantage[::7] = -1.0, 0.0
    rule = make_rule(**stated)
    tokens = Tokens(old, old_entropy=entropy)
    driver = """given.old.map((a, i) => {
      const rule = makeRule(given.rule), H = given.entropy[i];
      return [...rule.bounds(a, H), Number(rule.clipped(given.new[i], a, given.advantage[i], H))];
    })"""
    given = {"rule": full, "old": old.tolist(), "new": new.tolist()}
    rows = run_node(driver, given | {"advantage": advantage.tolist(), "entropy": entropy.tolist()}, "band")
    bounds = rule.bounds(tokens)
    for side, expected in enumerate((bounds.lower, bounds.upper)):
        torch.testing.assert_close(numbers(row[side] for row in rows), expected, rtol=1e-9, atol=1e-15)
    clipped = rule.clipped(rule.inside(new, tokens), new - old, advantage)
    assert torch.equal(numbers(row[2] for row in rows).bool(), clipped)
    assert clipped.any() or name == "none"


@pytest.mark.parametrize("a", [-1, 3])
def test_bounds_at_tiny_probabilities_solve_the_equation(a):
    # D_alpha's leading term: w e^D / 2 = radius for -1, u e^(3 x) / 6 = radius for 3, with log p = -600
    found = run_node("bandBounds(-600, [1e-6, 1e-6], getDivergence(given))", f"alpha:{a}", "band")
    lower, upper = -600 - math.log(2e-6), (600 + math.log(6e-6)) / 3
    assert found[a > 0] == pytest.approx(lower if a < 0 else upper, rel=1e-9)


def test_an_unknown_divergence_is_one_sentence():
    driver = "given.map((name) => { try { return getDivergence(name); } catch (error) { return error.message; } })"
    for seen in run_node(driver, ["KL", "alpha:", "alpha:1", "alpha:x", "constructor"], "band"):
        assert "allowed: kl, reverse_kl" in seen
