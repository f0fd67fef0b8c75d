"""The rule protocol as a user meets it: three rules of one's own, where they work, and where they are refused."""

import math
import sys
from dataclasses import dataclass

import pytest
import torch

from bandpo import Band, BandTable, Clip, ClipRule, RatioBounds, policy_loss
from bandpo.core.frameworks import clip_range
from bandpo.core.needs import SUPPLIERS, check_needs
from bandpo.core.registry import make_rule
from bandpo.core.tokens import Tokens

# The interpreter computes with NumPy, which announces the inf and NaN that the kernels select away.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@dataclass(frozen=True)
class EntropyBand(Band):
    """A radius in proportion to the old policy's entropy."""

    needs = frozenset({"old_entropy"})

    def radii(self, tokens):
        low, high = super().radii(tokens)
        factor = 0.5 + tokens.old_entropy
        return low * factor, high * factor


@dataclass(frozen=True)
class PositionBand(Band):
    """A radius that shrinks along the completion, as CPPO's threshold does."""

    needs = frozenset({"positions"})

    def radii(self, tokens):
        low, high = super().radii(tokens)
        weight = 1 / (1 + 0.1 * tokens.positions)
        return low * weight, high * weight


class Mask(Band):
    """IPO: tokens outside lose their gradient whatever the sign of the advantage."""

    two_sided = True


