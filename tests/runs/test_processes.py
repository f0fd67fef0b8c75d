"""Two processes do what one does with the same global batch, and the command line runs under `accelerate launch`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import TINY_RUN

pytestmark = pytest.mark.slow

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]


def launch(processes, *arguments, cwd):
    # Without a GPU, --multi_gpu starts processes that talk by gloo; --cpu would start them by mpirun only.
    several = ["--multi_gpu"] if processes > 1 else []
    command = [*LAUNCH, *several, "--num_processes", str(processes), "--num_cpu_threads_per_process", "1", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_two_processes_have_the_metrics_of_one(tmp_path, loss_type):
    script = str(Path(__file__).with_name("two_processes.py"))
    results = []
    for processes in (1, 2):
        launch(processes, script, f"p{processes}", loss_type, cwd=tmp_path)
        results.append(json.loads((tmp_path / f"p{processes}.json").read_text()))
    one, two = results
    assert (one["processes"], two["processes"]) == (1, 2)
    assert len(one["rows"]) == 9
    assert max(row["band/clip_fraction"] for row in one["rows"]) > 0.01, "the comparison should meet clipped tokens"
    for a, b in zip(one["rows"], two["rows"], strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"step_time"}:
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-5), (name, a["step"])
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-4)


def test_the_command_line_under_accelerate_launch(tmp_path):
    arguments = [*TINY_RUN, "train.max_steps=6", "train.per_device_train_batch_size=2", "--output", "out"]
    result = launch(2, "-m", "bandpo", "train", *arguments, cwd=tmp_path)
    assert result.stdout.count("held-out problems") == 1
    run = tmp_path / "out"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {p.name for p in (run / "checkpoints" / "checkpoint-6").glob("rollout_*")} == {
        "rollout_0_of_2.pt",
        "rollout_1_of_2.pt",
    }
    summary = json.loads((run / "summary.json").read_text())
    assert summary["before"]["metrics"].keys() == summary["after"]["metrics"].keys()
    assert len((run / "samples.jsonl").read_text().splitlines()) == 2 * 16
    again = launch(2, "-m", "bandpo", "train", "out", "--resume", cwd=tmp_path)
    assert "6 updates" in again.stdout
