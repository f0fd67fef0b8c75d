"""A run that is killed, again and again, and resumed: it ends as if nothing had happened.

BANDPO_KILLS sets how often it is killed (2 if unset); `BANDPO_KILLS=20 python -m pytest tests/test_resume.py` is the
long form.
"""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from helpers import TINY_RUN, held_elsewhere

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-c", "from bandpo.cli import main; main()", "train"]
KILLS = int(os.environ.get("BANDPO_KILLS", "2"))


def bandpo(*arguments, cwd, **options):
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, cwd=cwd, timeout=300, check=False, **options
    )


def rows(file):
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "step_time"} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    result = bandpo(*TINY_RUN, "--output", "out", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "out", time.monotonic() - started


def assert_same_run(run, other):
    assert rows(run / "metrics.jsonl") == rows(other / "metrics.jsonl")
    assert (run / "samples.jsonl").read_bytes() == (other / "samples.jsonl").read_bytes()
    for when in ("before", "after"):
        for name in ("result.json", "samples.jsonl"):
            assert (run / "eval" / when / name).read_bytes() == (other / "eval" / when / name).read_bytes()
    weights, others = (load_file(r / "model" / "model.safetensors") for r in (run, other))
    assert all(weights[name].equal(others[name]) for name in weights)


def wait_for_update(run, process, update):
    while process.poll() is None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            if json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] >= update:
                return
        time.sleep(0.02)


