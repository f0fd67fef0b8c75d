"""The policy loss against independent computations."""

import math
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch._subclasses import FakeTensorMode
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from bandpo import DCPO, Band, Clip, NoClip, band, binary_divergence, inside, policy_loss
from bandpo.core.losses import AGGREGATIONS, token_weights


def batch(rows=4, columns=7, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    old = -6 * torch.rand(rows, columns, generator=generator, dtype=dtype)
    new = (old + 0.6 * draw(rows, columns)).clamp(max=-1e-6)
    mask = (torch.rand(rows, columns, generator=generator) > 0.3).to(dtype)
    mask[-1] = 0
    return new.requires_grad_(), old, draw(rows, columns), mask


def surrogate(new, old, advantages, lower, upper):
    """-min(r A, clip(r, lower, upper) A), written as in the papers."""
    ratio = (new - old).exp()
    return -torch.minimum(ratio * advantages, torch.clamp(ratio, lower, upper) * advantages)


def kl_bounds_by_bisection(old, radius):
    """Bounds for KL(old || new) from the definition: bisection in float64 on the new probability."""
    p = old.double().exp()

    def divergence(q):
        return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()

    low, high = p.clone(), torch.ones_like(p)
    for _ in range(200):
        middle = (low + high) / 2
        beyond = divergence(middle) > radius
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    upper = low / p
    low, high = torch.zeros_like(p), p.clone()
    for _ in range(1100):
        middle = (low + high) / 2
        beyond = divergence(middle) > radius
        low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
    return high / p, upper


@pytest.mark.slow
def test_gradient_equals_the_surrogates_on_a_million_tokens():
    generator = torch.Generator().manual_seed(1)
    old = (-8 * torch.rand(1000, 1000, generator=generator, dtype=torch.float64)).clamp(max=-1e-3)
    new = (old + 0.7 * torch.randn(1000, 1000, generator=generator, dtype=torch.float64)).clamp(max=-1e-6)
    advantages = torch.randn(1000, 1000, generator=generator, dtype=torch.float64)
    lower, upper = kl_bounds_by_bisection(old, 0.05)
    first, second = new.clone().requires_grad_(), new.clone().requires_grad_()
    reference = surrogate(first, old, advantages, lower, upper).mean()
    ours = policy_loss(second, old, advantages, torch.ones_like(old), rule=Band(0.05), backend="eager").loss
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=0)
    (expected,) = torch.autograd.grad(reference, first)
    (found,) = torch.autograd.grad(ours, second)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    held = (expected == 0).double().mean()
    assert 0.01 < held < 0.9, "the comparison should meet both held and free tokens"


@pytest.mark.parametrize("rule", [Band(), Band(0.2, "chi2", cap=3.0), Clip(0.2, 0.28), DCPO(), NoClip()], ids=repr)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_value_and_gradient_equal_the_clipped_surrogate(rule, aggregation):
    new, old, advantages, mask = batch()
    bounds = rule.bounds(old)
    per_token = surrogate(new, old, advantages, bounds.lower, bounds.upper)
    reference = by_hand(per_token, mask, aggregation)
    ours = policy_loss(new, old, advantages, mask, rule=rule, aggregation=aggregation).loss
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(*(torch.autograd.grad(x, new)[0] for x in (ours, reference)))


def by_hand(values, mask, aggregation):
    """The four modes as loops over sequences."""
    rows = [[v for v, m in zip(row, keep, strict=True) if m] for row, keep in zip(values, mask.bool(), strict=True)]
    rows = [torch.stack(row) for row in rows if row]
    if aggregation == "token-mean":
        return torch.cat(rows).mean()
    if aggregation == "seq-mean-token-mean":
        return torch.stack([row.mean() for row in rows]).mean()
    sums = torch.stack([row.sum() for row in rows]).mean()
    return sums / values.shape[1] if aggregation == "seq-mean-token-sum-norm" else sums


