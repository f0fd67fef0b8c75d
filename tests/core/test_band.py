"""The Band operator: figures of the paper, properties, gradients, dtypes, compilation, errors."""

import math
import sys
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from bandpo.core.band import band, band_side, binary_divergence, inside, measure
from bandpo.core.checks import DEFAULT_RADIUS, POSITIVE_TOLERANCE
from bandpo.core.divergences import FDivergence
from helpers import NAMES

CUBIC = FDivergence(name="mine", f=lambda u: (u - 1).abs() ** 3 + 0.1 * (u - 1) ** 2)


@pytest.mark.parametrize(
    ("p", "lower", "upper"),
    [
        (0.001, 7e-23, 53.5),
        (0.01, 0.0025, 7.81),
        (0.05, 0.162, 2.98),
        (0.08, 0.262, 2.41),
        (0.2, 0.476, 1.72),
        (0.5, 0.692, 1.308),
        (0.9, 0.867, 1.076),
        (0.99, 0.931, 1.010),
    ],
)
def test_reference_figures(p, lower, upper):
    bounds = band(torch.tensor([math.log(p)], dtype=torch.float64))
    assert DEFAULT_RADIUS == 0.05
    assert bounds.lower.item() == pytest.approx(lower, rel=0.02)
    assert bounds.upper.item() == pytest.approx(upper, rel=2e-3)


