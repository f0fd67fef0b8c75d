# ruff: noqa: E402
"""Backends: the Triton kernels and torch.compile against eager float64, and who picks which.

On a machine with CUDA the same tests run the compiled kernels there; elsewhere Triton's interpreter runs them.
"""

import dataclasses
import math
import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

import triton
import triton.language as tl

from bandpo import DCPO, RIPO, AdaptiveBand, Band, Clip, FDivergence, NoClip, band, binary_divergence, policy_loss
from bandpo.core import backends
from bandpo.core.kernels import fused
from bandpo.core.kernels.fused import _exp, _expm1, _log, _log1p
from bandpo.core.losses import AGGREGATIONS

# The interpreter computes with NumPy, which announces the inf and NaN that the kernels select away.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

EPS = torch.finfo(torch.float32).eps
SHAPE = (5, 41)


def tokens(shape=SHAPE, seed=0, dtype=torch.float32, top=-1e-3):
    """A batch whose values are exact in `dtype`, on DEVICE: (new, old, advantages, mask, weights, entropy)."""
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(shape, generator=generator)

    old = (-7 * torch.rand(shape, generator=generator)).clamp(max=top)
    new = (old + 0.6 * normal()).clamp(max=top)
    advantages = normal()
    advantages[:, ::9] = 0.0
    mask = torch.rand(shape, generator=generator) > 0.3
    mask[-1] = False
    weights, entropy = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
    floats = [t.to(dtype).to(DEVICE) for t in (new, old, advantages)]
    return [*floats, mask.to(DEVICE), weights.to(DEVICE), entropy.to(DEVICE)]


def run(batch, backend, dtype=None, upstream=1.0, extras=True, **options):
    """(loss, gradient, metrics) in float64 numbers."""
    new, old, advantages, mask, weights, entropy = (
        t.to(dtype) if dtype is not None and t.is_floating_point() else t for t in batch
    )
    new = new.detach().clone().requires_grad_()
    if extras:
        options |= {"weights": weights, "entropy": entropy}
    result = policy_loss(new, old, advantages, mask, backend=backend, **options)
    (grad,) = torch.autograd.grad(result.loss * upstream, new)
    assert grad.dtype == new.dtype
    assert not any(value.requires_grad for value in result.metrics.values())
    return (
        float(result.loss.detach()),
        grad.double(),
        {name: float(value) for name, value in result.metrics.items()},
    )


def widened(rule):
    """The rule with its tensors in float64, so that the reference is not held back by them."""
    if isinstance(rule, Band) and isinstance(rule.radius, torch.Tensor):
        return dataclasses.replace(rule, radius=rule.radius.double())
    return rule


def check(batch, backend, rule, grad_step=EPS, **options):
    """`backend` is as close to float64 eager as float32 eager is, up to a factor and a few roundings."""
    exact = run(batch, "eager", torch.float64, rule=widened(rule), **options)
    single = run(batch, "eager", rule=rule, **options)
    ours = run(batch, backend, rule=rule, **options)
    scale = max(abs(exact[0]), float(exact[1].abs().sum()))
    assert abs(ours[0] - exact[0]) <= 2 * abs(single[0] - exact[0]) + 4 * EPS * scale
    assert ((ours[1] == 0) == (exact[1] == 0)).all(), "held and masked tokens have exactly no gradient"
    allowed = 2 * (single[1] - exact[1]).abs() + (4 * EPS + grad_step) * exact[1].abs()
    assert ((ours[1] - exact[1]).abs() <= allowed).all()
    assert list(ours[2]) == list(exact[2])
    for name, value in exact[2].items():
        if math.isinf(value):
            assert ours[2][name] == value, name
            continue
        error = abs(ours[2][name] - value)
        assert error <= 2 * abs(single[2][name] - value) + 8 * EPS * abs(value), (name, ours[2][name], value)
    return exact


def per_token_radius(seed=3):
    return 0.02 + 0.1 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


class TwoSided(Band):
    two_sided = True


