"""The real command line, in processes of its own."""

import json
import subprocess
import sys

import pytest
import yaml

from helpers import TINY, strict_json

pytestmark = pytest.mark.slow

RUN = ["scratch", *TINY, "--output", "out"]


def bandpo(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-c", "from bandpo.cli import main; main()", *arguments],
        capture_output=True, text=True, cwd=cwd, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    return folder, bandpo("train", *RUN, cwd=folder)


def test_every_json_file_is_strict_json(finished):
    folder, _ = finished
    overrides = ["train.mask_truncated_completions=true", "train.max_completion_length=1", "record.batches=1"]
    masked = bandpo("train", "scratch", *TINY, *overrides, "--output", "masked", cwd=folder)
    assert masked.returncode == 0, masked.stderr
    for run in ("out", "masked"):
        files = [file for kind in ("*.json", "*.jsonl") for file in (folder / run).rglob(kind)]
        assert {"metrics.jsonl", "samples.jsonl", "summary.json", "result.json"} <= {file.name for file in files}
        for file in files:
            assert strict_json(file)
    rows = strict_json(folder / "masked" / "metrics.jsonl")
    assert all(row["completions/clipped_ratio"] == 1 for row in rows if "reward" in row)
    assert [row["band/ratio_min"] for row in rows] == [1] * 4
    assert [row["band/divergence_max"] for row in rows] == [0] * 4


def test_train_leaves_a_complete_run_directory(finished):
    folder, result = finished
    assert result.returncode == 0, result.stderr
    run = folder / "out"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["rollouts"] == 1
    for when in ("before", "after"):
        assert {"mean@2", "pass@2", "greedy", "entropy"} <= set(summary[when]["metrics"])
        samples = [json.loads(line) for line in (run / "eval" / when / "samples.jsonl").read_text().splitlines()]
        assert [len(row["completions"]) for row in samples] == [2] * 5
        result_file = json.loads((run / "eval" / when / "result.json").read_text())
        assert result_file["metrics"] == summary[when]["metrics"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all("band/clip_fraction" in row and "entropy" in row for row in rows)
    assert len((run / "samples.jsonl").read_text().splitlines()) == 16
    assert json.loads((run / "status.json").read_text())["status"] == "finished"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["rule"]["name"] == "band"
    environment = json.loads((run / "environment.json").read_text())
    assert {"torch", "trl", "transformers", "bandpo"} <= set(environment["packages"])
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"
    report = (run / "report.md").read_text()
    assert "mean@2" in report
    assert "curves.png" in report
    assert list((run / "model").glob("*.safetensors"))
    assert "mean@2" in result.stdout
    assert "update  reward  entropy  clipped\n   4/4  " in result.stdout
    assert list((run / "checkpoints").rglob("events.out.tfevents*"))


def test_the_saved_model_loads_again(finished):
    from bandpo.models import load_model

    model, tokenizer = load_model(str(finished[0] / "out" / "model"))
    assert model.config.hidden_size == 32
    assert tokenizer("1+1=")["input_ids"] == tokenizer("1+1=", add_special_tokens=False)["input_ids"]


def test_a_run_directory_can_be_evaluated_and_read(finished, questions, tmp_path, capsys):
    from bandpo.cli.app import app

    run = str(finished[0] / "out")
    options = ["--samples", "2", "--max-new-tokens", "4", "--limit", "2", "--output", str(tmp_path / "scores")]
    app(args=["eval", run, str(questions), *options], standalone_mode=False)
    assert "mean@2" in capsys.readouterr().out
    for directory, count in ((run, 16), (f"{run}/eval/after", 5 * 2), (str(tmp_path / "scores"), 2 * 2)):
        app(args=["samples", directory, "--limit", "100"], standalone_mode=False)
        assert capsys.readouterr().out.count("\n--- reward ") == count


def test_nothing_is_overwritten(finished):
    folder, _ = finished
    before = (folder / "out" / "summary.json").read_bytes()
    result = bandpo("train", *RUN, cwd=folder)
    assert result.returncode == 1
    assert "already exists" in result.stderr
    assert (folder / "out" / "summary.json").read_bytes() == before


def test_a_run_directory_is_never_taken_over(tmp_path):
    from bandpo.runs.run_dir import RunDirectory

    RunDirectory.create(tmp_path / "run", {"a": 1}, [])
    with pytest.raises(ValueError, match="already exists"):
        RunDirectory.create(tmp_path / "run", {"a": 2}, [])
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="already exists"):
        RunDirectory.create(tmp_path / "file", {}, [])
    assert (tmp_path / "file").read_text() == "mine"


def test_report_can_be_written_again(finished):
    folder, _ = finished
    (folder / "out" / "curves.png").unlink()
    assert bandpo("report", "out", cwd=folder).returncode == 0
    assert (folder / "out" / "curves.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "scrach"], ["unknown recipe 'scrach'", "did you mean 'scratch'"]),
        (["train", "scratch", "rule.radius=-1"], ["radius", "-1"]),
        (["train", "scratch", "train.max_stps=1"], ["did you mean 'max_steps'"]),
        (["train", "quickstart", "model.path=./nowhere"], ["'./nowhere' does not exist"]),
        (["train", "word-problems", "task.data=nowhere.jsonl"], ["'nowhere.jsonl' does not exist"]),
        (["bounds", "--radius", "0"], ["radius", "0"]),
        (["bounds", "--divergence", "kk"], ["'kk'"]),
        (["bounds", "--p", "1.5"], ["1.5"]),
        (["report", "nowhere"], ["'nowhere' does not exist"]),
        (["report", "."], ["not a run directory"]),
        (["eval", "./nowhere", "nowhere.jsonl"], ["'nowhere.jsonl' does not exist"]),
    ],
)
def test_mistakes_cost_one_line(tmp_path, arguments, words):
    result = bandpo(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path):
    result = bandpo("--debug", "train", "scrach", cwd=tmp_path)
    assert result.returncode != 0
    assert "Traceback" in result.stderr


def test_a_failed_run_says_so(tmp_path):
    result = bandpo("train", *RUN, "train.learning_rate=-1", cwd=tmp_path)
    assert result.returncode != 0
    assert json.loads((tmp_path / "out" / "status.json").read_text())["status"] == "failed"
    assert "Traceback" in (tmp_path / "out" / "error.log").read_text()


def test_bounds_prints_and_plots(tmp_path):
    result = bandpo("bounds", "--plot", "b.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "53.55" in result.stdout
    assert (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"


def test_lists(tmp_path):
    for command, words in (("recipes", ["quickstart", "scratch"]), ("tasks", ["arithmetic", "task.data"])):
        result = bandpo(command, cwd=tmp_path)
        assert result.returncode == 0
        for word in words:
            assert word in result.stdout