def test_dual_clip_bounds_the_loss_of_bad_tokens():
    new, old, advantages, mask = batch(rows=20, columns=30)
    bounds = Clip().bounds(old)
    plain = surrogate(new, old, advantages, bounds.lower, bounds.upper)
    dual = torch.where(advantages < 0, torch.minimum(plain, -1.3 * advantages), plain)
    result = policy_loss(new, old, advantages, mask, rule=Clip(), dual_clip=1.3)
    torch.testing.assert_close(result.loss, by_hand(dual, mask, "token-mean"))
    reference = torch.autograd.grad(by_hand(dual, mask, "token-mean"), new)[0]
    torch.testing.assert_close(torch.autograd.grad(result.loss, new)[0], reference)
    ratio = (new - old).exp()
    expected = ((advantages < 0) & (ratio > 1.3) & mask.bool()).sum() / mask.sum()
    torch.testing.assert_close(result.metrics["dual_clip_fraction"].double(), expected.double())
    assert expected > 0


def test_weights_multiply_each_token():
    new, old, advantages, mask = batch()
    weights = torch.rand_like(old)
    per_token = surrogate(new, old, advantages, 0.8, 1.2) * weights
    ours = policy_loss(new, old, advantages, mask, rule=Clip(), weights=weights).loss
    torch.testing.assert_close(ours, by_hand(per_token, mask, "token-mean"))


def test_metrics_count_what_happened():
    p = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.01]])
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5, 5.0]])
    advantages = torch.tensor([[1.0, -1.0, -1.0, -1.0, 1.0]])
    old = p.log()
    result = policy_loss(
        (old + ratio.log()).requires_grad_(), old, advantages, torch.ones(1, 5), rule=Band(0.05, cap=4.0),
        entropy=torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]),
    )  # fmt: skip
    found = {name: round(value.item(), 5) for name, value in result.metrics.items()}
    assert found["clip_fraction_high"] == 0.4  # p = .5 above 1.308 with A > 0, and p = .01 above the cap
    assert found["clip_fraction_low"] == 0.4
    assert found["clip_fraction"] == 0.8
    assert found["out_of_band_fraction"] == 1.0
    assert found["cap_fraction"] == 0.2
    assert found["ratio_max"] == 5.0
    assert found["ratio_min"] == 0.5
    assert found["entropy"] == 3.0
    kl = [
        a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))
        for a, b in [(0.5, 0.75)] * 2 + [(0.5, 0.25)] * 2 + [(0.01, 0.05)]
    ]
    assert found["divergence"] == pytest.approx(sum(kl) / 5, abs=1e-5)
    assert found["divergence_max"] == pytest.approx(max(kl), abs=1e-5)


def test_masked_tokens_may_hold_anything():
    new, old, advantages, mask = batch()
    clean = policy_loss(new, old, advantages, mask)
    hole = mask == 0
    dirty = new.detach().masked_fill(hole, math.nan).requires_grad_()
    spoilt = policy_loss(dirty, old.masked_fill(hole, math.inf), advantages.masked_fill(hole, math.nan), mask)
    torch.testing.assert_close(spoilt.loss, clean.loss)
    torch.testing.assert_close(*(torch.autograd.grad(r.loss, x)[0] for r, x in ((spoilt, dirty), (clean, new))))
    assert spoilt.metrics == clean.metrics


def test_overflowing_ratio_leaves_a_finite_gradient():
    old = torch.tensor([[-200.0, -1.0]])
    new = torch.tensor([[-0.1, -1.1]], requires_grad=True)
    result = policy_loss(new, old, torch.tensor([[1.0, 1.0]]), torch.ones(1, 2), rule=Clip())
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert new.grad[0, 0] == 0
    assert torch.isfinite(new.grad).all()


def test_half_precision_is_computed_in_float32():
    new, old, advantages, mask = (t.detach().to(torch.bfloat16) for t in batch())
    half = policy_loss(new.requires_grad_(), old, advantages, mask).loss
    full = policy_loss(new.detach().float().requires_grad_(), old.float(), advantages.float(), mask.float()).loss
    assert half.dtype == torch.float32
    assert half == full