RULES = {
    "kl": Band(),
    "tv": Band(0.05, "tv"),
    "chi2": Band(0.05, "chi2"),
    "kl pair, cap and floor": Band((0.02, 0.1), "kl", cap=1.7, floor=0.6),
    "tv per token": Band(per_token_radius(), "tv", cap=2.0),
    "chi2 per token and sequence": Band((per_token_radius(), per_token_radius(4)[:, :1]), "chi2"),
    "kl scalar tensor": Band(torch.tensor(0.05), "kl", floor=0.0),
    "clip": Clip(0.2, 0.28),
    "dcpo": DCPO(),
    "ripo": RIPO(),
    "dcpo low cap": DCPO(0.16, 0.2, cap=1.5),
    "no clip": NoClip(),
    "adaptive": AdaptiveBand(0.03),
    "two-sided": TwoSided(0.05, "tv"),
}


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_triton_is_as_exact_as_float32(rule, aggregation):
    dual_clip = 1.3 if aggregation in ("token-mean", "seq-mean-token-mean") else None
    exact = check(tokens(), "triton", rule, aggregation=aggregation, dual_clip=dual_clip)
    if dual_clip is not None:
        assert exact[2]["dual_clip_fraction"] > 0
    if not isinstance(rule, NoClip):
        assert exact[2]["clip_fraction"] > 0, "the comparison should meet held tokens"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rule", [Band(), Clip(0.2, 0.28), DCPO()], ids=repr)
def test_half_precision_is_read_as_it_is_and_computed_in_float32(dtype, rule):
    batch = tokens(dtype=dtype)
    half = run(batch, "triton", rule=rule, dual_clip=1.5)
    full = run([t.float() if t.is_floating_point() else t for t in batch], "triton", rule=rule, dual_clip=1.5)
    assert half[0] == full[0]
    assert half[2] == full[2]
    # The interpreter cuts bfloat16 off where the device rounds.
    step = torch.finfo(dtype).eps if DEVICE == "cpu" and dtype == torch.bfloat16 else 0.0
    rounded = full[1].to(dtype).double()
    assert ((half[1] - rounded).abs() <= step * rounded.abs()).all()
    check(batch, "triton", rule, grad_step=torch.finfo(dtype).eps, dual_clip=1.5, extras=False)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 70), (9, 5), (4, 64), (2, 150)], ids=str)
@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
def test_any_shape_with_many_tiles_and_few_programs(monkeypatch, shape, aggregation):
    monkeypatch.setattr(fused, "TILE", 64)
    monkeypatch.setattr(fused, "MAX_PROGRAMS", 2)
    batch = tokens(shape)
    batch[3][0, 0] = True
    check(batch, "triton", Band(), aggregation=aggregation, upstream=3.0)


@pytest.mark.slow
def test_a_horizon_a_flat_batch_a_sequence_advantage_and_strided_inputs():
    batch = tokens()
    check(batch, "triton", Band(), aggregation="seq-mean-token-sum-norm", horizon=7)
    check([t[0].contiguous() for t in batch], "triton", Band(), aggregation="seq-mean-token-mean")
    check([t.t() for t in batch], "triton", Band(), aggregation="seq-mean-token-mean")
    batch[2] = batch[2][:, 3]
    check(batch, "triton", Band(per_token_radius()))
    batch[3] = batch[3].float()
    check(batch, "triton", Band(), extras=False)


