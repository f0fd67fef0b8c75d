"""On a GPU: the same bounds and losses as on the CPU, and no call waits for the device."""

import contextlib

import pytest
import torch

import bandpo
from bandpo import Band, band
from bandpo.core.band import inside
from bandpo.core.table import band_table

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

FUSED = ("kl", "tv", "chi2")  # what the Triton kernel can do
DIVERGENCES = (*FUSED, "reverse_kl", "neyman_chi2", "hellinger2", "js", "jeffreys", "alpha:0.5")
RULES = {
    "clip": bandpo.Clip(),
    "no clip": bandpo.NoClip(),
    "dcpo": bandpo.DCPO(),
    "ripo": bandpo.RIPO(),
    "adaptive": bandpo.AdaptiveBand(),
    **{name: Band(0.05, name) for name in DIVERGENCES},
}


@contextlib.contextmanager
def no_synchronization():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def batch():
    generator = torch.Generator().manual_seed(0)
    old = -torch.empty(4, 1024).exponential_(generator=generator) * 1.5
    new = (old + 0.3 * torch.randn(old.shape, generator=generator)).clamp(max=0.0)
    advantages = torch.randn(old.shape, generator=generator)
    return [t.cuda() for t in (new, old, advantages)]


def relative(got, want):
    got, want = got.double().cpu(), want.double().cpu()
    assert torch.equal(torch.isinf(got), torch.isinf(want))
    finite = torch.isfinite(want) & (want != 0)
    assert (got[want == 0] == 0).all()
    return float(((got[finite] - want[finite]) / want[finite]).abs().max())


@pytest.mark.parametrize("radius", [1e-4, 0.05, 0.3])
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 4e-6), (torch.float64, 2e-13)])
@pytest.mark.parametrize("how", ["eager", "compile"])
def test_bounds_are_those_of_the_cpu(name, radius, dtype, allowed, how):
    old = -torch.logspace(-9, 1.92, 3000, dtype=torch.float64).to(dtype)
    want = band(old.double(), torch.tensor(radius, dtype=dtype).item(), name)

    def solve(x):
        bounds = band(x, radius, name)
        return bounds.log_lower, bounds.log_upper

    call = torch.compile(solve, fullgraph=True, dynamic=True) if how == "compile" else solve
    lower, upper = call(old.cuda())
    errors = relative(lower, want.log_lower), relative(upper, want.log_upper)
    print(f"{name} {radius} {dtype} {how}: {errors[0]:.1e} {errors[1]:.1e}")
    assert max(errors) <= allowed


@pytest.mark.parametrize(
    ("rule", "backend"),
    [
        (r, b)
        for r in RULES
        for b in ("eager", "compile", "triton")
        if b != "triton" or r not in DIVERGENCES[len(FUSED) :]
    ],
)
def test_policy_loss_never_waits_for_the_device(rule, backend):
    new, old, advantages = batch()
    mask = torch.ones_like(new, dtype=torch.bool)
    new.requires_grad_()

    def step():
        result = bandpo.policy_loss(new, old, advantages, mask, rule=RULES[rule], backend=backend)
        result.loss.backward()
        return result

    step()  # compiles
    new.grad = None
    with no_synchronization():
        result = step()
    cpu = [t.detach().double().cpu() for t in (new, old, advantages)]
    cpu[0].requires_grad_()
    exact = bandpo.policy_loss(*cpu, mask.cpu(), rule=RULES[rule], backend="eager")
    exact.loss.backward()
    assert float(result.loss) == pytest.approx(float(exact.loss), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(new.grad.double().cpu(), cpu[0].grad, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_bounds_and_membership_never_wait_for_the_device(name):
    new, old, _ = batch()
    with no_synchronization():
        band(old, 0.05, name)
        inside(new, old, 0.05, name)


def test_a_table_never_waits_for_the_device():
    _, old, _ = batch()
    table = band_table(0.05, "kl", "cuda")
    with no_synchronization():
        bounds = table(old)
    want = band_table(0.05, "kl")(old.cpu())
    assert relative(bounds.log_lower, want.log_lower) < 1e-5
    assert relative(bounds.log_upper, want.log_upper) < 1e-5
