"""Dynamic sampling: groups of equal reward are replaced, up to a limit, and the rest of the rollout stays whole."""

import copy
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from bandpo import Band, group_disagreement
from bandpo.training import BandGRPOConfig, BandGRPOTrainer
from bandpo.training.dynamic_sampling import DynamicSampling, check_dynamic_sampling
from helpers import QUIET_ON_CPU

pytestmark = pytest.mark.slow


def reward(prompts, completions, **_):
    """Prompts with an even number never tell completions apart."""
    even = [int(p.partition("+")[0]) % 2 == 0 for p in prompts]
    return [1.0 if e else float(len(set(c))) for e, c in zip(even, completions, strict=True)]


class Kept(DynamicSampling, BandGRPOTrainer):
    def _generate_and_score_completions(self, inputs):
        self.batch = super()._generate_and_score_completions(inputs)
        return self.batch


def trainer(path, tiny, reward=reward, rule=None, **changes):
    settings = {
        "output_dir": str(path),
        "per_device_train_batch_size": 8,
        "generation_batch_size": 32,
        "num_generations": 4,
        "num_iterations": 2,
        "max_completion_length": 6,
        "max_steps": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        **QUIET_ON_CPU,
        **changes,
    }
    return Kept(
        model=copy.deepcopy(tiny[0]),
        reward_funcs=reward,
        args=BandGRPOConfig(**settings),
        train_dataset=Dataset.from_list([{"prompt": f"{i}+{10 ** (i % 5)}="} for i in range(16)]),
        processing_class=tiny[1],
        rule=rule,
    )


def first_log(done):
    return done.state.log_history[0]


def test_without_it_uniform_groups_stay(tmp_path, tiny):
    plain = trainer(tmp_path, tiny)
    plain.train()
    assert first_log(plain)["frac_reward_zero_std"] > 0
    assert not any(key.startswith("dynamic_sampling") for key in first_log(plain))


def test_uniform_groups_are_replaced(tmp_path, tiny):
    plain = trainer(tmp_path, tiny)
    plain.train()
    dynamic = trainer(tmp_path, tiny, dynamic_sampling=10)  # made now, since a trainer sets the seed
    dynamic.train()
    log, batch = first_log(dynamic), dynamic.batch
    assert log["dynamic_sampling/uniform_before"] == first_log(plain)["frac_reward_zero_std"] > 0
    assert log["dynamic_sampling/uniform_after"] == 0
    assert log["dynamic_sampling/rounds"] >= 1
    assert log["dynamic_sampling/extra_completions"] % 4 == 0
    groups = batch["advantages"].view(-1, 4)
    assert groups.shape == (8, 4)
    assert (groups.abs().sum(1) > 0).all()
    assert groups.sum(1).abs().max() < 1e-5
    # TRL's own figures describe the first draw.
    for key in ("reward", "frac_reward_zero_std", "completions/mean_length", "rewards/reward/mean"):
        assert log[key] == first_log(plain)[key]
    assert log["num_tokens"] > first_log(plain)["num_tokens"]
    assert list(dynamic._logs["prompt"]) == list(plain._logs["prompt"])


def test_a_replaced_row_is_one_rollout(tmp_path, tiny):
    """Each row's old log-probs belong to its own prompt and completion, whatever the padding came to."""
    dynamic = trainer(tmp_path, tiny, dynamic_sampling=10, learning_rate=0.0)
    dynamic.train()
    batch = dynamic.batch
    model = dynamic.model.eval()
    pad = dynamic._tokenizer.pad_token_id
    assert (batch["prompt_mask"].diff(dim=1) >= 0).all()  # generation wants padding on the left
    assert (batch["completion_mask"].diff(dim=1) <= 0).all()
    for row in range(32):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
        assert (batch["prompt_ids"][row][~batch["prompt_mask"][row].bool()] == pad).all()
        ids = torch.cat([prompt, completion]).unsqueeze(0)
        with torch.no_grad():
            logps = model(ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        own = logps.gather(1, completion.unsqueeze(1)).squeeze(1)
        old = batch["old_per_token_logps"][row][batch["completion_mask"][row].bool()]
        torch.testing.assert_close(old, own, rtol=1e-4, atol=1e-4)
        assert int(dynamic._tokenizer.decode(prompt).partition("+")[0]) % 2 == 1
    assert batch["num_items_in_batch"] == batch["completion_mask"].sum()


@dataclass(frozen=True, eq=False)
class Hungry(Band):
    """Needs what the trainer adds to a rollout."""

    needs = frozenset({"old_entropy", "groups", "disagreement"})

    def radii(self, tokens):
        assert tokens.old_entropy.shape == tokens.disagreement.shape == tokens.old_logps.shape
        low, high = super().radii(tokens)
        factor = 1 + tokens.old_entropy + 0 * tokens.groups
        return factor * low, factor * high


def test_what_a_rule_needs_is_replaced_too(tmp_path, tiny):
    dynamic = trainer(tmp_path, tiny, dynamic_sampling=10, learning_rate=0.0, rule=Hungry())
    dynamic.train()
    assert first_log(dynamic)["dynamic_sampling/rounds"] >= 1
    batch = dynamic.batch
    assert batch["groups"].flatten().tolist() == [row // 4 for row in range(32)]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    length = batch["completion_ids"].size(1)
    with torch.no_grad():
        _, entropy, _ = dynamic._get_per_token_logps_and_entropies(
            dynamic.model.eval(), ids, mask, length, compute_entropy=True
        )
    counts = batch["completion_mask"].bool()
    torch.testing.assert_close(batch["old_entropy"][counts], entropy[counts], rtol=1e-4, atol=1e-4)
    # But for positions that one completion alone reaches, which have the mean of the rollout they were sampled in.
    counts &= counts.view(8, 4, -1).sum(1).repeat_interleave(4, 0) > 1
    expected = group_disagreement(batch["completion_ids"], batch["groups"], batch["completion_mask"])
    assert 0 < expected[counts].mean() < 1
    torch.testing.assert_close(batch["disagreement"][counts], expected[counts])


def test_the_limit_holds(tmp_path, tiny):
    stuck = trainer(tmp_path, tiny, reward=lambda completions, **_: [0.0] * len(completions), dynamic_sampling=2)
    stuck.train()
    log = first_log(stuck)
    assert log["dynamic_sampling/rounds"] == 2
    assert log["dynamic_sampling/uniform_after"] == 1
    assert log["dynamic_sampling/extra_completions"] == 2 * 32


def test_settings_that_cannot_work(tmp_path, tiny):
    with pytest.raises(ValueError, match="dynamic_sampling is -1"):
        trainer(tmp_path, tiny, dynamic_sampling=-1)
    one_of_two = SimpleNamespace(
        dynamic_sampling=1, per_device_train_batch_size=4, steps_per_generation=1, num_generations=8
    )
    with pytest.raises(ValueError, match="4 completions per rollout are not a multiple of num_generations=8"):
        check_dynamic_sampling(one_of_two)