@pytest.mark.slow
def test_triton_ignores_what_masked_tokens_hold():
    batch = tokens()
    hole = ~batch[3]
    dirty = [t.masked_fill(hole, math.nan) if t.is_floating_point() else t for t in batch]
    dirty[1] = batch[1].masked_fill(hole, math.inf)
    clean, spoilt = run(batch, "triton"), run(dirty, "triton")
    assert spoilt[0] == clean[0]
    assert (spoilt[1] == clean[1]).all()
    assert spoilt[2] == clean[2]


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_triton_with_an_empty_mask(aggregation):
    batch = tokens()
    batch[3] = torch.zeros_like(batch[3])
    ours = run(batch, "triton", aggregation=aggregation, dual_clip=2.0)
    reference = run(batch, "eager", aggregation=aggregation, dual_clip=2.0)
    assert ours[0] == 0
    assert (ours[1] == 0).all()
    assert ours[2] == reference[2]


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["kl", "tv", "chi2"])
def test_triton_at_the_limits(divergence):
    # p = 0, p = 1, probabilities that vanish, appear, underflow, or stay; A of both signs for each.
    old = [-math.inf, -math.inf, 0.0, 0.0, -1e-9, -1e-4, -90.0, -200.0, -3.0, -3.0, -60.0, -1e-6, -0.7]
    new = [-2.0, -1e-4, -1e-6, -0.4, -1e-9, -3.0, -80.0, -1.0, -math.inf, -3.0, -50.0, -40.0, 0.0]
    old, new = (torch.tensor([x, x], device=DEVICE) for x in (old, new))
    advantages = torch.ones_like(old)
    advantages[1] = -1
    for i in range(old.shape[1]):
        batch = [t[:, i : i + 1] for t in (new, old, advantages)] + [torch.ones_like(old[:, :1])] * 3
        for row in (0, 1):
            one = [t[row : row + 1] for t in batch]
            exact = run(one, "eager", rule=Band(0.05, divergence))
            ours = run(one, "triton", rule=Band(0.05, divergence))
            where = f"new {float(one[0])}, old {float(one[1])}, advantage {float(one[2])}"
            # On a GPU exp and division round differently; there the allowance is that of the bound, a logarithm.
            wider = not fused.INTERPRETED and 0 < abs(exact[0]) < math.inf
            rel = 2e-6 * (max(1.0, abs(math.log(abs(exact[0])))) if wider else 1.0)
            assert ours[0] == pytest.approx(exact[0], rel=rel, nan_ok=True), where
            assert float(ours[1]) == pytest.approx(float(exact[1]), rel=2e-6, nan_ok=True), where
            for name, value in exact[2].items():
                assert ours[2][name] == pytest.approx(value, rel=4e-6, abs=1e-30, nan_ok=True), (name, where)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", [Band(0.05), Band(0.05, "chi2"), TwoSided(0.05, "tv"), Clip(0.001, 0.001)], ids=repr)
def test_triton_measures_a_probability_rounded_to_one_as_eager_does(rule, dtype):
    half = torch.finfo(dtype).eps / 2
    new = torch.tensor([[0.0, 0.0, -half / 2, -0.1, 0.0, 1e-6, 0.0]])
    old = torch.tensor([[-half / 2, -20 * half, 0.0, 0.0, 0.0, -1e-3, -0.4]])
    for sign in (1.0, -1.0):
        batch = [t.to(dtype).to(DEVICE) for t in (new, old, sign * torch.ones_like(new))]
        batch += [torch.ones_like(new, device=DEVICE)] * 3
        eager, ours = run(batch, "eager", rule=rule), run(batch, "triton", rule=rule)
        assert ours[0] == pytest.approx(eager[0], rel=2e-6)
        assert torch.equal(ours[1] == 0, eager[1] == 0)
        for name, value in eager[2].items():
            assert math.isfinite(value)
            assert ours[2][name] == pytest.approx(value, rel=2e-4, abs=1e-7), name


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (2, 4)], ids=["no sequence", "no token", "all masked"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_triton_gives_zero_without_a_token(shape, aggregation):
    ones = torch.ones(shape, device=DEVICE)
    batch = [-ones, -2 * ones, ones, 0 * ones, ones, ones]
    loss, grad, metrics = run(batch, "triton", rule=Band(cap=3.0), aggregation=aggregation, dual_clip=2.0)
    assert loss == 0
    assert torch.equal(grad, torch.zeros(shape, dtype=torch.float64, device=DEVICE))
    assert metrics == run(batch, "eager", rule=Band(cap=3.0), aggregation=aggregation, dual_clip=2.0)[2]


def test_triton_refuses_minus_infinity_in_both_log_probs():
    one = torch.full((1, 1), -math.inf, device=DEVICE)
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match="both -inf at 1 unmasked token"):
            policy_loss(one, one, torch.ones_like(one), torch.ones_like(one), backend="triton")
    else:  # where looking would cost a synchronization, it is loud
        assert torch.isnan(policy_loss(one, one, torch.ones_like(one), torch.ones_like(one), backend="triton").loss)


