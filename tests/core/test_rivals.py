"""Rules of other papers and frameworks, against what those state, written out in float64."""

import math

import pytest
import torch

from bandpo import ESTR, IPO, Band, Clip, RelaxedBand, policy_loss
from bandpo.core.registry import make_rule

# The interpreter computes with NumPy, which announces the inf and NaN that the kernels select away.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    old = -6 * torch.rand(6, 50, generator=generator)
    new = (old + 0.8 * torch.randn(6, 50, generator=generator)).clamp(max=-1e-4)
    return (
        new.requires_grad_(),
        old,
        torch.randn(6, 50, generator=generator),
        2 * torch.rand(6, 50, generator=generator),
    )


def moved(new, old):
    """(p, q) in float64."""
    return old.double().exp(), new.detach().double().exp()


def check_mask(rule, kept, batch, backend="eager", **context):
    """A token that is kept has the gradient of -r A, any other none; and both kinds are there."""
    new, old, advantages, _ = batch
    result = policy_loss(new, old, advantages, torch.ones(6, 50), rule=rule, backend=backend, **context)
    p, q = moved(new, old)
    expected = torch.where(kept, -advantages * q / p, 0.0) / kept.numel()
    torch.testing.assert_close(torch.autograd.grad(result.loss, new)[0].double(), expected, rtol=1e-4, atol=1e-9)
    assert result.metrics["clip_fraction"].item() == pytest.approx(1 - kept.double().mean().item(), abs=1e-6)
    assert 0.02 < kept.double().mean() < 0.98


@pytest.mark.parametrize("radius", [None, 0.05])
def test_dppo_tv_is_verls_mask(radius):
    new, old, advantages, _ = batch()
    p, q = moved(new, old)
    delta = radius or 0.15
    kept = torch.where(advantages > 0, q - p <= delta, q - p >= -delta)
    check_mask(make_rule("dppo-tv", **{"radius": radius} if radius else {}), kept, batch())


def test_dppo_kl_masks_outward():
    new, old, advantages, _ = batch()
    p, q = moved(new, old)
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    outward = torch.where(advantages > 0, q > p, q < p)
    check_mask(make_rule("dppo-kl"), ~((kl > 0.05) & outward), batch())


def test_ipo_masks_what_has_moved():
    p, q = moved(*batch()[:2])
    check_mask(make_rule("ipo"), (q - p).abs() <= 0.1, batch())
    assert IPO().all_needs == {"advantages", "logps"}


@pytest.mark.parametrize(
    "backend", ["eager", *(pytest.param(name, marks=pytest.mark.slow) for name in ("triton", "compile"))]
)
def test_estr_masks_by_squared_log_ratio_per_nat(backend):
    new, old, _, entropy = batch()
    kept = (new - old).detach().double() ** 2 / (entropy.double() + 0.05) <= 0.3
    check_mask(ESTR(0.3, 0.05), kept, batch(), backend, old_entropy=entropy)


def test_names_of_dppo_are_band_without_cap_and_floor():
    assert make_rule("dppo-tv") == Band(0.15, "tv", cap=None, floor=None)
    assert make_rule("dppo-kl") == Band(0.05, "kl", cap=None, floor=None)
    assert (IPO().cap, IPO().floor) == (None, None)


@pytest.mark.parametrize("divergence", ["kl", "tv", "chi2"])
def test_the_relaxed_band_is_the_union_of_band_and_clip(divergence):
    new, old, _, _ = batch()
    new, old = new.detach().double(), old.double()
    relaxed, band, clip = RelaxedBand(0.05, divergence), Band(0.05, divergence), Clip(0.2, 0.28)
    assert torch.equal(relaxed.inside(new, old), band.inside(new, old) | clip.inside(new, old))
    for p, lower, upper in ((0.001, band, band), (0.99, clip, clip)):
        at = torch.tensor([math.log(p)], dtype=torch.float64)
        torch.testing.assert_close(relaxed.bounds(at).lower, lower.bounds(at).lower)
        torch.testing.assert_close(relaxed.bounds(at).upper, upper.bounds(at).upper)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("estr", {"threshold": 0}, "ESTR: threshold is 0; allowed: a finite number > 0"),
        ("estr", {"epsilon": math.inf}, "ESTR: epsilon is inf"),
        ("relaxed-band", {"radius": -1}, "RelaxedBand: radius is -1"),
        ("relaxed-band", {"divergence": "klx"}, "'klx'"),
        ("relaxed-band", {"low": 2}, "low is 2"),
        ("dppo-tv", {"radius": 0}, "radius must be > 0"),
        ("dppo-tv", {"raduis": 0.1}, "'dppo-tv' has no option 'raduis' .did you mean 'radius'"),
        ("ipo", {"radius": math.nan}, "radius must be > 0"),
    ],
)
def test_bad_values_are_named(name, options, words):
    with pytest.raises(ValueError, match=words):
        make_rule(name, **options)
