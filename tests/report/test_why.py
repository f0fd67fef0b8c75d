"""What rules would have done to logged tokens, against a loop over single tokens."""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pytest

from bandpo import DCPO, AdaptiveBand, Band, Clip, NoClip
from bandpo.report import why
from bandpo.training.batches import TokenBatch, read_batches, steps_to_record

RULES = {"clip": Clip(0.1, 0.2), "band": Band(0.02), "tv": Band((0.05, 0.02), "tv"), "dcpo": DCPO(), "none": NoClip()}


@pytest.fixture
def batch():
    dice = np.random.default_rng(0)
    shape = (6, 40)
    old = np.log(dice.uniform(0.0005, 1, shape)).astype(np.float32)
    new = np.minimum(old + dice.normal(0, 0.4, shape), 0).astype(np.float32)
    return TokenBatch(
        step=3,
        texts=np.array([f"t{i}" for i in range(9)]),
        tokens=dice.integers(0, 9, shape).astype(np.int32),
        logps=new,
        old_logps=old,
        entropy=dice.uniform(0, 2, shape).astype(np.float32),
        advantages=np.broadcast_to(np.array([[1], [-1], [0], [2], [-0.5], [1]], np.float32), shape),
        mask=np.arange(40) < np.array([[40], [25], [40], [3], [40], [17]]),
    )


def tokens_of(batch):
    for i, t in zip(*np.nonzero(batch.mask), strict=True):
        yield i, t, math.exp(batch.old_logps[i, t]), batch.logps[i, t], batch.old_logps[i, t], batch.advantages[i, t]


def verdict(rule, new, old, advantage):
    """(outside above, outside below, clipped) of one token, from the rule's bounds."""
    import torch

    bounds = rule.bounds(torch.tensor([old], dtype=torch.float32))
    ratio = math.exp(np.float32(new) - np.float32(old))
    above, below = ratio > float(bounds.upper), ratio < float(bounds.lower)
    return above, below, (above and advantage > 0) or (below and advantage < 0)


@pytest.mark.parametrize("name", RULES)
def test_outside_and_counts_agree_with_a_loop(batch, name):
    rule = RULES[name]
    found = why.outside(rule, batch)
    counts = why.count_clipped({name: rule}, [batch, batch])
    expected = np.zeros((len(why.EDGES) - 1, 2, 2), int)
    tokens = np.zeros((len(why.EDGES) - 1, 2), int)
    for i, t, p, new, old, advantage in tokens_of(batch):
        above, below, clipped = verdict(rule, new, old, advantage)
        assert (found.above[i, t], found.below[i, t], found.clipped[i, t]) == (above, below, clipped)
        place = max(n for n, edge in enumerate(why.EDGES[:-1]) if p >= edge)
        if advantage:
            tokens[place, int(advantage > 0)] += 2
            expected[place, 0, int(advantage > 0)] += 2 * below
            expected[place, 1, int(advantage > 0)] += 2 * above
    assert not found.clipped[~batch.mask].any()
    assert (counts.outside[0] == expected).all()
    assert (counts.tokens == tokens).all()
    assert counts.clipped.sum() == 2 * found.clipped.sum()
    assert (found.clipped.sum() > 0) == (name != "none")


def test_a_two_sided_rule_clips_whatever_the_sign(batch):
    @dataclass(frozen=True)
    class Mask(Clip):
        two_sided = True

    rule = Mask(0.1, 0.2)
    found, counts = why.outside(rule, batch), why.count_clipped({"mask": rule, "clip": Clip(0.1, 0.2)}, [batch])
    expected = np.zeros_like(found.clipped)
    for i, t, _, new, old, advantage in tokens_of(batch):
        above, below, _ = verdict(rule, new, old, advantage)
        expected[i, t] = (above or below) and advantage != 0
    assert (found.clipped == expected).all()
    assert counts.clipped[0].sum() == expected.sum() == counts.outside[0].sum() > counts.clipped[1].sum() > 0


def test_a_rule_that_needs_more_than_was_recorded_is_left_out_and_said():
    from bandpo.report.sections import shared_sections

    @dataclass(frozen=True)
    class ByEntropy(Band):
        needs = frozenset({"old_entropy"})

        def radii(self, tokens):
            radius = 0.1 * tokens.old_entropy
            return radius, radius

    (rules,) = shared_sections([], {"mine": ByEntropy(), "clip": Clip(0.1, 0.3)}, ["mine", "clip"], "")
    bounds, regions, said = rules.blocks
    assert regions.picture.panels[0].title == "clip"
    assert "mine" not in bounds.legend
    assert said.text == "Not shown, because they need more than the old probability: mine (needs old_entropy)."