def test_one_advantage_a_sequence():
    new, old, _, mask = batch()
    advantages = torch.tensor([1.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    expanded = policy_loss(new, old, advantages[:, None].expand_as(old), mask)
    assert policy_loss(new, old, advantages, mask).loss == expanded.loss
    assert policy_loss(new, old, advantages[:, None], mask).loss == expanded.loss


def test_empty_mask_gives_zero():
    new, old, advantages, mask = batch()
    for aggregation in AGGREGATIONS:
        result = policy_loss(new, old, advantages, torch.zeros_like(mask), aggregation=aggregation)
        assert result.loss == 0
        assert torch.autograd.grad(result.loss, new)[0].abs().max() == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"old_logps": torch.zeros(3, 3)}, ["old_logps", "(3, 3)", "(4, 7)"]),
        ({"mask": torch.ones(2, 7)}, ["mask", "(2, 7)"]),
        ({"advantages": torch.zeros(5)}, ["advantages"]),
        ({"aggregation": "token_mean"}, ["'token_mean'", "did you mean 'token-mean'", *AGGREGATIONS]),
        ({"dual_clip": 0.5}, ["dual_clip", "0.5"]),
        ({"horizon": 0, "aggregation": "seq-mean-token-sum-norm"}, ["horizon", "0"]),
        ({"old_logps": torch.full((4, 7), math.nan)}, ["old_logps", "NaN"]),
        ({"advantages": torch.full((4, 7), math.nan)}, ["advantages", "NaN"]),
        ({"old_logps": torch.full((4, 7), 0.5)}, ["old_logps", "0.5"]),
    ],
)
def test_bad_input_is_named(change, words):
    new, old, advantages, mask = batch()
    given = {"logps": new, "old_logps": old, "advantages": advantages, "mask": mask, **change}
    with pytest.raises(ValueError) as caught:
        policy_loss(**given)
    for word in words:
        assert word in str(caught.value)


def test_a_horizon_divides_the_sums():
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    weights = token_weights(mask, "seq-mean-token-sum-norm", 10, torch.float32)
    assert float((mask * weights).sum()) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("dtype", "rest"), [(torch.float32, 2.0**-24), (torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)]
)
@pytest.mark.parametrize("divergence", ["kl", "reverse_kl", "chi2", "neyman_chi2"])
def test_a_probability_rounded_to_one_is_measured_as_far_as_the_dtype_can_tell(dtype, rest, divergence):
    def run(new, old, advantage):
        new, old = (torch.tensor([[x]], dtype=dtype) for x in (new, old))
        return policy_loss(
            new.requires_grad_(), old, torch.tensor([advantage]), torch.ones(1, 1), rule=Band(0.05, divergence)
        ).metrics

    far = -8 * rest
    known = binary_divergence(torch.tensor(-rest).double(), torch.tensor(far, dtype=dtype).double(), divergence)
    for new, old in ((0.0, far), (far, 0.0)):
        found = run(new, old, 1.0 if new == 0 else -1.0)
        if new == 0:
            assert found["divergence"].item() == pytest.approx(known.item(), rel=1e-4)
        assert all(torch.isfinite(value) for value in found.values()), found
        assert found["saturated_fraction"] == 1
    # A change that is within the rounding is none, and no rule clips it.
    for new, old, advantage in ((0.0, -rest / 2, 1.0), (-rest / 2, 0.0, -1.0), (0.0, 0.0, 1.0)):
        found = run(new, old, advantage)
        assert found["divergence"] == found["out_of_band_fraction"] == found["clip_fraction"] == 0
    assert run(-1.0, -1.1, 1.0)["saturated_fraction"] == 0
    with pytest.raises(ValueError, match="NaN"):
        run(math.nan, 0.0, 1.0)


def test_a_real_move_to_one_is_still_clipped():
    old = torch.tensor([[-0.5, -0.5]])
    new = torch.tensor([[0.0, -1e-3]])
    found = policy_loss(new, old, torch.ones(1), torch.ones(1, 2), rule=Band(0.05)).metrics
    assert found["clip_fraction_high"] == 1
    assert found["saturated_fraction"] == 0.5
    assert found["divergence_max"] > 1  # and finite: a rest of 6e-8 is left


