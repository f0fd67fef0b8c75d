"""Lookup tables against the solve they replace."""

import math

import pytest
import torch

from bandpo.core.band import band
from bandpo.core.divergences import FDivergence
from bandpo.core.table import BandTable, band_table

NAMES = ["kl", "reverse_kl", "js", "jeffreys", "alpha:0.5", "alpha:2", "alpha:-1"]


def _logps(n=20_000):
    uniform = torch.rand((2, n), generator=torch.Generator().manual_seed(3))
    return torch.where(uniform[1] < 0.5, -100 * uniform[0], -torch.exp(25 * uniform[0] - 21))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("radius", "n"), [(0.01, 1_000_000), ((0.05, 0.3), 20_000), (1e-6, 20_000), (4.0, 20_000)])
def test_the_table_is_within_its_stated_error(name, radius, n):
    table = BandTable(radius, name)
    old = _logps(n)
    got, want = table(old), band(old.double(), radius, name)
    assert 0 < table.max_error <= 5e-5
    assert (got.lower - want.lower).abs().max() <= table.max_error
    assert (got.log_upper - want.log_upper).abs().max() <= table.max_error
    assert (got.log_lower <= 0).all()
    assert (got.log_upper >= 0).all()
    assert (got.log_upper <= -old).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_edges_limits_and_nan(name):
    old = torch.tensor([0.0, -math.inf, math.nan, -0.0001, -50.0, -1e4])
    got, want = band_table(0.05, name)(old), band(old, 0.05, name)
    assert got.log_upper[:2].tolist() == [0.0, math.inf]
    assert got.log_lower[1].item() == -math.inf
    assert torch.isnan(got.log_lower[2])
    assert torch.isnan(got.log_upper[2])
    assert got.lower[0].item() == pytest.approx(want.lower[0].item(), abs=2e-5)
    saturated = want.log_upper == -old
    assert torch.equal(got.log_upper[saturated], want.log_upper[saturated])
    assert (got.log_upper <= -old)[[0, 1, 3, 4, 5]].all()


@pytest.mark.parametrize("name", ["tv", "chi2", "neyman_chi2", "hellinger2"])
def test_closed_forms_are_not_tabulated(name):
    table = BandTable(0.05, name)
    old = _logps(100)
    assert table.max_error == 0.0
    assert torch.equal(table(old).log_upper, band(old, 0.05, name).log_upper)


@pytest.mark.slow
def test_a_users_divergence_and_double_precision():
    mine = FDivergence(name="mine", f=lambda u: (u - 1) ** 2 / (u + 1))
    table = BandTable(0.05, mine, dtype=torch.float64)
    old = _logps(500).double()
    want = band(old, 0.05, mine)
    assert (table(old).lower - want.lower).abs().max() <= table.max_error
    assert (table(old).log_upper - want.log_upper).abs().max() <= table.max_error
    assert table(old).lower.dtype == torch.float64


@pytest.mark.slow
def test_compiles_whole_and_is_cached():
    table = band_table(0.05, "kl")
    assert band_table(0.05, "kl") is table
    old = _logps(64)
    compiled = torch.compile(lambda x: table(x).log_upper, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(old), table(old).log_upper, rtol=1e-5, atol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="above the tolerance 1e-09"):
        BandTable(0.05, "kl", tolerance=1e-9)
    with pytest.raises(ValueError, match="for a radius per token use band"):
        BandTable(torch.tensor([0.05]))
    with pytest.raises(ValueError, match="got -1"):
        BandTable(-1.0)
    with pytest.raises(ValueError, match=r"float32 or torch.float64, got torch.bfloat16"):
        BandTable(0.05, dtype=torch.bfloat16)