@pytest.mark.slow
def test_backward_twice_and_no_gradient():
    batch = tokens()
    new = batch[0].clone().requires_grad_()
    loss = policy_loss(new, *batch[1:4], backend="triton").loss
    first = torch.autograd.grad(loss, new, retain_graph=True)[0]
    assert (torch.autograd.grad(2 * loss, new)[0] == 2 * first).all()
    assert not policy_loss(*batch[:4], backend="triton").loss.requires_grad
    with torch.no_grad():
        assert policy_loss(new, *batch[1:4], backend="triton").loss == loss


# --- bounds and elementary functions ------------------------------------------------------------------------


def log_probs():
    exponents = torch.linspace(-9, math.log10(85), 1500, dtype=torch.float64)
    return torch.cat([-(10**exponents), torch.tensor([0.0, -math.inf])]).float().to(DEVICE)


@triton.jit
def _bounds(old_ptr, lower_ptr, upper_ptr, n, radius, DIVERGENCE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    old = fused._clean(tl.load(old_ptr + i, mask=i < n, other=0.0))
    p = fused._exp(old)
    c = fused._rest(old, p)
    up = i >= 0
    every = tl.zeros_like(old) + radius
    tl.store(lower_ptr + i, fused._log_bound(old, p, c, i < 0, every, DIVERGENCE), mask=i < n)
    tl.store(upper_ptr + i, fused._log_bound(old, p, c, up, every, DIVERGENCE), mask=i < n)


def triton_band(old, radius, divergence):
    lower, upper = torch.empty_like(old), torch.empty_like(old)
    _bounds[(triton.cdiv(len(old), 512),)](
        old, lower, upper, len(old), radius, DIVERGENCE=fused.DIVERGENCES[divergence], BLOCK=512
    )
    return lower, upper


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["kl", "tv", "chi2"])
@pytest.mark.parametrize("radius", [1e-4, 0.01, 0.05, 0.3])
def test_triton_bounds_are_exact(divergence, radius):
    old = log_probs()
    exact, single = band(old.double(), radius, divergence), band(old, radius, divergence)
    allowed = 2e-5 if radius < 0.01 else 2e-6
    for bound, eager, reference in zip(
        triton_band(old, radius, divergence),
        (single.log_lower, single.log_upper),
        (exact.log_lower, exact.log_upper),
        strict=True,
    ):
        assert bound.dtype == torch.float32
        same = bound.double() == reference
        finite = torch.isfinite(reference)
        # Beyond float32's range, and within its last digit of the edge, the side counts as saturated.
        edge = finite & ((reference.abs() > 1e38) | (old < -80) & torch.isinf(bound))
        error, eagers = (((x.double() - reference) / reference).abs() for x in (bound, eager))
        # Within an ulp of saturation the root itself is ill-conditioned, for float32 eager too.
        good = (error <= allowed) | (error <= 2 * eagers)
        assert (same | edge | (finite & good)).all(), float(error[~same & finite & ~edge].max())
    assert float(triton_band(old[-2:], radius, divergence)[1][0]) == 0.0
    assert float(triton_band(old[-2:], radius, divergence)[0][1]) == -math.inf


@triton.jit
def _elementary(x_ptr, out_ptr, n, WHICH: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=1.0)
    if WHICH == 0:
        y = _exp(x)
    elif WHICH == 1:
        y = _expm1(x)
    elif WHICH == 2:
        y = _log(x)
    else:
        y = _log1p(x)
    tl.store(out_ptr + i, y, mask=i < n)