@pytest.mark.parametrize("backend", ["eager", pytest.param("compile", marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (2, 4)], ids=["no sequence", "no token", "all masked"])
def test_metrics_of_no_token_are_those_of_one_that_has_not_moved(shape, backend):
    for aggregation in AGGREGATIONS if backend == "eager" else AGGREGATIONS[:1]:
        new = torch.full(shape, -1.0, requires_grad=True)
        result = policy_loss(
            new, torch.full(shape, -2.0), torch.ones(shape[0]), torch.zeros(shape), aggregation=aggregation,
            dual_clip=2.0, entropy=torch.ones(shape), rule=Band(cap=3.0, floor=0.1), backend=backend,
        )  # fmt: skip
        result.loss.backward()
        assert result.loss == 0
        assert torch.equal(new.grad, torch.zeros(shape))
        extremes = {"ratio_max": 1, "ratio_min": 1, "divergence_max": 0}
        assert {name: value.item() for name, value in result.metrics.items()} == {
            **dict.fromkeys(result.metrics, 0), **extremes
        }  # fmt: skip


@pytest.mark.parametrize("backend", ["eager", pytest.param("compile", marks=pytest.mark.slow)])
def test_minus_infinity_in_both_log_probs_is_refused_unless_masked(backend):
    one = torch.tensor([[-math.inf, -1.0]])
    with pytest.raises(ValueError, match="both -inf at 1 unmasked token"):
        policy_loss(one, one, torch.ones(1), torch.ones(1, 2), backend=backend)
    masked = policy_loss(one, one, torch.ones(1), torch.tensor([[0.0, 1.0]]), backend=backend)
    assert masked.loss == -1
    vanished = policy_loss(one, torch.tensor([[-2.0, -1.0]]), -torch.ones(1), torch.ones(1, 2), backend=backend)
    assert vanished.metrics["ratio_min"] == 0


def test_the_loss_under_vmap_is_that_of_each_row():
    new, old, advantages, mask = (t.detach() for t in batch(rows=5))

    def loss(*row, backend=None):
        return policy_loss(*(x[None] for x in row), rule=Band(0.01), backend=backend).loss

    rows = [torch.stack([x[i] for x in (new, old, advantages, mask)]) for i in range(5)]
    one = torch.stack([loss(*row) for row in rows])
    torch.testing.assert_close(torch.func.vmap(loss)(new, old, advantages, mask), one, rtol=1e-12, atol=0)
    slopes = torch.func.vmap(torch.func.grad(loss))(new, old, advantages, mask)
    expected = torch.stack([torch.func.grad(loss)(*row) for row in rows])
    torch.testing.assert_close(slopes, expected, rtol=1e-12, atol=0)
    for backend in ("compile", "triton"):
        with pytest.raises(RuntimeError, match=r"torch\.func.*can run here: eager"):
            torch.func.vmap(partial(loss, backend=backend))(new, old, advantages, mask)


def test_the_loss_of_fake_tensors_has_shape_and_gradient():
    with FakeTensorMode() as mode:
        new, old, advantages, mask = (mode.from_tensor(t.detach()) for t in batch())
        result = policy_loss(new.requires_grad_(), old, advantages, mask, dual_clip=3.0)
        result.loss.backward()
    assert result.loss.shape == ()
    assert new.grad.shape == new.shape


def test_a_distributed_tensor_is_refused_in_a_sentence():
    new, old, advantages, mask = (t.detach() for t in batch())
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        given = {"logps": new, "old_logps": old, "advantages": advantages, "mask": mask, "weights": mask}
        for name, tensor in given.items():
            with pytest.raises(ValueError, match=r"got a DTensor.*to_local\(\).*full_tensor\(\)"):
                policy_loss(**{**given, name: distribute_tensor(tensor, mesh, [Shard(0)])})
        spread = distribute_tensor(old, mesh, [Shard(0)])
        for call in (lambda: band(spread, 0.05), lambda: inside(spread, old), lambda: Clip().bounds(spread)):
            with pytest.raises(ValueError, match="got a DTensor"):
                call()
    finally:
        dist.destroy_process_group()
