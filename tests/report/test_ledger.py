"""The entropy ledger of recorded batches: against autograd and finite differences of the entropy."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from bandpo import Clip, NoClip, policy_loss
from bandpo.report import ledger, why
from bandpo.report.html import Page, Section, visible_token
from bandpo.report.ledger_tables import ledger_blocks
from bandpo.training.batches import TokenBatch

B, T, V = 6, 10, 7


@dataclass(frozen=True)
class Mask(Clip):
    two_sided = True


RULES = {**why.RIVALS, "mask": Mask(0.1, 0.1), "none": NoClip()}


def entropy_of(z):
    log_pi = z.log_softmax(-1)
    return -(log_pi.exp() * log_pi).sum(-1)


def make_batch(logits, tokens, old_logps, advantages, mask=None, texts=None):
    log_pi = logits.detach().log_softmax(-1)
    entropy = entropy_of(logits.detach())
    slope = (log_pi.exp().square() * (log_pi + entropy.unsqueeze(-1))).sum(-1)
    return TokenBatch(
        step=4,
        texts=np.array([f"t{i}" for i in range(logits.shape[-1])] if texts is None else texts),
        tokens=tokens.numpy().astype(np.int32),
        logps=log_pi.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).float().numpy(),
        old_logps=old_logps.float().numpy(),
        entropy=entropy.float().numpy(),
        advantages=advantages.expand(tokens.shape).float().numpy(),
        mask=np.ones(tokens.shape, bool) if mask is None else mask.numpy(),
        mean_slope=slope.float().numpy(),
    )


@pytest.fixture
def model():
    """Logits that a rollout's policy has moved to, sampled tokens, old log-probs, advantages of both signs and 0."""
    dice = torch.Generator().manual_seed(0)
    old = 1.5 * torch.randn(B, T, V, dtype=torch.float64, generator=dice)
    logits = old + 0.3 * torch.randn(B, T, V, dtype=torch.float64, generator=dice)
    tokens = torch.multinomial(old.softmax(-1).flatten(0, 1), 1, generator=dice).view(B, T)
    old_logps = old.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    advantages = torch.tensor([[1.0], [-1.0], [0.0], [2.0], [-0.5], [1.0]], dtype=torch.float64)
    mask = torch.arange(T) < torch.tensor([[10], [7], [10], [3], [10], [9]])
    return logits, tokens, old_logps, advantages, mask


@pytest.mark.parametrize("name", RULES)
def test_what_is_let_in_is_the_derivative_of_the_entropy_along_the_gradient(model, name):
    """autograd: d/dt of the total entropy at logits + t * gradient of the surrogate under the rule."""
    logits, tokens, old_logps, advantages, mask = model
    z = logits.clone().requires_grad_()
    logps = z.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    loss = policy_loss(
        logps, old_logps, advantages.expand(B, T), mask, rule=RULES[name], aggregation="seq-mean-token-sum",
        backend="eager",
    ).loss  # fmt: skip
    (gradient,) = torch.autograd.grad(-B * loss, z)
    (of_entropy,) = torch.autograd.grad(entropy_of(z).sum(), z)
    expected = float((of_entropy * gradient).sum())
    found = ledger.whole(RULES[name], [make_batch(*model)])
    assert found.net[0] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    everything = ledger.whole(NoClip(), [make_batch(*model)])
    assert found.net[0] + found.kept_out[0] == pytest.approx(everything.net[0])
    assert found.tokens[0] == mask.sum()
    if name == "none":
        assert (found.entries[0, 2:] == 0).all()
    else:
        assert found.entries[0, 2:].any(), "the test should meet clipped tokens"


