"""Radii that adapt to a token's context, against their formulas in NumPy's float64."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bandpo import Band, DisagreementBand, EntropyBand, PositionBand, Tokens, group_disagreement, policy_loss
from bandpo.core.needs import check_needs
from bandpo.core.registry import make_rule

# The interpreter computes with NumPy, which announces the inf and NaN that the kernels select away.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
RULES = [EntropyBand(0.03), DisagreementBand((0.02, 0.05), smallest=0.3), PositionBand(0.03, last=1.6, horizon=30)]


def batch(rows=6, columns=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    old = -6 * torch.rand(rows, columns, generator=generator)
    new = (old + 0.8 * torch.randn(rows, columns, generator=generator)).clamp(max=-1e-4)
    advantages = torch.randn(rows, 1, generator=generator)
    mask = torch.rand(rows, columns, generator=generator) > 0.2
    weight = 2 * torch.rand(rows, columns, generator=generator)
    return new.requires_grad_(), old, advantages, mask, weight


def expected_factor(rule, weight, mask):
    """The docstrings' formulas."""
    if isinstance(rule, PositionBand):
        share = np.minimum(np.arange(mask.shape[-1]) / (rule.horizon - 1), 1)
        return np.broadcast_to((1 - share) * (2 - rule.last) + share * rule.last, mask.shape)
    weight = np.where(mask, weight.double().numpy(), 0.0)
    mean = weight[mask.numpy()].mean() if mask.any() else 0.0
    return rule.smallest + (1 - rule.smallest) * (weight / mean if mean else np.ones(mask.shape))


@pytest.mark.parametrize(
    "backend", ["eager", *(pytest.param(name, marks=pytest.mark.slow) for name in ("triton", "compile"))]
)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_the_loss_is_that_of_band_with_these_radii(rule, backend):
    new, old, advantages, mask, weight = batch()
    low, high = rule.radius if isinstance(rule.radius, tuple) else (rule.radius, rule.radius)
    factor = torch.from_numpy(expected_factor(rule, weight, mask).copy()).float()
    context = {"old_entropy": weight.masked_fill(~mask, torch.nan), "disagreement": weight}
    found = []
    for one, more in ((rule, context), (Band((low * factor, high * factor)), {})):
        result = policy_loss(new, old, advantages, mask, rule=one, backend=backend, **more)
        found.append((result, torch.autograd.grad(result.loss, new)[0]))
    (ours, slope), (theirs, other_slope) = found
    torch.testing.assert_close(slope, other_slope)
    torch.testing.assert_close(ours.loss, theirs.loss)
    assert ours.metrics["clip_fraction"] == theirs.metrics["clip_fraction"] > 0.1
    constant = policy_loss(new, old, advantages, mask, rule=Band(rule.radius), backend=backend)
    assert ours.metrics["clip_fraction"] != constant.metrics["clip_fraction"]


@settings(max_examples=30)
@given(
    st.data(),
    st.integers(1, 4),
    st.integers(1, 7),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.floats(1e-3, 1),
)
def test_the_mean_radius_stays(data, rows, columns, dtype, smallest):
    def drawn(values):
        rows_of = st.lists(st.lists(values, min_size=columns, max_size=columns), min_size=rows, max_size=rows)
        return torch.tensor(data.draw(rows_of))

    weight = drawn(st.sampled_from([0.0, 1e-30, 0.01, 0.5, 1.0, 11.9])).to(dtype)
    mask = drawn(st.booleans())
    old = torch.full(mask.shape, -1.0, dtype=dtype)
    for rule in (EntropyBand((0.02, 0.1), smallest=smallest), DisagreementBand((0.02, 0.1), smallest=smallest)):
        hidden = weight.masked_fill(~mask, torch.nan)
        radii = rule.radii(Tokens(old, mask=mask, old_entropy=hidden, disagreement=hidden))
        for set_one, radius in zip((0.02, 0.1), radii, strict=True):
            assert radius.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            factor = expected_factor(rule, weight.float() if dtype != torch.float64 else weight, mask)
            if mask.any():
                np.testing.assert_allclose(radius[mask].numpy(), set_one * factor[mask.numpy()], rtol=1e-5)
                assert radius[mask].double().mean().item() == pytest.approx(set_one, rel=1e-5)