@pytest.mark.parametrize("positive", [True, False])
def test_gains_agree_with_a_loop(batch, positive):
    gains = why.probability_gain([batch], positive=positive, edges=(0, 0.1, 0.5, 1))
    for place, (low, high) in enumerate(((0, 0.1), (0.1, 0.5), (0.5, 1.01))):
        kept = [
            (math.exp(new) - math.exp(old), float(new) - float(old))
            for _, _, p, new, old, advantage in tokens_of(batch)
            if low <= p < high and (advantage > 0 if positive else advantage < 0)
        ]
        assert gains.tokens[place] == len(kept) > 0
        assert gains.mean[place] == pytest.approx(np.mean([k[0] for k in kept]), rel=1e-5)
        assert gains.log_ratio[place] == pytest.approx(np.mean([k[1] for k in kept]), rel=1e-5)


def test_entropy_by_position_agrees_with_a_loop(batch):
    found = why.entropy_by_position(batch, stretches=8)
    assert found.start.tolist() == list(range(0, 40, 5))
    for start, entropy, tokens in zip(found.start, found.entropy, found.tokens, strict=True):
        kept = [batch.entropy[i, t] for i, t, *_ in tokens_of(batch) if start <= t < start + 5]
        assert tokens == len(kept)
        assert entropy == pytest.approx(float(np.mean(kept)), rel=1e-5)


def test_side_by_side_lists_a_completion(batch):
    rows = why.side_by_side(RULES, batch, 3)
    assert [row.text for row in rows] == [f"t{k}" for k in batch.tokens[3, :3]]
    for row, t in zip(rows, range(3), strict=True):
        assert row.old_p == pytest.approx(math.exp(batch.old_logps[3, t]), rel=1e-6)
        expected = [verdict(r, batch.logps[3, t], batch.old_logps[3, t], 2.0)[2] for r in RULES.values()]
        assert list(row.clipped) == expected


def test_the_most_disputed_completions_come_first(batch):
    disputed = []
    for row in range(6):
        marks = [v.clipped for v in why.side_by_side(RULES, batch, row)]
        disputed.append(sum(any(m) and not all(m) for m in marks))
    order = why.telling_rows(RULES, batch, 6)
    assert [disputed[row] for row in order] == sorted(disputed, reverse=True)


def test_batches_survive_the_disk_and_damage_is_named(batch, tmp_path):
    path = batch.save(tmp_path)
    (again,) = read_batches(tmp_path)
    for name in ("tokens", "logps", "old_logps", "advantages", "mask", "texts"):
        assert (getattr(again, name) == getattr(batch, name)).all()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a record of tokens"):
        read_batches(tmp_path)


def test_edges_must_rise(batch):
    with pytest.raises(ValueError, match="increasing probabilities"):
        why.count_clipped(RULES, [batch], edges=(0, 0.5, 0.2, 1))


def test_rules_have_names():
    assert why.name_rule(Band((0.02, 0.1), "tv", cap=10)) == "Band TV 0.02/0.1, cap 10"
    assert why.name_rule(AdaptiveBand()) == "Adaptive band KL 0.05"
    assert why.name_rule(Clip(0.2, 0.28)) == "Clip 0.2/0.28"
    assert why.name_rule(NoClip()) == "No clip"
    assert why.name_rule(Band(table=True)) == "Band KL 0.05, table"
    assert why.name_rule(DCPO(cap=None)) == "DCPO 0.16/0.2, cap None"
    assert why.name_rule(AdaptiveBand(0.1, "chi2", largest=5)) == "Adaptive band chi2 0.1, largest 5"


def test_a_rule_of_ones_own_is_named_by_its_fields():
    from bandpo import FDivergence

    @dataclass(frozen=True)
    class SharpTurn(Band):
        steepness: float = 2.0
        where: str = "end"

    named = SharpTurn(0.1, FDivergence(name="mine", f=lambda u: (u - 1) ** 2), steepness=3)
    assert why.name_rule(named) == "Sharp turn mine 0.1, steepness 3"

    class Plain:
        pass

    assert why.name_rule(Plain()) == "Plain"