@pytest.mark.slow
@pytest.mark.parametrize(("which", "function"), list(enumerate([torch.exp, torch.expm1, torch.log, torch.log1p])))
def test_elementary_functions_are_within_2_5_ulp(which, function):
    generator = torch.Generator().manual_seed(which)
    size = 2.0 ** (-40 + 47 * torch.rand(60000, generator=generator, dtype=torch.float64))
    x = {
        0: torch.cat([-size[size < 87.3], size[size < 88.7]]),
        1: torch.cat([-size, size[size < 88.7]]),
        2: 2.0 ** (-126 + 253 * torch.rand(60000, generator=generator, dtype=torch.float64)),
        3: torch.cat([size**4, -size[size < 1.0], -1 + size[size < 1.0]]),
    }[which]
    if which == 2:
        x = torch.cat([x, 1 + size[size < 1.0], 1 - size[size < 1.0]])
    x = x.float()
    x = x[(x > -1) | (which < 2)].to(DEVICE)
    out = torch.empty_like(x)
    _elementary[(triton.cdiv(len(x), 4096),)](x, out, len(x), WHICH=which, BLOCK=4096)
    exact = function(x.double())
    unit = 2.0 ** (torch.floor(torch.log2(exact.abs())) - 23)
    error = ((out.double() - exact).abs() / unit)[exact != 0].max()
    assert error <= 2.5
    ends = torch.tensor([-math.inf, math.inf, math.nan, 0.0, -1.0, -200.0, 200.0], device=DEVICE)
    out = torch.empty_like(ends)
    _elementary[(1,)](ends, out, len(ends), WHICH=which, BLOCK=8)
    torch.testing.assert_close(out, function(ends), equal_nan=True, rtol=1e-6, atol=0)


# --- torch.compile ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compile_gives_the_same_and_does_not_compile_anew():
    options = {"dual_clip": 1.3}  # a sequence mode would add several seconds of compiling
    check(tokens(top=-1e-3), "compile", Band((0.05, 0.07), cap=2.0), **options)
    with torch.compiler.set_stance("fail_on_recompile"):
        check(tokens((8, 33), seed=2, top=-1e-3), "compile", Band((0.01, 0.02), cap=1.5), **options)
    batch = tokens()
    for name, index, value in (("logps", 0, math.nan), ("advantages", 2, math.nan), ("old_logps", 1, 0.5)):
        spoilt = [t.clone() for t in batch]
        spoilt[index][0, 0], spoilt[3][0, 0] = value, True
        if DEVICE == "cpu":
            for backend in ("compile", "triton", "eager"):
                with pytest.raises(ValueError, match=name):
                    run(spoilt, backend, rule=Band((0.05, 0.07), cap=2.0), **options)


@pytest.mark.slow
def test_compiled_divergence_near_probability_one():
    old = torch.tensor([-1e-6, -1e-4, -1e-3] * 16, device=DEVICE)
    function = torch.compile(binary_divergence, fullgraph=True)
    found, exact = function(old / 2, old), binary_divergence(old.double() / 2, old.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)


# --- no synchronisation -------------------------------------------------------------------------------------