def test_the_comparison_means_something(undisturbed):
    """Rewards differ, weights move, tokens are clipped: an error in resuming would show."""
    metrics = rows(undisturbed[0] / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(1, 25))
    assert len({row["entropy"] for row in metrics}) == 24
    assert any(row.get("reward_std", 0) > 0 for row in metrics)
    assert any(row.get("dynamic_sampling/rounds", 0) > 0 for row in metrics)
    assert sum(row["grad_norm"] > 0 for row in metrics) > 12


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, undisturbed):
    whole, seconds = undisturbed
    dice = random.Random(int(os.environ.get("BANDPO_KILL_SEED", "0")))
    arguments = [*TINY_RUN, "--output", "out", "--resume"]
    for kill in range(KILLS):
        process = subprocess.Popen(
            [*COMMAND, *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # One kill in four comes at any time since the start, the others spread over the updates of the run.
        if dice.random() < 0.25:
            time.sleep(dice.uniform(0, 0.7) * seconds)
        else:
            wait_for_update(tmp_path / "out", process, int(23 * (kill + dice.random()) / KILLS))
            time.sleep(dice.uniform(0, 0.3))
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    result = bandpo(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert_same_run(tmp_path / "out", whole)
    assert json.loads((tmp_path / "out" / "status.json").read_text())["status"] == "finished"
    again = bandpo("out", "--resume", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "24 updates" in again.stdout


def test_a_full_disk_keeps_what_there_is_and_the_run_goes_on_later(tmp_path, undisturbed):
    """A limit on the size of a file stands in for the disk: the optimizer's state does not fit."""
    whole, _ = undisturbed
    last = whole / "checkpoints" / "checkpoint-24"
    limit = (last / "optimizer.pt").stat().st_size - 1
    assert (last / "model.safetensors").stat().st_size < limit
    arguments = [*TINY_RUN, "--output", "out", "--resume"]
    full = bandpo(
        *arguments, cwd=tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    assert full.returncode == 1
    assert "cannot write the checkpoint of update 3" in full.stderr
    assert "bandpo train out --resume" in full.stdout
    run = tmp_path / "out"
    assert json.loads((run / "status.json").read_text())["status"] == "failed"
    assert not list((run / "checkpoints").glob("checkpoint-*"))
    result = bandpo(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert_same_run(run, whole)


def test_a_run_has_one_writer(tmp_path, undisturbed):
    run = tmp_path / "out"
    shutil.copytree(undisturbed[0], run)
    (run / "status.json").write_text(json.dumps({"status": "running"}))
    with held_elsewhere(run):
        refused = bandpo("out", "--resume", cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: another process is working in 'out'")
    assert refused.stdout == ""
    assert (run / "metrics.jsonl").read_bytes() == (undisturbed[0] / "metrics.jsonl").read_bytes()
    assert json.loads((run / "status.json").read_text()) == {"status": "running"}


def test_a_damaged_checkpoint_is_passed_over(tmp_path, undisturbed):
    whole, _ = undisturbed
    run = tmp_path / "out"
    shutil.copytree(whole, run)
    optimizer = run / "checkpoints" / "checkpoint-24" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1] + b"?")
    (run / "status.json").write_text(json.dumps({"status": "running"}))
    result = bandpo("out", "--resume", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "optimizer.pt of checkpoint-24 is damaged" in result.stdout
    assert "resuming after update 21" in result.stdout
    assert_same_run(run, whole)
    for checkpoint in (run / "checkpoints").glob("checkpoint-*"):
        (checkpoint / "trainer_state.json").write_text("{}")
    (run / "status.json").write_text(json.dumps({"status": "running"}))
    refused = bandpo("out", "--resume", cwd=tmp_path)
    assert refused.returncode == 1
    assert "no checkpoint of 'out' can be used" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["out"], ["'out' is a run", "--resume", "config.yaml"]),
        (["out", "train.max_steps=99", "--resume"], ["own settings", "train.max_steps=99"]),
        (["scratch", "--resume"], ["--output"]),
        (["scratch", "--output", "out", "--resume"], ["was started with", "more settings differ"]),
        (["scratch", "--output", "out"], ["already exists", "--resume"]),
        (["scratch", "train.save_total_limit=1"], ["save_total_limit is 1"]),
    ],
)
def test_mistakes(undisturbed, arguments, words):
    result = bandpo(*arguments, cwd=undisturbed[0].parent)
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_a_checkpoint_and_the_run_goes_on(tmp_path, undisturbed, number, code):
    whole, _ = undisturbed
    arguments = [*TINY_RUN, "train.save_steps=100", "--output", "out"]
    with subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, text=True, stdout=-1, stderr=-1) as process:
        wait_for_update(tmp_path / "out", process, 1)
        process.send_signal(number)
        printed, errors = process.communicate(timeout=60)
    run = tmp_path / "out"
    assert process.returncode == code, errors
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["signal"]) == ("interrupted", signal.Signals(number).name)
    assert "saving a checkpoint" in errors
    assert "Traceback" not in errors
    assert "bandpo train out --resume" in printed
    (checkpoint,) = (run / "checkpoints").glob("checkpoint-*")
    assert (checkpoint / "seal.json").exists()
    step = int(checkpoint.name.rpartition("-")[2])
    assert 1 <= step < 24
    assert [row["step"] for row in rows(run / "metrics.jsonl")] == list(range(1, step + 1))
    assert_readable(run, status="interrupted")
    result = bandpo("out", "--resume", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"resuming after update {step}" in result.stdout
    assert_same_run(run, whole)
    assert json.loads((run / "status.json").read_text())["status"] == "finished"


def test_a_signal_before_training_ends_at_once(tmp_path):
    process = subprocess.Popen(
        [*COMMAND, *TINY_RUN, "warmup.steps=100000", "--output", "out"], cwd=tmp_path, stdout=-1, stderr=-1
    )
    run = tmp_path / "out"
    while not run.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert json.loads((run / "status.json").read_text())["status"] == "interrupted"
    assert not run.joinpath("model").exists()
    assert_readable(run, status="interrupted")


def assert_readable(run, status):
    """What there is of an unfinished run can be looked at."""
    for command in (["samples", str(run)], ["report", str(run)]):
        result = subprocess.run(
            [sys.executable, "-m", "bandpo", *command], capture_output=True, text=True, timeout=120, check=False
        )
        assert result.returncode == 0, result.stderr
        if command[0] == "samples" and (run / "samples.jsonl").exists():
            assert "--- reward" in result.stdout
    assert status in (run / "report.md").read_text()
    assert "bandpo train" in (run / "report.md").read_text()