def test_the_radius_by_position_is_a_line_with_the_set_mean():
    radii = PositionBand((0.02, 0.05), last=0.4, horizon=11).radii(Tokens(torch.ones(1), positions=torch.arange(11)))
    assert radii[1].tolist() == pytest.approx([0.05 * (1.6 - 0.12 * t) for t in range(11)])
    assert radii[0].mean().item() == pytest.approx(0.02)
    after = PositionBand(0.05, last=1e-300, horizon=2).radii(
        Tokens(torch.ones(1).double(), positions=torch.tensor([-5, 0, 1, 900]))
    )
    assert after[0].tolist() == pytest.approx([0.1, 0.1, 5e-302, 5e-302])


def by_pairs(ids, groups, mask):
    """The share of ordered pairs that differ, one by one."""
    rows, columns = ids.shape
    found = np.full(ids.shape, np.nan)
    for row in range(rows):
        for column in range(columns):
            here = [ids[i, column] for i in range(rows) if groups[i] == groups[row] and mask[i, column]]
            pairs = [a != b for a, b in permutations(here, 2)]
            if pairs and mask[row, column]:
                found[row, column] = np.mean(pairs)
    mean = np.nanmean(found) if np.isfinite(found).any() else 0.0
    return np.where(mask, np.where(np.isnan(found), mean, found), 0.0)


@settings(max_examples=30)
@given(st.data(), st.integers(1, 7), st.integers(1, 4))
def test_disagreement_is_the_share_of_pairs_that_differ(data, rows, columns):
    def drawn(values, size):
        return data.draw(st.lists(values, min_size=size, max_size=size))

    ids = torch.tensor(drawn(st.sampled_from([-100, 0, 1, 2, 151_935]), rows * columns)).view(rows, columns)
    mask = torch.tensor(drawn(st.sampled_from([0, 1, 1]), rows * columns)).view(rows, columns)
    mask = mask * (ids >= 0)
    groups = torch.tensor(drawn(st.sampled_from([0, 3, 2**31 - 1]), rows))
    found = group_disagreement(ids, groups.unsqueeze(1), mask)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), by_pairs(ids.numpy(), groups.numpy(), mask.numpy()), atol=1e-6)
    assert torch.equal(found, group_disagreement(ids, groups, mask.bool()))


def test_disagreement_estimates_one_minus_the_sum_of_squares():
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([0.6, 0.3, 0.1])
    ids = torch.multinomial(p, 40_000, replacement=True, generator=generator).view(8, -1)
    found = group_disagreement(ids, torch.zeros(8, 1), torch.ones_like(ids)).mean().item()
    assert found == pytest.approx(1 - 0.46, abs=0.01)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1, 1)])
def test_disagreement_without_a_pair_is_nothing(shape):
    ids = torch.zeros(shape, dtype=torch.long)
    assert torch.equal(group_disagreement(ids, torch.zeros(shape[0], 1), torch.ones(shape)), torch.zeros(shape))


def test_what_cannot_be_is_refused():
    new, old, advantages, mask, weight = batch()
    with pytest.raises(ValueError, match="DisagreementBand needs disagreement: this call does not give it"):
        policy_loss(new, old, advantages, mask, rule=DisagreementBand())
    with pytest.raises(ValueError, match="old_entropy has the mean nan over unmasked tokens"):
        policy_loss(new, old, advantages, mask, rule=EntropyBand(), old_entropy=weight * torch.nan)
    with pytest.raises(ValueError, match=r"needs disagreement: verl cannot give it; .* TRL's BandGRPOTrainer"):
        check_needs(DisagreementBand().all_needs, "verl", "disagreement-band")
    check_needs(PositionBand().all_needs, "slime", "position-band")
    with pytest.raises(ValueError, match=r"groups of shape \(3, 1\) does not broadcast to ids of shape \(2, 4\)"):
        group_disagreement(torch.zeros(2, 4), torch.zeros(3), torch.ones(2, 4))
    for name, options, words in (
        ("entropy-band", {"smallest": 0.0}, "EntropyBand: smallest is 0.0; allowed: a number > 0 and <= 1"),
        ("disagreement-band", {"smallest": 1.1}, "DisagreementBand: smallest is 1.1"),
        ("position-band", {"last": 2}, "PositionBand: last is 2; allowed: a number > 0 and < 2"),
        ("position-band", {"horizon": 1}, "PositionBand: horizon is 1; allowed: a number >= 2"),
        ("entropy-band", {"table": True}, "table is True"),
        ("entropy-band", {"radius": 0}, "radius must be > 0"),
    ):
        with pytest.raises(ValueError, match=words):
            make_rule(name, **options)