def batch(rows=6, columns=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    old = -6 * torch.rand(rows, columns, generator=generator)
    new = (old + 0.8 * torch.randn(rows, columns, generator=generator)).clamp(max=-1e-4)
    advantages = torch.randn(rows, 1, generator=generator).expand(rows, columns)
    mask = torch.rand(rows, columns, generator=generator) > 0.2
    entropy = 2 * torch.rand(rows, columns, generator=generator)
    return new.requires_grad_(), old, advantages, mask, entropy


def by_radius(new, old, advantages, mask, radius):
    """(gradient, clipped share) under KL with a radius per token, from the definition in float64."""
    a, b = old.double().exp(), new.detach().double().exp()
    kl = a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()
    outward = torch.where(advantages > 0, b > a, b < a)
    clipped = (kl > radius) & outward & mask
    gradient = torch.where(mask & ~clipped, -advantages * (b / a), 0.0) / mask.sum()
    return gradient, (clipped.sum() / mask.sum()).item()


@pytest.mark.parametrize("backend", ["eager", "triton", pytest.param("compile", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", [EntropyBand(0.05), PositionBand(0.05)], ids=lambda rule: type(rule).__name__)
def test_a_radius_of_ones_own_reaches_the_loss(rule, backend):
    new, old, advantages, mask, entropy = batch()
    result = policy_loss(new, old, advantages, mask, rule=rule, old_entropy=entropy, backend=backend)
    factor = 0.5 + entropy if isinstance(rule, EntropyBand) else 1 / (1 + 0.1 * torch.arange(40))
    gradient, share = by_radius(new, old, advantages, mask, 0.05 * factor)
    torch.testing.assert_close(
        torch.autograd.grad(result.loss, new)[0].double(), gradient.double(), rtol=1e-5, atol=1e-9
    )
    assert result.metrics["clip_fraction"].item() == pytest.approx(share, rel=1e-6)
    assert 0.1 < share < 0.9


@pytest.mark.parametrize("backend", ["eager", "triton", pytest.param("compile", marks=pytest.mark.slow)])
def test_a_mask_ignores_the_sign(backend):
    new, old, advantages, mask, _ = batch()
    result = policy_loss(new, old, advantages, mask, rule=Mask(0.05), backend=backend)
    ratio = (new - old).exp().detach()
    bounds = Band(0.05).bounds(old)
    free = mask & (ratio >= bounds.lower) & (ratio <= bounds.upper)
    gradient = torch.where(free, -advantages * ratio, 0.0) / mask.sum()
    torch.testing.assert_close(torch.autograd.grad(result.loss, new)[0], gradient, rtol=1e-5, atol=1e-9)
    value = torch.where(mask, -advantages * ratio.clamp(bounds.lower, bounds.upper), 0.0).sum() / mask.sum()
    torch.testing.assert_close(result.loss.detach(), value)
    assert result.metrics["clip_fraction"] == result.metrics["out_of_band_fraction"]


@pytest.mark.parametrize("rule", [Mask(0.05), Band(0.05)], ids=lambda rule: type(rule).__name__)
def test_a_frameworks_clamp_gives_the_rules_gradient(rule):
    new, old, advantages, mask, _ = batch()
    low, high = clip_range(rule, Tokens(old, advantages, mask), new)
    ratio = (new - old).exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    theirs = torch.autograd.grad((loss * mask).sum() / mask.sum(), new)[0]
    ours = torch.autograd.grad(policy_loss(new, old, advantages, mask, rule=rule).loss, new)[0]
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-9)


def test_a_framework_without_the_current_log_probs_cannot_mask():
    with pytest.raises(ValueError, match="Mask is two-sided: it needs logps"):
        clip_range(Mask(), torch.tensor([-1.0]))
    with pytest.raises(ValueError, match=r"clip rule Mask needs advantages and logps: slime cannot give it; .*verl"):
        check_needs(Mask().all_needs, "slime", "Mask")
    for supplier in ("verl", "TRL's BandGRPOTrainer", "bandpo.policy_loss"):
        check_needs(Mask().all_needs, supplier, "Mask")


def test_a_need_that_is_not_met_is_named():
    old = torch.tensor([[-1.0, -2.0]])
    with pytest.raises(ValueError, match=r"EntropyBand needs old_entropy: this call.*bandpo\.policy_loss"):
        EntropyBand().bounds(old)
    with pytest.raises(ValueError, match="needs old_entropy"):
        policy_loss(old, old, old, torch.ones(1, 2), rule=EntropyBand())
    with pytest.raises(ValueError, match=r"needs old_entropy: verl cannot give it; .* TRL's BandGRPOTrainer"):
        check_needs(EntropyBand().all_needs, "verl", "EntropyBand")
    for supplier in SUPPLIERS:
        check_needs(PositionBand().all_needs, supplier, "PositionBand")
    # positions are counted where nobody gives them, and taken where somebody does
    counted = PositionBand().bounds(old)
    given = PositionBand().bounds(Tokens(old, positions=torch.tensor([[0, 1]])))
    assert torch.equal(counted.log_upper, given.log_upper)


def test_a_rule_that_looks_at_the_batch_is_asked_once_about_all_of_it():
    class Quantile(ClipRule):
        """The bound is a quantile of the batch: of a part of it, it would be another."""

        def limits(self, tokens):
            edge = torch.full_like(tokens.old_logps, -tokens.old_logps.median().item() / 10)
            return RatioBounds(-edge, edge)

    new, old, advantages, mask, _ = batch()
    edge = -old.median().item() / 10
    result = policy_loss(new, old, advantages, torch.ones_like(mask), rule=Quantile(), backend="eager")
    clipped = (new - old).abs() > edge
    clipped &= torch.where(advantages > 0, new > old, new < old)
    assert result.metrics["clip_fraction"] == clipped.float().mean()
    value = torch.minimum((new - old).exp() * advantages, (new - old).clamp(-edge, edge).exp() * advantages)
    torch.testing.assert_close(result.loss, -value.mean())


def test_a_tensor_radius_is_a_value():
    ours, same = Band(torch.tensor([0.1, 0.2])), Band(torch.tensor([0.1, 0.2]))
    assert ours == same
    assert hash(ours) == hash(same)
    assert ours != Band(torch.tensor([0.1, 0.3]))
    assert ours != Band(0.1)
    assert Band((0.1, 0.2)) != Band((0.2, 0.1))
    assert Band() != EntropyBand()


@pytest.mark.slow
def test_a_table_answers_for_a_band():
    old = -torch.linspace(0.01, 12, 500)
    exact, table = Band(0.05, "js").bounds(old), Band(0.05, "js", cap=3.0, table=True).bounds(old)
    error = BandTable(0.05, "js").max_error
    torch.testing.assert_close(table.log_lower, exact.log_lower, rtol=error, atol=error)
    torch.testing.assert_close(table.upper, exact.upper.clamp(max=3.0), rtol=20 * error, atol=error)
    new, old, advantages, mask, _ = batch()
    by_table, solved = (
        policy_loss(new, old, advantages, mask, rule=Band((0.02, 0.1), "js", table=t)) for t in (True, False)
    )
    assert by_table.metrics["clip_fraction"] == solved.metrics["clip_fraction"] > 0
    torch.testing.assert_close(by_table.loss, solved.loss, rtol=1e-4, atol=1e-6)
    for wrong in (lambda: PositionBand(table=True), lambda: Band(torch.tensor([0.1, 0.2]), table=True)):
        with pytest.raises(ValueError, match="table is True"):
            wrong()


OWN = """
from bandpo import Band, ClipRule, RatioBounds
class Good(Band):
    def radii(self, tokens): return 0.1, 0.2
class Unfinished(ClipRule): pass
class Flat(ClipRule):
    def limits(self, tokens): return RatioBounds(-tokens.old_logps[0], tokens.old_logps[0])
class Shifted(ClipRule):
    def limits(self, tokens): return RatioBounds(tokens.old_logps * 0 + 1, tokens.old_logps * 0 + 2)
class Broken(Band):
    def radii(self, tokens): return self.nothing
function = print
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rules", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.usefixtures("own_module")
def test_a_rule_by_module_and_class():
    rule = make_rule("my_rules:Good", radius=0.3)
    assert rule.bounds(torch.tensor([-2.0])).upper == Band(0.2).bounds(torch.tensor([-2.0])).upper


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_rules:Godo", ["'my_rules:Godo'", "did you mean 'Good'"]),
        ("nowhere:Good", ["'nowhere:Good'", "cannot import"]),
        ("my_rules:Unfinished", ["lacks", "limits"]),
        ("my_rules:function", ["my_rules:function", "subclass", "ClipRule"]),
        ("my_rules:Flat", ["my_rules:Flat", "shape"]),
        ("my_rules:Shifted", ["my_rules:Shifted", "ratio of 1"]),
        ("my_rules:Broken", ["my_rules:Broken", "AttributeError", "nothing"]),
    ],
)
def test_a_rule_that_is_none_is_one_line(name, words):
    with pytest.raises(ValueError) as caught:
        make_rule(name)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_clip_is_bit_for_bit_the_numbers():
    low, high = clip_range(Clip(0.2, 0.28), torch.tensor([-1.0, -math.inf]))
    assert torch.equal(1 - low, torch.tensor([1 - 0.2, 1 - 0.2]))
    assert torch.equal(1 + high, torch.tensor([1 + 0.28, 1 + 0.28]))
