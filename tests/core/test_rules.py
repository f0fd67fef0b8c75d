"""Clip rules: their bounds, membership, and what they refuse."""

import math

import pytest
import torch

from bandpo import (
    DCPO,
    IPO,
    RIPO,
    AdaptiveBand,
    Band,
    Clip,
    ClipRule,
    FDivergence,
    NoClip,
    PositionBand,
    RelaxedBand,
    policy_loss,
)
from bandpo.core.registry import RULES, make_rule

LOGPS = torch.log(torch.tensor([[0.001, 0.01, 0.1], [0.5, 0.9, 1.0]]))


@pytest.mark.parametrize(
    "rule",
    [
        NoClip(),
        Clip(),
        Clip(0.2, 0.28),
        DCPO(),
        Band(),
        Band(0.1, "tv"),
        Band((0.02, 0.2), cap=5.0, floor=0.3),
        AdaptiveBand(),
        AdaptiveBand((0.02, 0.1), "chi2", cap=8.0, reference=0.5),
        PositionBand(),
        RelaxedBand(),
        IPO(),
    ],
    ids=repr,
)
class TestEveryRule:
    def test_bounds_contain_one_and_keep_shape(self, rule):
        bounds = rule.bounds(LOGPS)
        assert isinstance(rule, ClipRule)
        assert bounds.lower.shape == bounds.upper.shape == LOGPS.shape
        assert (bounds.lower <= 1).all()
        assert (bounds.upper >= 1).all()

    def test_membership_agrees_with_bounds(self, rule):
        generator = torch.Generator().manual_seed(0)
        old = -10 * torch.rand(20_000, generator=generator, dtype=torch.float64)
        new = (old + torch.randn(20_000, generator=generator, dtype=torch.float64)).clamp(max=0)
        bounds = rule.bounds(old)
        log_ratio = new - old
        margin = torch.minimum((log_ratio - bounds.log_lower).abs(), (log_ratio - bounds.log_upper).abs())
        expected = (log_ratio >= bounds.log_lower) & (log_ratio <= bounds.log_upper)
        agree = rule.inside(new, old) == expected
        assert agree[margin > 1e-9].all()

    def test_is_a_value(self, rule):
        assert hash(rule) == hash(rule)
        with pytest.raises(AttributeError):
            rule.radius = 1.0


def test_clip_bounds_are_the_exact_numbers():
    bounds = Clip(0.2, 0.28).bounds(LOGPS)
    assert (bounds.lower == torch.tensor(1 - 0.2)).all()
    assert (bounds.upper == torch.tensor(1 + 0.28)).all()


def test_dcpo_follows_its_paper():
    # r (r - 1) p = high at the upper bound, r (1 - r) p = low at the lower one (arXiv 2509.02333).
    rule = DCPO(cap=None)
    bounds = rule.bounds(LOGPS.double())
    p = LOGPS.double().exp()
    torch.testing.assert_close(bounds.upper * (bounds.upper - 1) * p, torch.full_like(p, rule.high))
    solvable = p > 4 * rule.low
    torch.testing.assert_close(
        (bounds.lower * (1 - bounds.lower) * p)[solvable], torch.full_like(p[solvable], rule.low)
    )
    assert (bounds.lower[~solvable] == 0.5).all()
    assert DCPO().bounds(LOGPS).upper.max() == 10


def test_ripo_follows_its_paper():
    # p (r - 1)^2 = radius at both bounds, but for a lower one at 0 (arXiv 2607.10169).
    bounds = make_rule("ripo", radius=0.04).bounds(torch.tensor([0.01, 0.16, 1.0]).log())
    assert bounds.lower.tolist() == pytest.approx([0.0, 0.5, 0.8])
    assert bounds.upper.tolist() == pytest.approx([3.0, 1.5, 1.2])
    with pytest.raises(ValueError, match="RIPO: radius is 0; allowed: a finite number > 0"):
        RIPO(0)