@pytest.mark.parametrize(
    ("updates", "per_rollout", "batches", "steps"),
    [
        (48, 16, 3, {16, 32, 48}),
        (240, 4, 4, {60, 120, 180, 240}),
        (10, 4, 4, {4, 8}),  # two whole rollouts only
        (3, 16, 2, {3}),  # ends within its first rollout
        (8, 0.5, 2, {4, 8}),  # two rollouts an update
    ],
)
def test_last_updates_of_rollouts_are_recorded(updates, per_rollout, batches, steps):
    assert steps_to_record(updates, per_rollout, batches) == steps


def test_as_many_completions_are_kept_as_fit(batch):
    import types

    import torch

    trainer = types.SimpleNamespace(
        last_forward=(torch.from_numpy(batch.logps), torch.from_numpy(batch.entropy), None),
        last_inputs={
            "old_per_token_logps": torch.from_numpy(batch.old_logps),
            "completion_ids": torch.from_numpy(batch.tokens + 10),
            "completion_mask": torch.from_numpy(batch.mask.astype(np.int64)),
            "tool_mask": torch.ones(6, 40).index_fill(1, torch.arange(30, 40), 0),
            "advantages": torch.from_numpy(batch.advantages[:, 0].copy()),
        },
        processing_class=types.SimpleNamespace(decode=lambda ids: f"<{ids[0]}>"),
    )
    kept = TokenBatch.of_trainer(trainer, 7, limit=2 * 30 * 24 + 1)
    assert kept.tokens.shape == (2, 30)  # two completions of 30 tokens of 24 bytes; the rest is a tool's
    assert (kept.mask == batch.mask[:2, :30]).all()
    assert (kept.logps[kept.mask] == batch.logps[:2, :30][kept.mask]).all()
    assert (kept.advantages[kept.mask] == batch.advantages[:2, :30][kept.mask]).all()
    texts = kept.texts[kept.tokens[kept.mask]]
    assert texts.tolist() == [f"<{i + 10}>" for i in batch.tokens[:2, :30][kept.mask]]
    assert kept.step == 7
    assert np.isnan(kept.mean_slope[kept.mask]).all(), "nobody saw the logits"
    seen = torch.rand(6, 40)
    trainer.last_forward = (*trainer.last_forward[:2], seen)
    kept = TokenBatch.of_trainer(trainer, 7, limit=10**6)
    assert (kept.mean_slope == np.where(kept.mask, seen[:, :30].numpy(), 0)).all()
    assert kept.groups.tolist() == [-1] * 6, "nobody saw the prompts"
    trainer.last_inputs["old_per_token_logps"] = None
    assert TokenBatch.of_trainer(trainer, 7, limit=10_000) is None


def test_completions_of_one_prompt_are_recorded_as_such(batch, tmp_path):
    import types

    import torch

    mask = torch.tensor([[0, 1, 1], [1, 1, 1], [0, 1, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]])
    trainer = types.SimpleNamespace(
        last_forward=(torch.from_numpy(batch.logps), torch.from_numpy(batch.entropy), None),
        last_inputs={
            "old_per_token_logps": torch.from_numpy(batch.old_logps),
            "completion_ids": torch.from_numpy(batch.tokens),
            "completion_mask": torch.from_numpy(batch.mask.astype(np.int64)),
            "prompt_ids": torch.tensor([[0, 5, 6], [4, 5, 6], [9, 5, 6], [0, 7, 8], [4, 5, 6], [0, 0, 6]]),
            "prompt_mask": mask,
            "advantages": torch.from_numpy(batch.advantages[:, 0].copy()),
        },
        processing_class=types.SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)) * (500 if 4 in ids else 1)),
    )
    kept = TokenBatch.load(TokenBatch.of_trainer(trainer, 7, limit=10**6).save(tmp_path))
    assert kept.groups.tolist() == [0, 1, 0, 2, 1, 3], "padding is not of the prompt"
    assert kept.prompts.tolist() == ["5 6", ("4 5 6" * 500)[-1000:], "7 8", "6"]
    for groups in (kept.groups[:5], kept.groups[None]):
        with pytest.raises(ValueError, match="groups has shape"):
            dataclasses.replace(kept, groups=groups)