def test_each_token_is_a_finite_difference(model):
    """Entropy of its own position after a step of plain ascent on A r alone."""
    logits, tokens, old_logps, advantages, mask = model
    changes, h = ledger.entropy_changes(make_batch(*model)), 1e-5
    for i, t in [(0, 0), (1, 3), (3, 1), (4, 9)]:
        ends = []
        for sign in (1, -1):
            z = logits[i, t].clone().requires_grad_()
            (advantages[i, 0] * (z.log_softmax(-1)[tokens[i, t]] - old_logps[i, t]).exp()).backward()
            ends.append(float(entropy_of(logits[i, t] + sign * h * z.grad)))
        assert changes[i, t] == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-4, abs=1e-6)
    assert (changes[2] == 0).all(), "no advantage"
    assert (changes[~mask.numpy()] == 0).all()


def test_rewarding_a_rare_token_raises_entropy_by_the_mean_slope():
    pi = torch.tensor([0.6, 0.3, 0.1 - 1e-7, 1e-7], dtype=torch.float64)
    logits, tokens = pi.log().view(1, 1, 4).expand(1, 2, 4), torch.tensor([[3, 3]])
    old = logits.log_softmax(-1)[..., 3]
    batch = make_batch(logits, tokens, old, torch.tensor([[1.0, -2.0]]))
    changes = ledger.entropy_changes(batch)[0]
    slope, eta = float(batch.mean_slope[0, 0]), 1e-4
    assert slope > 0.05
    assert changes.tolist() == pytest.approx([slope, -2 * slope], rel=1e-4)
    moved = logits[0, 0] + eta * (torch.eye(4, dtype=torch.float64)[3] - pi)
    assert float(entropy_of(moved) - entropy_of(logits[0, 0])) == pytest.approx(eta * slope, rel=1e-3)


def test_sides_are_told_apart():
    """Two tokens above a ratio of 1 and two below, of either sign: four columns of a two-sided rule, by hand."""
    pi = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    logits, tokens = pi.log().view(1, 1, 3).expand(1, 4, 3), torch.tensor([[1, 1, 1, 1]])
    ratio = torch.tensor([[1.5, 0.5, 1.5, 0.5]], dtype=torch.float64)
    batch = make_batch(logits, tokens, pi[1].log() - ratio.log(), torch.tensor([[1.0, -1.0, -1.0, 1.0]]))
    a, b, c, d = ledger.entropy_changes(batch)[0]
    assert min(abs(x) for x in (a, b, c, d)) > 0.01
    assert ledger.whole(Clip(), [batch]).entries[0].tolist() == pytest.approx([d, c, a, b])
    assert ledger.whole(Mask(), [batch]).entries[0].tolist() == pytest.approx([0, 0, a + c, b + d])
    assert ledger.whole(NoClip(), [batch]).entries[0].tolist() == pytest.approx([a + d, b + c, 0, 0])


def test_masked_tokens_are_ignored(model):
    batch = make_batch(*model)
    spoiled = {}
    for name in ("logps", "old_logps", "entropy", "advantages", "mean_slope"):
        spoiled[name] = np.where(batch.mask, getattr(batch, name), np.float32(-1e3))
    spoiled["mean_slope"] = np.where(batch.mask, batch.mean_slope, np.float32(np.nan))
    again = replace(batch, **spoiled)
    assert ledger.has_slopes(again)
    for group in (ledger.whole, ledger.by_probability, ledger.by_position, ledger.by_token):
        one, other = group(Clip(), [batch]), group(Clip(), [again])
        assert (one.entries == other.entries).all()
        assert (one.tokens == other.tokens).all()


