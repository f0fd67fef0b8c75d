"""Checkpoints: a run that goes on from one equals a run that was never interrupted, and a damaged one is refused."""

import os
import shutil

import pytest
import torch

from bandpo.runs.build import RecipeTrainer
from bandpo.training.checkpoints import find_checkpoint, list_checkpoints, seal, set_aside_newer
from bandpo.training.durable import CheckpointError, TrainingDivergedError
from helpers import TIMES, small_trainer

pytestmark = pytest.mark.slow


def trainer(path, tiny, **changes):
    return small_trainer(path, *tiny, RecipeTrainer, **changes)


def rows(done):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in done.state.log_history if "loss" in row]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    from bandpo.models import scratch_model

    tiny = scratch_model(hidden_size=32, layers=2, heads=2, positions=64, seed=0)
    results = {}
    for logging_steps in (1, 3):
        path = tmp_path_factory.mktemp("undisturbed")
        done = trainer(path, tiny, logging_steps=logging_steps, dynamic_sampling=1)
        done.train()
        results[logging_steps] = path, done
    return tiny, results


# 8 updates a rollout, 16 an epoch: within a rollout, between two, between two epochs, within the second epoch, at
# the end.
@pytest.mark.parametrize(("step", "logging_steps"), [(3, 1), (8, 1), (16, 1), (18, 1), (20, 1), (7, 3)])
def test_going_on_gives_the_run_that_was_not_interrupted(tmp_path, undisturbed, step, logging_steps):
    tiny, results = undisturbed
    path, whole = results[logging_steps]
    resumed = trainer(tmp_path, tiny, logging_steps=logging_steps, dynamic_sampling=1)
    resumed.train(resume_from_checkpoint=str(path / f"checkpoint-{step}"))
    assert len(rows(whole)) == 20 // logging_steps
    assert rows(resumed) == rows(whole)
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_each_checkpoint_is_sealed(undisturbed):
    path, _ = undisturbed[1][1]
    assert len(list_checkpoints(path)) == 20
    found = find_checkpoint(path)
    assert found.path == path / "checkpoint-20"
    assert found.refused == []


def checkpoints(folder, *steps):
    for step in steps:
        made = folder / f"checkpoint-{step}"
        made.mkdir()
        (made / "weights").write_bytes(bytes(1000))
        (made / "optimizer.pt").write_bytes(os.urandom(1000))
        seal(made)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda c: (c / "seal.json").unlink(), "was not completely written"),
        (lambda c: (c / "weights").unlink(), "is missing weights"),
        (lambda c: (c / "weights").write_bytes(bytes(999)), "weights of checkpoint-20 is damaged"),
        (lambda c: (c / "weights").write_bytes(bytes(999) + b"x"), "weights of checkpoint-20 is damaged"),
        (lambda c: (c / "seal.json").write_text("{"), "cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_never_chosen(tmp_path, harm, words):
    checkpoints(tmp_path, 3, 9, 20)
    harm(tmp_path / "checkpoint-20")
    found = find_checkpoint(tmp_path)
    assert found.path == tmp_path / "checkpoint-9"
    assert len(found.refused) == 1
    assert words in found.refused[0]
    set_aside_newer(tmp_path, found.path)
    assert [c.name for c in list_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-9"]
    # What was complete once is kept for the user to look at; what never was is not.
    assert (tmp_path / "damaged-checkpoint-20").exists() == ("completely" not in words)


def test_no_checkpoint_is_not_an_error(tmp_path):
    assert find_checkpoint(tmp_path / "nowhere").path is None


def test_an_infinite_gradient_stops_before_the_update(tmp_path, tiny):
    failing = trainer(tmp_path, tiny, max_steps=6)
    step = failing.training_step

    def poisoned(model, inputs, items):
        loss = step(model, inputs, items)
        if failing.state.global_step == 3:
            next(p for p in model.parameters() if p.grad is not None).grad[0] = float("inf")
        return loss

    failing.training_step = poisoned
    with pytest.raises(TrainingDivergedError, match=r"update 4.*checkpoint-3"):
        failing.train()
    assert all(p.isfinite().all() for p in failing.model.parameters())
    assert find_checkpoint(tmp_path).path == tmp_path / "checkpoint-3"


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_good_one(tmp_path, tiny, monkeypatch):
    full = trainer(tmp_path, tiny, max_steps=4)
    save = torch.save

    def no_space(data, file, *args, **kwargs):
        if "checkpoint-3" in str(file) and str(file).endswith("optimizer.pt"):
            save(data, file, *args, **kwargs)
            raise OSError(28, "No space left on device")
        return save(data, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", no_space)
    with pytest.raises(CheckpointError, match=r"update 3 .*MB of disk.*No space left.*checkpoint-2"):
        full.train()
    assert not (tmp_path / "checkpoint-3").exists()
    assert find_checkpoint(tmp_path).path == tmp_path / "checkpoint-2"


def test_a_lost_rollout_file_is_made_again(tmp_path, undisturbed):
    """Another number of processes left the checkpoint: the run goes on from a new rollout."""
    tiny, results = undisturbed
    shutil.copytree(results[1][0] / "checkpoint-3", tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-3" / "rollout_0_of_1.pt").unlink()
    resumed = trainer(tmp_path / "out", tiny, max_steps=5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 5