# 300 examples of 4096 values: more than a million examined.
@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(NAMES),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    log_radius=st.floats(-9.0, 1.0),
)
def test_properties(seed, name, dtype, log_radius):
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(4096, generator=generator, dtype=torch.float64)
    old = -torch.exp(uniform * 32.0 - 21.0).clamp(max=6e4)
    old[:3] = torch.tensor([0.0, -math.inf, -1e-45], dtype=torch.float64)
    old = old.to(dtype)
    radius = math.exp(log_radius)
    bounds, wider = band(old, radius, name), band(old, 2 * radius, name)
    work = old.to(bounds.log_lower.dtype)
    eps = torch.finfo(work.dtype).eps
    low, high = bounds.log_lower, bounds.log_upper
    assert not torch.isnan(low).any()
    assert not torch.isnan(high).any()
    assert (low <= 0).all()
    assert (high >= 0).all()
    assert (high <= -work).all()
    assert (torch.isfinite(high) | (high == -work)).all()
    # Wider radius, wider band, to rounding, where p itself has not underflowed.
    slack = 64 * eps
    resolved = (work > -180) | torch.isinf(work)
    assert (wider.log_lower <= low * (1 - slack))[resolved].all()
    assert (wider.log_upper >= high * (1 - slack))[resolved].all()
    # At an unsaturated bound g is the radius, as well as the rounding of the bound allows.
    usable = (work > -80) & (work < -1e-6)
    for bound, edge in ((low, torch.full_like(low, -math.inf)), (high, -work)):
        free = usable & (bound != edge) & (bound > -80)
        a, b = work[free].double(), bound[free].double()
        inner = binary_divergence((a + b * (1 - 2e-4)).clamp(max=0), a, name)
        outer = binary_divergence((a + b * (1 + 2e-4)).clamp(max=0), a, name)
        assert (inner <= radius * (1 + 1e-6)).all()
        assert (outer >= radius * (1 - 1e-6)).all()
        # A root within rounding of the edge is the edge, so judge just inside it.
        stuck = work[usable & (bound == edge) & torch.isfinite(edge)].double()
        assert (binary_divergence(stuck * 2e-4, stuck, name) <= radius * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", [*NAMES, CUBIC], ids=str)
def test_membership_agrees_with_the_bounds(name):
    old = -torch.logspace(-3, 1.5, 200, dtype=torch.float64)
    bounds = band(old, (0.03, 0.08), name)
    for log_bound in (bounds.log_lower, bounds.log_upper):
        assert inside((old + 0.999 * log_bound).clamp(max=0), old, (0.03, 0.08), name).all()
        free = torch.isfinite(log_bound) & (log_bound < -old * 0.99)
        out = (old + 1.001 * log_bound)[free]
        assert not inside(out, old[free], (0.03, 0.08), name).any()
    assert inside(old, old, 1e-9, name).all()
    assert not inside(old * torch.nan, old, 0.05, name).any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("radius", [1e-6, 0.05])
def test_float32_membership_is_exact(name, radius):
    generator = torch.Generator().manual_seed(5)
    old = -torch.exp(25 * torch.rand(20_000, generator=generator) - 20)
    factor, up = 2 * torch.rand(20_000, generator=generator), torch.rand(20_000, generator=generator) < 0.5
    new = (old + band_side(old, radius, name, up) * factor).clamp(max=0.0)
    old[:8] = torch.tensor([-math.inf, -math.inf, 0.0, 0.0, -math.inf, -1.0, -30.0, -1e-6])
    new[:8] = torch.tensor([-math.inf, -30.0, 0.0, -1e-9, 0.0, -math.inf, -math.inf, 0.0])
    for pair in (radius, (radius, 2 * radius)):
        low, high = (torch.tensor(x).item() for x in (pair if isinstance(pair, tuple) else (pair, pair)))
        want = binary_divergence(new.double(), old.double(), name) <= torch.where(new > old, high, low)
        # The two forms may differ where g is the radius to 1e-9 of it; none of these tokens is.
        assert torch.equal(inside(new, old, pair, name), want)
        assert 0.1 < want.float().mean() < 0.99
    nan = torch.tensor([math.nan, -1.0, math.nan])
    assert not inside(nan, nan.flip(0) * 1.0, radius, name)[[0, 2]].any()


def test_limits():
    old = torch.tensor([0.0, -math.inf])
    for name, lower in (
        ("kl", -0.05),
        ("tv", math.log(0.95)),
        ("chi2", 0.0),
        ("hellinger2", 2 * math.log(0.975)),
        ("neyman_chi2", -math.log(1.05)),
        ("reverse_kl", 0.0),
    ):
        bounds = band(old, 0.05, name)
        assert bounds.log_lower.tolist() == pytest.approx([lower, -math.inf], rel=1e-6), name
        assert bounds.log_upper.tolist() == [0.0, math.inf], name
    for name in NAMES:
        vanished = torch.tensor([-1e6, -math.inf, 0.0])
        bounds = band(vanished, 0.05, name)
        assert bounds.log_lower[:2].tolist() == [-math.inf, -math.inf], name
        assert bounds.log_upper[1:].tolist() == [math.inf, 0.0], name
    small = torch.tensor([-60.0], dtype=torch.float64)
    assert (band(small).log_upper + small).exp().item() == pytest.approx(-math.expm1(-0.05), rel=1e-12)
    assert (band(small, 0.05, "tv").log_upper + small).exp().item() == pytest.approx(0.05, rel=1e-12)


@pytest.mark.parametrize("name", [*NAMES, CUBIC], ids=str)
def test_nan_in_nan_out(name):
    old = torch.tensor([math.nan, -1.0, -1.0])
    radius = torch.tensor([0.05, math.nan, 0.05])
    for bound in (band(old, radius, name).log_lower, band(old, radius, name).log_upper):
        assert torch.isnan(bound).tolist() == [True, True, False]


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_exactly_the_same_values_in_float32(name):
    values = -torch.rand(500, generator=torch.Generator().manual_seed(0)) * 12
    for dtype in (torch.float16, torch.bfloat16):
        half = values.to(dtype)
        got, want = band(half, 0.05, name), band(half.float(), 0.05, name)
        assert torch.equal(got.log_lower, want.log_lower)
        assert torch.equal(got.log_upper, want.log_upper)
        assert got.log_lower.dtype == torch.float32


@pytest.mark.parametrize("name", [*NAMES, CUBIC], ids=str)
def test_one_side_is_the_same_as_both(name):
    old = -torch.logspace(-3, 1.5, 64).reshape(8, 8)
    pair = (0.02, torch.full((8, 1), 0.2))
    both = band(old, pair, name)
    up = torch.arange(64).reshape(8, 8) % 3 == 0
    mixed = band_side(old, pair, name, upper=up)
    torch.testing.assert_close(mixed, torch.where(up, both.log_upper, both.log_lower), rtol=2e-6, atol=0)
    assert torch.equal(band_side(old, pair, name, upper=True), both.log_upper)
    assert torch.equal(band_side(old, pair, name, upper=False), both.log_lower)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, CUBIC], ids=str)