def test_groups_agree_with_a_loop(model):
    batch, short = make_batch(*model), make_batch(*(x[:2, :3] if x.shape[1] > 1 else x[:2] for x in model))
    short = replace(short, texts=np.array([f"t{i + 3}" for i in range(V)]))
    both = [batch, short]
    bins, texts = (f(Clip(), both) for f in (ledger.by_probability, ledger.by_token))
    places = ledger.by_position(Clip(), both, stretches=3)
    assert places.labels == ("1 to 4", "5 to 8", "9 to 10")
    kinds = (bins, places, texts)
    expected = [np.zeros((len(found.labels), 4)) for found in kinds]
    counts = [np.zeros(len(found.labels), int) for found in kinds]
    for b in both:
        clipped, changes = why.outside(Clip(), b).clipped, ledger.entropy_changes(b)
        for i, t in zip(*np.nonzero(b.mask), strict=True):
            column = 0 if b.advantages[i, t] > 0 else 1
            if clipped[i, t]:
                column = 2 if b.logps[i, t] > b.old_logps[i, t] else 3
            p = float(np.exp(b.old_logps[i, t]))
            bin_ = max(n for n, edge in enumerate(why.EDGES[:-1]) if p >= edge)
            own = bin_, t // 4, texts.labels.index(str(b.texts[b.tokens[i, t]]))
            for sums, count, place in zip(expected, counts, own, strict=True):
                sums[place, column] += changes[i, t]
                count[place] += 1
    for found, sums, count in zip(kinds, expected, counts, strict=True):
        np.testing.assert_allclose(found.entries, sums, atol=1e-12)
        assert found.tokens.tolist() == count.tolist()
    largest = texts.largest(4)
    amounts = abs(texts.net) + abs(texts.kept_out)
    assert [amounts[texts.labels.index(label)] for label in largest.labels] == sorted(amounts, reverse=True)[:4]


def test_files_of_older_runs_load_and_have_no_ledger(model, tmp_path):
    batch = make_batch(*model)
    path = batch.save(tmp_path)
    assert (TokenBatch.load(path).mean_slope == batch.mean_slope).all()
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != "mean_slope"}
    np.savez_compressed(path, **arrays)
    old = TokenBatch.load(path)
    assert (old.logps == batch.logps).all()
    assert old.mean_slope.shape == (B, T)
    assert not ledger.has_slopes(old)
    (said,) = ledger_blocks({"run": [old]}, RULES, {"run": Clip()})
    assert said.text == "1 recorded batches have no ledger: they were recorded without the logits."


def test_the_page_shows_where_entropy_moved(model):
    texts = ["<b>x</b>", "a b", "\n", "", "|", "\u00a0", "\t"]
    batch = make_batch(*model, texts=texts)
    blocks = ledger_blocks({"mine": [batch]}, {"clip": Clip(), "none": NoClip()}, {"mine": Clip()})
    rules, bins, tokens, places = blocks
    total = ledger.whole(Clip(), [batch])
    assert rules.rows[0][1:] == pytest.approx(1000 / total.tokens[0] * np.append(total.entries[0], total.net[0]))
    assert rules.rows[1][3:5] == [0, 0]
    for table in (bins, places):
        for row, whole in zip(table.rows, rules.rows[0][1:], strict=True):
            assert sum(cell or 0 for cell in row[1:]) == pytest.approx(whole)
    assert {row[0] for row in tokens.rows} == {"<b>x</b>", "a␣b", "⏎", "(empty)", "|", "\\u00a0", "⇥"}
    assert sum(row[1] for row in tokens.rows) == batch.mask.sum()
    page = Page("t", "", [Section("ledger", "Ledger", blocks)])
    assert "&lt;b&gt;x&lt;/b&gt;" in page.html()
    assert "<b>x" not in page.html()
    assert "a␣b" in page.markdown()


def test_several_runs_share_the_tables(model):
    batch = make_batch(*model)
    rules, bins, tokens, places = ledger_blocks(
        {"a": [batch], "b": [batch], "trl": [batch]}, {"clip": Clip()}, {"a": Clip(), "b": NoClip(), "trl": None}
    )
    assert [row[0] for row in bins.rows] == [
        f"{run}: {name}" for run in "ab" for name in ("net let in", "kept out high", "kept out low")
    ]
    for table in (bins, places):
        assert any(table.rows[1][1:])
        assert not any(table.rows[4][1:]), "b keeps nothing out"
    assert len(tokens.rows) == 8
    assert rules.rows[0][1:] == pytest.approx(
        ledger_blocks({"a": [batch]}, {"clip": Clip()}, {"a": None})[0].rows[0][1:]
    )


def test_white_space_of_a_token_is_visible():
    assert visible_token(" a\r\n\u2003\u202e") == "␣a\\u000d⏎\\u2003\\u202e"
