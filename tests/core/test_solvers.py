"""Solvers against a 60-digit oracle that solves the definition, and against each other."""

import dataclasses
import functools
import importlib
import math

import pytest
import torch

import oracle
from bandpo.core import solvers
from bandpo.core.band import band
from bandpo.core.certify import certify
from bandpo.core.divergences import BinaryForm, FDivergence, get_divergence
from helpers import NAMES

LOGPS = [-1e-9, -1e-4, -0.05, -0.7, -2.5, -7.0, -20.0, -85.0]
RADII = [1e-4, 0.01, 0.05, 0.1, 0.3]
exact_bound = functools.lru_cache(None)(oracle.bound)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_equal_the_oracle(name, dtype):
    old = torch.tensor(LOGPS, dtype=torch.float64).to(dtype)
    tight = name in ("kl", "reverse_kl", "tv", "chi2")
    for radius in RADII:
        single, double = 2e-6 if radius >= 0.01 else 2e-5, 1e-12 if tight else 1e-11
        rel = double if dtype == torch.float64 else single
        bounds = band(old, radius, name)
        rounded = torch.tensor(radius, dtype=dtype).item()
        for i, a in enumerate(old.tolist()):
            for upper, got in ((False, bounds.log_lower[i].item()), (True, bounds.log_upper[i].item())):
                want = exact_bound(name, a, rounded, upper)
                where = (name, a, radius, upper)
                if want is None:
                    assert got == (-a if upper else -math.inf), where
                elif want < -80:
                    assert got < -79, where
                else:
                    assert got == pytest.approx(float(want), rel=rel, abs=0), where


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_radius_loses_nothing_to_cancellation(name):
    # g is about curvature (log r)^2 / 2: at 1e-6 the terms of a naive form cancel to 1e-3 of their size and more.
    # float64 solves inside leave float32 its rounding; the float64 residual costs 1e-16 / sqrt(radius) or less.
    logps = [-1e-4, -0.7, -7.0, -40.0]
    for dtype, rel in ((torch.float32, 1e-6), (torch.float64, 1e-11)):
        old = torch.tensor(logps, dtype=torch.float64).to(dtype)
        rounded = torch.tensor(1e-6, dtype=dtype).item()
        bounds = band(old, 1e-6, name)
        for i, a in enumerate(old.tolist()):
            for upper, got in ((False, bounds.log_lower[i].item()), (True, bounds.log_upper[i].item())):
                want = exact_bound(name, a, rounded, upper)
                if want is None:
                    assert got == (-a if upper else -math.inf), (a, upper)
                elif want > -80:
                    assert got == pytest.approx(float(want), rel=rel, abs=0), (a, upper, dtype)


@pytest.mark.parametrize("a", [-20, -3, -0.5, 1.5, 3, 6, 20])
def test_steep_alphas_keep_their_digits_down_to_the_smallest_numbers(a):
    name = f"alpha:{a}"
    old = torch.tensor([-130.0, -310.0, -680.0], dtype=torch.float64)
    bounds = band(old, 0.05, name)
    for i, logp in enumerate(old.tolist()):
        for upper, got in ((False, bounds.log_lower[i].item()), (True, bounds.log_upper[i].item())):
            want = exact_bound(name, logp, 0.05, upper)
            if want is None or want < -690:
                assert got == (-logp if upper else -math.inf), (logp, upper)
            else:
                assert got == pytest.approx(float(want), rel=1e-13, abs=0), (logp, upper)


def _random_inputs(n=3000):
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand((3, n), generator=generator, dtype=torch.float64)
    old = -torch.exp(uniform[0] * 25.5 - 21.0)  # -8e-10 ... -90
    return torch.where(uniform[2] < 0.3, -5 * uniform[0], old), torch.exp(uniform[1] * 20.0 - 17.0)


@pytest.mark.parametrize("name", [*NAMES, "alpha:20", "alpha:-6"])
def test_the_fixed_trips_suffice(name, monkeypatch):
    old, radius = _random_inputs()
    few = band(old, radius, name)
    monkeypatch.setattr(
        solvers, "KL_TRIPS", {torch.float32: (torch.float64,) * 8, torch.float64: (torch.float64,) * 8}
    )
    f = get_divergence(name)
    many = band(old, radius, dataclasses.replace(f, binary=dataclasses.replace(f.binary, trips=40)))
    seen = many.log_lower > -300
    torch.testing.assert_close(few.log_upper, many.log_upper, rtol=1e-11, atol=0)
    torch.testing.assert_close(few.log_lower[seen], many.log_lower[seen], rtol=1e-11, atol=0)
    assert seen.sum() > 500


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_certificate_holds(name, dtype):
    old, radius = (x.to(dtype) for x in _random_inputs(1000))
    radius = radius.clamp(min=1e-4)  # float32 KL loses ulp / sqrt(radius)
    proof = certify(old, radius, name)
    # Where the log-bound is beyond float, or within a rounding of the edge, there is no interval to show.
    sensible = (proof.bounds.log_lower > -80) | torch.isinf(proof.bounds.log_lower)
    assert proof.holds[sensible].float().mean() > 0.97
    inner, outer = proof.bracket_upper
    ok = proof.holds & sensible
    assert (inner[ok] <= outer[ok]).all()
    assert (proof.residual_lower[ok].abs() < 1e-3 * radius[ok] + 1e-12).float().mean() > 0.5


# f'(u) of log u
SLOPES = {
    "chi2": lambda t: 2 * torch.expm1(t),
    "neyman_chi2": lambda t: -torch.expm1(-2 * t),
    "hellinger2": lambda t: -torch.expm1(-t / 2),
    "kl": lambda t: -torch.expm1(-t),
}


@pytest.mark.parametrize("name", ["tv", "chi2", "neyman_chi2", "hellinger2", "kl"])
def test_closed_and_special_forms_equal_root_finding(name):
    built_in = get_divergence(name)
    old, radius = _random_inputs(500)
    bracketed = FDivergence(name, built_in.f, solve=functools.partial(solvers.solve_bracket, part=built_in.part))
    want, got = band(old, radius, name), band(old, radius, bracketed)
    seen = (want.log_lower > -300) & (want.log_lower < 0)
    torch.testing.assert_close(got.log_upper, want.log_upper, rtol=1e-9, atol=0)
    torch.testing.assert_close(got.log_lower[seen], want.log_lower[seen], rtol=1e-6, atol=0)
    if name != "tv":  # a kink has no Newton
        slope = SLOPES[name]
        exact = BinaryForm(built_in.part, slope=lambda k: k.d * (slope(k.s) - slope(k.t)), log_tail=name == "kl")
        newton = band(old, radius, FDivergence(name, built_in.f, exact, shape=built_in.shape))
        torch.testing.assert_close(newton.log_upper, want.log_upper, rtol=1e-9, atol=0)
        torch.testing.assert_close(newton.log_lower[seen], want.log_lower[seen], rtol=1e-6, atol=0)


def test_blocks_do_not_change_a_bit(monkeypatch):
    old = -torch.rand(1000, generator=torch.Generator().manual_seed(1)) * 10
    radius = torch.rand(1000, generator=torch.Generator().manual_seed(2)) + 0.01
    whole = band(old, radius)
    monkeypatch.setattr(importlib.import_module("bandpo.core.band"), "CPU_BLOCK", 64)
    parts = band(old, radius)
    assert torch.equal(whole.log_lower, parts.log_lower)
    assert torch.equal(whole.log_upper, parts.log_upper)