def test_gradients_by_the_implicit_function_theorem(name):
    old = torch.tensor([-0.02, -0.7, -2.0, -4.0, -9.0], dtype=torch.float64, requires_grad=True)
    radius = torch.tensor([0.05, 0.1, 0.02, 0.05, 0.3], dtype=torch.float64, requires_grad=True)
    for upper in (True, False):
        free = torch.isfinite(band_side(old, radius, name, upper).detach())
        a = old.detach()[free].requires_grad_()
        r = radius.detach()[free].requires_grad_()

        def solve(a, r, upper=upper):
            return band_side(a, r, name, upper)

        assert torch.autograd.gradcheck(solve, (a, r), eps=1e-7, atol=1e-5, rtol=1e-4)
    scalar = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    band(old.detach(), scalar, name).log_upper.sum().backward()
    assert scalar.grad.shape == ()
    assert torch.isfinite(scalar.grad)


def test_gradients_at_a_saturated_side():
    old = torch.tensor([-0.01, -5.0], requires_grad=True)
    radius = torch.tensor(0.05, requires_grad=True)
    bounds = band(old, radius, "tv")
    up, by_radius = torch.autograd.grad(bounds.log_upper[0], (old, radius), retain_graph=True)
    assert up.tolist() == [-1.0, 0.0]
    assert by_radius.item() == 0.0
    down, by_radius = torch.autograd.grad(bounds.log_lower[1], (old, radius))
    assert down.tolist() == [0.0, 0.0]
    assert by_radius.item() == 0.0
    assert not band(old.detach(), 0.05).log_upper.requires_grad
    with torch.no_grad():
        assert not band(old, radius).log_upper.requires_grad