class _Watch(TorchDispatchMode):
    """Records the operations, and refuses copies between devices."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        used = {x.device.type for x in leaves if isinstance(x, torch.Tensor)}
        assert used <= {"meta"}, f"{function} reads a tensor on {used}"
        self.names.add(str(function).split(".")[1])
        return function(*args, **(kwargs or {}))


def empty():
    return torch.empty(4, 7, device="meta")


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    [Band(cap=3.0, floor=0.2), Band((empty(), 0.1), "chi2"), Band(0.05, "js"), Band(0.05, "hellinger2"), Clip(),
     DCPO(), NoClip(), Band(0.05, FDivergence("quartic", lambda u: (u - 1) ** 4 + (u - 1) ** 2))],
    ids=lambda rule: f"{type(rule).__name__}-{getattr(rule, 'divergence', '')}",
)  # fmt: skip
def test_the_eager_path_never_asks_the_device_for_a_value(rule):
    # Meta tensors have no values: whatever needs one (item, bool, nonzero, equal, tolist) raises here.
    new = empty().requires_grad_()
    with _Watch() as watch:
        options = {"dual_clip": 2.0, "weights": empty(), "entropy": empty()}
        result = policy_loss(new, empty(), empty(), empty(), rule=rule, backend="eager", **options)
        result.loss.backward()
    assert not watch.names & {"_local_scalar_dense", "nonzero", "equal", "item", "is_nonzero", "masked_select"}
    with pytest.raises((RuntimeError, NotImplementedError)):
        (empty() > 0).nonzero()
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(result.loss > 0)


@pytest.mark.parametrize("rule", [Band(cap=3.0, floor=0.2), Band((0.05, 0.1)), AdaptiveBand()], ids=repr)
def test_a_rule_is_handed_to_the_compiler_without_a_copy_to_the_device(rule):
    logps = empty()
    with _Watch() as watch:
        rule.traced(logps)
    assert watch.names == {"full", "detach"}  # filled there, not made here and copied


@pytest.mark.parametrize(
    "rule", [Band(per_token_radius().cpu()), AdaptiveBand()], ids=lambda rule: type(rule).__name__
)
def test_only_clipped_tokens_are_solved_on_the_cpu(rule):
    solved = []

    class Counting(type(rule)):
        def held(self, tokens, rising, where=None):
            values = super().held(tokens, rising, where)
            solved.append(values.numel())
            return values

    counting = Counting(**{f.name: getattr(rule, f.name) for f in dataclasses.fields(rule)})
    new, old, advantages, mask = (t.cpu() for t in tokens()[:4])
    result = policy_loss(new, old, advantages, mask, rule=counting, backend="eager")
    assert solved == [round(float(result.metrics["clip_fraction"] * mask.sum()))]
    assert 0 < solved[0] < 100


# --- picking ------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    monkeypatch.setattr(backends._State, "compile_failure", None)
    monkeypatch.setattr(backends._State, "told", False)


def big():
    # One value, expanded: a large batch for nothing.
    return torch.tensor(-1.0).expand(2, backends.COMPILE_FROM // 2)


class _Device:
    """Looks like a CUDA tensor to the choice, which reads nothing but these."""

    def __init__(self, dtype=torch.float32, shape=(2, 3)):
        self.device, self.dtype, self.shape = torch.device("cuda"), dtype, shape

    def numel(self):
        return math.prod(self.shape)

    def dim(self):
        return len(self.shape)


@pytest.mark.usefixtures("fresh")
def test_the_automatic_choice(monkeypatch):
    monkeypatch.setattr(backends, "_has_cpp_compiler", lambda: True)
    assert backends.pick_backend(None, torch.zeros(4, 7), Band()) == ("eager", False)
    assert backends.pick_backend(None, big(), Band()) == ("compile", False)
    for rule in (*RULES.values(),):  # the kernel has not run on CUDA: never unless asked for
        assert backends.pick_backend(None, _Device(), rule) == ("eager", False)
        assert backends.pick_backend(None, _Device(shape=(1024, 1024)), rule) == ("compile", False)
        assert backends.pick_backend("triton", _Device(), rule) == ("triton", True)
    monkeypatch.setenv(backends.VARIABLE, "eager")
    assert backends.pick_backend(None, big(), Band()) == ("eager", True)
    assert backends.pick_backend("compile", torch.zeros(2, 2), Band()) == ("compile", True)
    monkeypatch.setenv(backends.VARIABLE, "")
    assert backends.pick_backend(None, big(), Band()) == ("compile", False)


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_eager_says_so_once(monkeypatch):
    monkeypatch.setattr(backends, "_has_cpp_compiler", lambda: False)
    with pytest.warns(UserWarning, match=r"eagerly.*C\+\+ compiler"):
        assert backends.pick_backend(None, big(), Band()) == ("eager", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.pick_backend(None, big(), Band()) == ("eager", False)
    with pytest.raises(RuntimeError) as caught:
        policy_loss(*(torch.zeros(2, 2) for _ in range(4)), backend="compile")
    for word in ("'compile'", "C++ compiler", "eager"):
        assert word in str(caught.value)


@pytest.mark.usefixtures("fresh")
def test_a_compilation_that_fails_falls_back_unless_it_was_asked_for(monkeypatch):
    def broken(function):
        raise OSError("no space left")

    monkeypatch.setattr(backends, "compiled", broken)
    monkeypatch.setattr(backends, "COMPILE_FROM", 1)
    monkeypatch.setattr(backends, "_has_cpp_compiler", lambda: True)
    batch = [t.cpu() for t in tokens()]
    reference = run(batch, "eager")
    with pytest.warns(UserWarning, match="no space left"):
        assert run(batch, None)[0] == reference[0]
    monkeypatch.setattr(backends._State, "compile_failure", None)
    monkeypatch.setattr(backends._State, "told", False)
    monkeypatch.setenv(backends.VARIABLE, "")  # empty is unset
    with pytest.warns(UserWarning, match="no space left"):
        assert run(batch, None)[0] == reference[0]
    monkeypatch.setattr(backends._State, "compile_failure", None)
    with pytest.raises(OSError, match="no space"):
        run(batch, "compile")


@pytest.mark.usefixtures("fresh")
def test_a_backend_that_cannot_run_is_an_error(monkeypatch):
    batch = tokens()[:4]

    def refused(backend, words, error=RuntimeError, rule=None, batch=batch):
        with pytest.raises(error) as caught:
            policy_loss(*batch, rule=rule, backend=backend)
        for word in words:
            assert word in str(caught.value)

    refused("trition", ["'trition'", "did you mean 'triton'", *backends.BACKENDS], ValueError)
    refused("triton", ["'triton'", "js", "kl", "eager"], rule=Band(0.05, "js"))
    refused("triton", ["float64", "eager"], batch=[t.double() for t in batch])
    monkeypatch.setattr(fused, "INTERPRETED", False)
    refused("triton", ["on the CPU", "TRITON_INTERPRET=1", "eager"], batch=[t.cpu() for t in batch])
    monkeypatch.setenv(backends.VARIABLE, "numba")
    refused(None, [backends.VARIABLE, "'numba'"], ValueError)
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    refused("triton", ["'triton'", "not installed", "eager"])


def test_the_environment_reaches_the_loss(monkeypatch):
    calls = []
    monkeypatch.setattr(fused, "fused_loss", lambda *a, **k: calls.append(1) or (torch.zeros(()), {}))
    monkeypatch.setenv(backends.VARIABLE, "triton")
    policy_loss(*tokens()[:4])
    assert calls == [1]


COMPILES_FOR_CUDA = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from bandpo.core.kernels import fused

POINTERS = {"new_ptr": "*bf16", "mask_ptr": "*i1", "grad_ptr": "*bf16"}
NUMBERS = ("log_floor", "log_cap", "dual_clip", "divisor")

def build(kernel, **constants):
    def kind(name):
        if name in constants:
            return "constexpr"
        return POINTERS.get(name, "*fp32") if name.endswith("_ptr") else "fp32" if name in NUMBERS else "i32"
    names = kernel.arg_names
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, {name: kind(name) for name in names}, constexprs=values)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).asm["cubin"]

switches = {name: True for name in fused._loss_kernel.arg_names if name.isupper()}
build(fused._loss_kernel, **switches | {"DIVERGENCE": 0, "ROWS": 2, "COLS": 512})
build(fused._loss_kernel, **dict.fromkeys(switches, False) | {"DIVERGENCE": 2, "ROWS": 1, "COLS": 1024})
build(fused._rows_kernel, SEQUENCE_MEAN=True, ROWS=128)
build(fused._finish_kernel, SEQUENCES=True, BLOCK=128)
build(fused._backward_kernel, SEQUENCE_MEAN=True, ROWS=1, COLS=1024)
print("built")
"""


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu_that_need_not_be_there():
    # The interpreter accepts what the compiler refuses; Triton compiles to machine code without a device.
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILES_FOR_CUDA], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "built", done.stderr[-2000:]
