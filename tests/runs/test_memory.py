"""How many logits a training step holds at once.

TRL scores completions through a fused head: it projects tiles of 4,096 tokens by 32,768 words onto the vocabulary,
folds each into log-sum-exp statistics, and computes it again for the gradient, so the logits of a micro-batch never
exist as one tensor. On CUDA a kernel works within the tile; elsewhere PyTorch operations need temporaries of the
tile's size, 8.25 tiles at the peak. These tests count every tensor as wide as the vocabulary, with TRL's tile
scaled down as the batch is.
"""

import copy

import pytest
import torch
from datasets import Dataset
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trl import GRPOConfig, GRPOTrainer
from trl.kernels import chunked_logprob

from bandpo.models import scratch_model
from bandpo.training import BandGRPOConfig, BandGRPOTrainer
from helpers import QUIET_ON_CPU

pytestmark = pytest.mark.slow

BATCH, LENGTH = 8, 24  # a micro-batch; no other dimension is that of the vocabulary, 99
TILE = BATCH * LENGTH // 9


class LogitsInMemory(TorchDispatchMode):
    """Follows the storages of tensors whose last dimension is the vocabulary, weights excepted.

    Attributes:
        peak: Largest number of float32 rows, one vocabulary wide, that were alive at the same time.
        largest: Rows of the largest single tensor.
    """

    def __init__(self, model):
        super().__init__()
        self.vocabulary = model.config.vocab_size
        self.weights = {p.untyped_storage()._cdata for p in model.parameters()}
        self.alive = {}
        self.peak = self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.dim() > 1 and x.shape[-1] == self.vocabulary:
                self._see(x)
        return result

    def _see(self, x):
        storage = x.untyped_storage()
        if storage._cdata in self.weights:
            return
        self.alive = {key: kept for key, kept in self.alive.items() if not kept[0].expired()}
        rows = x.numel() // self.vocabulary
        before = self.alive.get(storage._cdata, (None, 0.0))[1]
        self.alive[storage._cdata] = (StorageWeakRef(storage), max(before, rows * x.element_size() / 4))
        self.peak = max(self.peak, sum(kept[1] for kept in self.alive.values()))
        self.largest = max(self.largest, rows)


DATA = Dataset.from_list([{"prompt": f"{i}+{i}="} for i in range(8)])


def reward(completions, **_):
    return [float(len(set(text))) for text in completions]


def watch(tmp_path, config=BandGRPOConfig, trainer=BandGRPOTrainer, length=LENGTH, **changes):
    """One rollout and its two updates under the counter."""
    model, tokenizer = scratch_model(hidden_size=32, layers=1, heads=2, positions=128, seed=0)
    settings = {
        "output_dir": str(tmp_path),
        "max_steps": 2,
        "generation_batch_size": 2 * BATCH,
        "per_device_train_batch_size": BATCH,
        "num_generations": 4,
        "max_completion_length": length,
        "generation_kwargs": {"min_new_tokens": length},
        "save_strategy": "no",
        **QUIET_ON_CPU,
    }
    built = trainer(
        model=model,
        reward_funcs=reward,
        args=config(**{**settings, **changes}),
        train_dataset=DATA,
        processing_class=tokenizer,
    )
    with LogitsInMemory(built.model) as seen:
        built.train()
    assert built.state.global_step == 2
    return seen


@pytest.fixture
def small_tile(monkeypatch):
    monkeypatch.setattr(chunked_logprob, "TOKEN_CHUNK_SIZE", TILE)


def test_a_step_holds_at_most_one_copy_of_the_logits(tmp_path, small_tile):
    seen = watch(tmp_path)
    assert seen.largest == TILE  # never the (B, T, vocabulary) tensor
    assert TILE < seen.peak <= BATCH * LENGTH


def test_clip_rules_and_their_statistics_add_nothing(tmp_path, small_tile):
    stock = watch(tmp_path, GRPOConfig, GRPOTrainer)
    ours = watch(tmp_path, rule={"name": "band", "radius": [0.01, 0.1], "cap": 2.0}, num_iterations=2)
    assert (ours.peak, ours.largest) == (stock.peak, stock.largest)


def test_memory_depends_on_the_tile_and_not_on_the_batch(tmp_path, small_tile):
    assert watch(tmp_path).peak == watch(tmp_path, length=LENGTH // 2).peak == 8.25 * TILE


def test_a_recipe_on_the_cpu_has_a_tile_that_keeps_to_this(tmp_path, monkeypatch):
    from bandpo.runs.build import CPU_TILE, build_args, build_model, build_trainer
    from bandpo.runs.config import load_config
    from bandpo.runs.run_dir import RunDirectory

    monkeypatch.setattr(chunked_logprob, "TOKEN_CHUNK_SIZE", chunked_logprob.TOKEN_CHUNK_SIZE)  # put back afterwards
    config = load_config("scratch")
    args = build_args(config, {**config.train, "use_cpu": True}, RunDirectory(tmp_path))
    build_trainer(config, args, *build_model(config), config.task.problems()[0])
    assert chunked_logprob.TOKEN_CHUNK_SIZE == CPU_TILE
    assert 8.25 * CPU_TILE <= 8 * 1024


def test_the_counter_counts(tiny):
    model = copy.deepcopy(tiny[0])
    ids = torch.ones((2, 5), dtype=torch.long)
    with LogitsInMemory(model) as seen:
        logits = model(ids).logits
        del logits
        assert seen.largest == 10
        held = [model(ids).logits.detach().clone() for _ in range(3)]
    assert seen.peak >= 3 * 10
    assert len(held) == 3