@pytest.mark.parametrize("name", [*NAMES, CUBIC], ids=str)
def test_no_gradient_of_one_token_spoils_another(name):
    # Certain, impossible, saturated and ordinary tokens in one batch: derivatives are numbers, the ordinary as alone.
    old = torch.tensor([0.0, -math.inf, -1e-6, -9.0, -1.0], dtype=torch.float64, requires_grad=True)
    radius = torch.full((5,), 0.3, dtype=torch.float64, requires_grad=True)
    alone = old.detach()[-1:].requires_grad_()
    for upper in (True, False):
        bound = band_side(old, radius, name, upper)
        by_old, by_radius = torch.autograd.grad(bound.sum(), (old, radius))
        assert torch.isfinite(by_old).all(), by_old
        assert torch.isfinite(by_radius).all(), by_radius
        # At p = 1 the lower bound is f's own root, and its slope in the radius that of f there.
        if name == "kl" and not upper:
            assert by_radius[0].item() == pytest.approx(-1.0, rel=1e-12)
        (want,) = torch.autograd.grad(band_side(alone, 0.3, name, upper).sum(), alone)
        torch.testing.assert_close(by_old[-1:], want, rtol=1e-12, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kl", "js"])
def test_the_backward_pass_compiles_whole(name):
    def loss(old, radius):
        return band_side(old, radius, name, upper=old < -2.0).sum()

    old = (-6 * torch.rand(4, 8, generator=torch.Generator().manual_seed(0))).requires_grad_()
    radius = torch.full((8,), 0.1, requires_grad=True)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    want = torch.autograd.grad(loss(old, radius), (old, radius))
    for got, exact in zip(torch.autograd.grad(compiled(old, radius), (old, radius)), want, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["kl", "chi2", "js", CUBIC], ids=str)
def test_measure_is_both_from_one_evaluation(name, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    old = -6 * torch.rand(5, 40, generator=generator)
    new = (old + 0.5 * torch.randn(5, 40, generator=generator)).clamp(max=0.0)
    high = 0.2 * torch.rand(5, 40, generator=generator) + 0.01
    g, member = measure(new, old, 0.05, high, name)
    assert g.dtype == torch.float32
    assert torch.equal(g, binary_divergence(new, old, name))
    assert torch.equal(member, inside(new, old, (0.05, high), name))
    assert torch.equal(member, g <= torch.where(new > old, high, 0.05))
    monkeypatch.setattr(sys.modules["bandpo.core.band"], "CPU_BLOCK", 16)
    for part, whole in zip(measure(new, old, 0.05, high, name), (g, member), strict=True):
        assert torch.equal(part, whole)
    g, member = measure(new, old[:1], 0.05, high[:1], name)
    assert torch.equal(g[2], binary_divergence(new[2], old[0], name))
    assert torch.equal(member[2], inside(new[2], old[0], (0.05, high[0]), name))
    g, member = measure(new.to("meta"), old.to("meta"), 0.05, 0.1, name)
    assert (g.shape, member.shape, member.dtype) == (new.shape, new.shape, torch.bool)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kl", "tv", "reverse_kl", "alpha:0.7", CUBIC], ids=str)
def test_compiles_whole(name):
    old = -torch.rand(4, 8, generator=torch.Generator().manual_seed(0)) * 6

    def step(old, new, radius):
        bounds = band(old, (radius, 0.05), name)
        return bounds.log_lower, bounds.log_upper, inside(new, old, radius, name)

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    radius = torch.full((8,), 0.1)
    for got, want in zip(compiled(old, old - 0.3, radius), step(old, old - 0.3, radius), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)


def test_rounding_above_zero_counts_as_zero():
    old = torch.tensor([POSITIVE_TOLERANCE / 2])
    assert torch.equal(band(old).log_lower, band(torch.zeros(1)).log_lower)
    assert torch.equal(old, torch.tensor([POSITIVE_TOLERANCE / 2]))  # the input is not touched


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: band(a, 0.0), "radius must be > 0 and finite, got 0.0"),
        (lambda a: band(a, math.inf), "got inf"),
        (lambda a: band(a, (0.1, -2.0)), "got -2.0"),
        (lambda a: band(a, (0.1, 0.1, 0.1)), "lower side, upper side"),
        (lambda a: band(a, "wide"), "number, a tensor or a pair"),
        (lambda a: band(a, torch.tensor([0.1, -1.0, 0.1])), "got -1.0"),
        (lambda a: band(a, torch.ones(2)), r"\(2,\) does not broadcast to old_logps of shape \(3,\)"),
        (lambda a: band(a, torch.ones(2, 3)), r"\(2, 3\) does not broadcast"),
        (lambda a: band(a + 2.0), "old_logps must be log-probabilities <= 0 .* got 1"),
        (lambda a: inside(a + 2.0, a), "^logps must be log-probabilities"),
        (lambda a: inside(a[:2], a), r"shape \(2,\) and old_logps of shape \(3,\) do not broadcast"),
        (lambda a: band_side(a, upper=torch.ones(3)), "bool tensor, got dtype torch.float32"),
        (lambda a: band_side(a, upper=torch.ones(2, dtype=torch.bool)), r"upper of shape \(2,\)"),
        (lambda a: band([0.0]), "must be a tensor of log-probabilities, got list"),
        (lambda a: band(a, divergence="klx"), "unknown divergence 'klx'"),
    ],
)
def test_errors_name_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.full((3,), -1.0))


@pytest.mark.slow
def test_bounds_under_vmap_are_those_of_the_whole():
    def bound(name, side, x):
        return getattr(band(x, 0.05, name), side)

    old = -torch.logspace(-6, 1.5, 40).reshape(5, 8)
    new, weight = old * 0.9, torch.arange(40.0).reshape(5, 8)
    for name in ("kl", "js", "tv"):
        for side in ("log_lower", "log_upper"):
            leaves = [old.clone().requires_grad_() for _ in range(2)]
            rows = torch.func.vmap(partial(bound, name, side))(leaves[0])
            whole = bound(name, side, leaves[1])
            assert torch.equal(rows, whole)
            slopes = [
                torch.autograd.grad((x * weight).sum(), y)[0] for x, y in zip((rows, whole), leaves, strict=True)
            ]
            torch.testing.assert_close(*slopes)
        member = partial(inside, radius=1e-4, divergence=name)
        assert torch.equal(torch.func.vmap(member)(new, old), member(new, old))


def test_bounds_of_fake_tensors_have_a_shape():
    with FakeTensorMode() as mode:
        old = mode.from_tensor(-torch.ones(2, 3))
        assert band(old, 0.05).upper.shape == inside(old, old).shape == (2, 3)