def test_adaptive_radius_follows_the_surprisal():
    rule = AdaptiveBand((0.02, 0.1), "kl", reference=2.0, smallest=0.25, largest=1.5)
    for p in (1.0, 0.9, 0.5, 0.2, math.exp(-2), 0.06, 1e-4):
        factor = min(max(-math.log(p) / 2, 0.25), 1.5)
        old = torch.tensor([math.log(p)], dtype=torch.float64)
        own, given = rule.bounds(old), Band((0.02 * factor, 0.1 * factor)).bounds(old)
        torch.testing.assert_close(own.log_lower, given.log_lower, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(own.log_upper, given.log_upper, rtol=1e-12, atol=1e-14)
    held = AdaptiveBand(0.05, "tv", cap=1.5, floor=0.9).bounds(LOGPS)
    assert (held.upper <= 1.5 + 1e-6).all()
    assert (held.lower >= 0.9 - 1e-6).all()
    at_reference = torch.tensor([-2.0])
    torch.testing.assert_close(rule.bounds(at_reference).upper, Band(0.1).bounds(at_reference).upper)
    impossible = rule.bounds(torch.tensor([-math.inf]))
    assert torch.equal(impossible.log_upper, Band(0.15).bounds(torch.tensor([-math.inf])).log_upper)


@pytest.mark.parametrize("backend", ["eager", pytest.param("compile", marks=pytest.mark.slow)])
def test_adaptive_band_in_the_loss_is_band_with_these_radii(backend):
    generator = torch.Generator().manual_seed(1)
    old = -6 * torch.rand(4, 50, generator=generator, dtype=torch.float64)
    new = (old + 0.7 * torch.randn(4, 50, generator=generator, dtype=torch.float64)).clamp(max=0)
    advantages, mask = torch.randn(4, 1, generator=generator, dtype=torch.float64), torch.ones(4, 50)
    rule = AdaptiveBand(0.03)
    results = []
    for one in (rule, Band(0.03 * (-old).clamp(0.1, 3.0))):
        logps = new.clone().requires_grad_()
        result = policy_loss(logps, old, advantages, mask, rule=one, backend=backend)
        result.loss.backward()
        results.append((result, logps.grad))
    (own, own_grad), (given, given_grad) = results
    assert float(own.metrics["clip_fraction"]) > 0.05
    torch.testing.assert_close(own.loss, given.loss)
    torch.testing.assert_close(own_grad, given_grad)
    torch.testing.assert_close(own.metrics["clip_fraction"], given.metrics["clip_fraction"])


def test_cap_and_floor_narrow_the_band():
    free, held = Band(0.05), Band(0.05, cap=3.0, floor=0.4)
    wide, narrow = free.bounds(LOGPS), held.bounds(LOGPS)
    torch.testing.assert_close(narrow.upper, wide.upper.clamp(max=3.0))
    torch.testing.assert_close(narrow.lower, wide.lower.clamp(min=0.4))
    old = torch.tensor([math.log(0.01)])
    assert free.inside(old + math.log(4), old).all()
    assert not held.inside(old + math.log(4), old).any()
    assert not held.inside(old + math.log(0.3), old).any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: make_rule("bnad"), ["'bnad'", "did you mean 'band'", *RULES]),
        (lambda: make_rule("band", raduis=1), ["'raduis'", "did you mean 'radius'"]),
        (lambda: Band(0), ["radius", "0"]),
        (lambda: AdaptiveBand(0), ["radius", "0"]),
        (lambda: AdaptiveBand(reference=0.0), ["reference", "0.0"]),
        (lambda: AdaptiveBand(smallest=4.0), ["smallest", "4.0", "3.0"]),
        (lambda: AdaptiveBand(largest=math.inf), ["largest", "inf"]),
        (lambda: Band(-0.5), ["-0.5"]),
        (lambda: Band(math.inf), ["inf"]),
        (lambda: Band((0.1, 0.0)), ["0.0"]),
        (lambda: Band(0.1, "klx"), ["'klx'", "kl"]),
        (lambda: Band(cap=0.5), ["cap", "0.5", ">= 1"]),
        (lambda: Band(floor=1.5), ["floor", "1.5"]),
        (lambda: Clip(1.2), ["low", "1.2"]),
        (lambda: Clip(0.2, -0.1), ["high", "-0.1"]),
        (lambda: DCPO(cap=0.0), ["cap", "0.0"]),
    ],
)
def test_bad_values_are_named(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)


def test_rule_takes_the_users_own_divergence():
    mine = FDivergence(name="mine", f=lambda u: u - 1 - torch.log(u))
    ours, theirs = Band(0.05, mine).bounds(LOGPS), Band(0.05, "kl").bounds(LOGPS)
    torch.testing.assert_close(ours.log_upper, theirs.log_upper, rtol=1e-5, atol=0)


def test_yaml_pair_becomes_a_two_sided_radius():
    assert make_rule("band", radius=[0.02, 0.2]) == Band((0.02, 0.2))
