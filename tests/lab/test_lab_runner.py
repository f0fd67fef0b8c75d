"""Studies: what a YAML may say, which processes it starts, and that an interrupted one ends like any other."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from bandpo.lab.calibration import closest, next_values
from bandpo.lab.collect import collect_run, entries_per_run
from bandpo.lab.comparison import compare
from bandpo.lab.metrics import StudyResult
from bandpo.lab.pool import Job, Pool
from bandpo.lab.runner import StudyRunner
from bandpo.lab.study import (
    Match,
    Pilot,
    Run,
    as_overrides,
    collapse,
    initial_folder,
    load_study,
    run_config,
    study_names,
)
from bandpo.machine import cores
from bandpo.runs.config import load_config
from helpers import held_elsewhere

FAKE = [sys.executable, str(Path(__file__).parent / "fake_train.py")]
STUDY = {
    "recipe": "scratch",
    "overrides": {"train": {"max_steps": 6, "save_steps": 2}, "eval.samples": 2},
    "methods": {
        "GRPO": {"rule": {"name": "clip", "high": 0.28}},
        "Band": {"rule.radius": 0.05},
        "Band as GRPO": {"match": {"method": "GRPO", "key": "rule.radius", "range": [0.01, 1.0]}},
    },
    "reference": "GRPO",
    "seeds": [0],
    "pilot": {"trials": 1, "overrides": {"train.max_steps": 2}},
    "launch": FAKE,
    "workers": 2,
}  # fmt: skip


def write(folder, **changes):
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return str(path)


def prepare(study, directory):
    """The shared weights, as if they had been made."""
    directory.mkdir()
    (directory / "study.yaml").touch()
    for run in [*study.runs(), Run("GRPO", {}, study.pilot.seed, "target")]:
        (directory / initial_folder(run_config(study, run))).mkdir(parents=True, exist_ok=True)


def run_study(study, directory):
    return StudyRunner(study, "mine", directory, Console(quiet=True)).run()


def starts(directory):
    return (directory / "starts.log").read_text().splitlines()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    study = load_study(write(folder))
    prepare(study, folder / "out")
    return study, folder / "out", run_study(study, folder / "out")


# Studies


def test_settings_of_a_later_layer_win_and_another_name_clears_its_options():
    settings = collapse(
        {"rule": {"name": "band", "radius": 0.1, "cap": 10}, "train.max_steps": 3},
        {"rule": {"high": 0.28, "name": "clip"}},
        {"train": {"max_steps": 5}, "eval": None},
    )
    assert settings == {"train.max_steps": 5, "rule.name": "clip", "rule.high": 0.28, "eval": None}
    assert collapse({"rule.name": "band", "rule.cap": 3}, {"rule.name": "band"})["rule.cap"] == 3


def test_settings_survive_the_command_line():
    values = {
        "task.template": "Question: {question}\nAnswer:", "train.learning_rate": 3e-5, "model.path": "a/b-1.gguf",
        "train.report_to": [], "eval": None, "task.reward": "1e3", "train.bf16": True, "task.system": "null",
    }  # fmt: skip
    data = {"task": {}, "train": {}, "model": {}}
    from bandpo.settings import apply_override

    for override in as_overrides(values):
        apply_override(data, override)
    flat = {f"{a}.{b}": v for a, inner in data.items() if isinstance(inner, dict) for b, v in inner.items()}
    assert {**flat, "eval": data["eval"]} == {**values, "task.reward": 1000.0}  # numbers in text are numbers


def test_runs_of_a_seed_share_weights_and_others_do_not(tmp_path):
    study = load_study(write(tmp_path, seeds=[0, 1], sweep={"task.high": [50, 99]}))
    folders = {
        (run.method, run.point["task.high"], run.seed): initial_folder(run_config(study, run)) for run in study.runs()
    }
    assert len(folders) == 12
    assert len(set(folders.values())) == 4
    assert folders["GRPO", "50", 0] == folders["Band", "50", 0] != folders["Band", "99", 0]
    assert initial_folder(load_config("quickstart")) is None


def test_a_sweep_runs_every_combination_with_each_method(tmp_path):
    sweep = {"train.learning_rate": [1e-4, 1e-3], "batch": {"small": {"train": {"num_generations": 4}}, "usual": {}}}
    study = load_study(write(tmp_path, sweep=sweep))
    assert len(study.runs()) == 12
    point = {"train.learning_rate": "0.001", "batch": "small"}
    assert point in study.points()
    config = run_config(study, Run("Band", point, 7))
    assert (config.train["learning_rate"], config.train["num_generations"], config.seed) == (1e-3, 4, 7)
    assert len({run.folder for run in study.runs()}) == 12


def test_a_key_of_the_command_line_is_the_studys_or_every_runs(tmp_path):
    study = load_study(write(tmp_path), ["seeds=[3, 4]", "train.max_steps=9", "methods.Band.rule.radius=0.2"])
    assert study.seeds == [3, 4]
    config = run_config(study, Run("Band", {}, 3))
    assert (config.train["max_steps"], config.train["save_steps"], config.rule.settings["radius"]) == (9, 2, 0.2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"referense": "GRPO"}, ["'referense'", "did you mean 'reference'"]),
        ({"reference": "Grpo"}, ["'Grpo'", "methods: GRPO, Band"]),
        ({"seeds": [1, 1]}, ["[1, 1]", "distinct"]),
        ({"seeds": []}, ["seeds is []"]),
        ({"metric": "maen"}, ["'maen'", "pass@K"]),
        ({"metric": "entropy[0:6]"}, ["entropy[0:6]", "eval.cuts"]),
        ({"metric": "entropy[0:"}, ["entropy[0:", "entropy[FROM:TO]"]),
        ({"metric": "pass@4"}, ["pass@4", "eval.samples is 2"]),
        ({"overrides": {"eval": None}}, ["eval is null", "reward"]),
        ({"overrides": {"eval.greedy": False}, "metric": "greedy"}, ["eval.greedy is false"]),
        ({"methods": {"GRPO": {"rule.hihg": 1}}}, ["method 'GRPO'", "'hihg'"]),
        ({"methods": {"GRPO": {"rule.name": "trl", "rule.high": 1}}}, ["'trl' has no option 'high'"]),
        ({"methods": {"GRPO": {}, "a b": {}, "a_b": {}}}, ["spaces and underscores"]),
        ({"methods": {"GRPO": {}, "../x": {}}}, ["'../x'", "letters, digits"]),
        ({"methods": {"GRPO": {"match": {"method": "GRPO", "key": "a", "range": [1, 2]}}}}, ["unmatched"]),
        ({"methods": {"GRPO": {}, "B": {"match": {"method": "GRPO", "key": "a", "range": [2, 1]}}}}, ["[2.0, 1.0]"]),
        ({"methods": {"GRPO": {}, "B": {"match": {"methd": "GRPO"}}}}, ["methods.B.match", "did you mean 'method'"]),
        ({"start": "before"}, ["methods.Band as GRPO.match", "'before'"]),
        ({"pilot": {"trails": 3}}, ["'pilot.trails'", "did you mean 'trials'"]),
        ({"recipe": "scrach"}, ["'scrach'", "did you mean 'scratch'"]),
    ],
)
def test_mistakes_are_named_in_one_sentence(tmp_path, changes, words):
    with pytest.raises(ValueError) as caught:
        load_study(write(tmp_path, **changes))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", study_names())
def test_every_packaged_study_is_valid(name):
    study = load_study(name)
    assert study.description
    for run in study.runs():
        if run.seed == study.seeds[0]:
            run_config(study, run)


def test_a_study_may_start_where_another_one_ended(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    methods = {label: settings for label, settings in STUDY["methods"].items() if "match" not in settings}
    study = load_study(write(tmp_path, methods=methods, seeds=[0, 1], start="before"))
    models = [tmp_path / "before" / run.folder / "model" for run in study.runs()]
    for run, model in zip(study.runs(), models, strict=True):
        config = run_config(study, run)
        assert (config.model.path, config.model.scratch, config.warmup) == (str(model), None, None)
        assert initial_folder(config) is None
    for model in models[1:]:
        model.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"start is 'before', which has no model of 1 of 4 runs, GRPO seed 0 among"):
        StudyRunner(study, "mine", tmp_path / "out", Console(quiet=True))
    models[0].mkdir(parents=True)
    runner = StudyRunner(study, "mine", tmp_path / "out", Console(quiet=True))
    command = runner.command(study.runs()[0], runner.settings(study.runs()[0], {}), None)
    assert "model.path=../before/runs/GRPO/0/model" in command, "no path of this machine is kept"
    assert runner.result().study.start == "../before"


# Calibration


def test_bisection_meets_a_falling_figure():
    match = Match(method="x", key="rule.low", range=(0.01, 1.0))
    pilot = Pilot(trials=8, tolerance=0.05)
    trials = []
    while values := next_values(match, pilot, 0.02, trials):
        trials += [(value, 0.004 / value) for value in values]
    assert closest(0.02, trials) == (pytest.approx(0.2, rel=0.05), pytest.approx(0.02, rel=0.05))
    assert [value for value, _ in trials[:3]] == [0.01, 1.0, 0.1]
    assert len(trials) < 8


def test_bisection_meets_a_rising_figure():
    match = Match(method="x", key="rule.radius", range=(0.01, 1.0))
    trials = []
    while values := next_values(match, Pilot(trials=8, tolerance=0.05), 0.02, trials):
        trials += [(value, 0.1 * value) for value in values]
    assert closest(0.02, trials) == (pytest.approx(0.2, rel=0.05), pytest.approx(0.02, rel=0.05))


def test_a_target_out_of_reach_ends_the_search_at_the_nearest_end():
    match = Match(method="x", key="rule.low", range=(0.01, 1.0))
    trials = [(1.0, 0.004), (0.01, 0.4)]
    assert next_values(match, Pilot(), 0.9, trials) == next_values(match, Pilot(), 0.001, trials) == []
    assert closest(0.9, trials) == (0.01, 0.4)
    assert next_values(match, Pilot(trials=1), 0.1, [*trials, (0.1, 0.2)]) == []


# The runner


@pytest.mark.slow
def test_a_study_leaves_what_the_page_says(whole):
    _, directory, result = whole
    assert result == StudyResult.load(directory / "metrics.json")
    assert [(run.method, run.status) for run in result.runs] == [
        ("GRPO", "finished"), ("Band", "finished"), ("Band as GRPO", "finished"),
    ]  # fmt: skip
    run = result.runs[0]
    assert run.rule == {"name": "clip", "high": 0.28}
    assert run.rollouts.step == [1, 3, 5]
    assert run.rollouts.tokens == [100, 300, 500]
    assert run.updates.seconds == [0.5, 1, 1.5, 2, 2.5, 3]
    assert run.updates.divergence == [None] * 6
    assert run.updates_per_rollout == 2
    assert len(run.evaluation.after.correct) == 20
    assert max(run.evaluation.after.correct) == 2
    assert run.command.endswith("--output runs/GRPO/0 --resume")
    assert str(directory) not in (directory / "metrics.json").read_text()
    assert not list(directory.rglob("checkpoints"))
    assert len(compare(result)[0].results) == 3


@pytest.mark.slow
def test_a_control_is_matched_before_it_is_run(whole):
    """The stand-in clips .01/width: the target is .01/.28, and the middle of [.01, 1] is .1."""
    _, directory, metrics = whole
    found = json.loads((directory / "calibration.json").read_text())["Band as GRPO"]
    assert found["target"] == pytest.approx(0.01 / 0.28)
    assert [value for value, _ in found["pilots"]] == [0.01, 0.1, 1.0]
    assert found["value"] == 1.0  # |.01 - .0357| is less than |.1 - .0357|
    assert metrics.runs[2].rule["radius"] == 1.0
    assert all(seed == 1000 for seed in pilot_seeds(directory))


def pilot_seeds(directory):
    return [yaml.safe_load(file.read_text())["seed"] for file in (directory / "pilots").rglob("config.yaml")]


@pytest.mark.slow
def test_what_is_finished_is_not_run_again(whole, tmp_path):
    study, directory, metrics = whole
    before = starts(directory)
    assert len(before) == len(set(before)) == 7
    assert run_study(study, directory) == metrics
    assert starts(directory) == before
    copy = tmp_path / "copy"  # moved, and tidied up
    shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("runs", "pilots"))
    assert run_study(study, copy) == metrics
    assert starts(copy) == before


@pytest.mark.slow
def test_a_study_that_was_changed_is_refused(whole, tmp_path):
    _, directory, _ = whole
    with pytest.raises(ValueError, match=r"Band seed 0 was run as .*radius=0.05.*choose another --output"):
        run_study(load_study(write(tmp_path), ["methods.Band.rule.radius=0.1"]), directory)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ValueError, match="not the directory of a study"):
        run_study(load_study(write(tmp_path)), tmp_path / "other")


def alive(directory):
    found = subprocess.run(["pgrep", "-f", str(directory)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_study_killed_three_times_gives_the_same_table_and_leaves_no_process(tmp_path, whole):
    study, _, metrics = whole
    path = write(tmp_path)
    prepare(study, tmp_path / "out")
    command = [sys.executable, "-m", "bandpo", "compare", path, "--output", str(tmp_path / "out")]
    hold = tmp_path / "hold"
    hold.touch()
    for kill in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if kill < 2:
            logs = partial((tmp_path / "out").glob, "runs/*/*/metrics.jsonl")
            wait_until(lambda logs=logs: any(log.read_text().count("\n") >= 3 for log in logs()))
        else:
            hold.unlink()
            wait_until(lambda: (tmp_path / "out" / "calibration.json").exists())
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until(lambda: not alive(tmp_path / "out"), 5)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    found = StudyResult.load(tmp_path / "out" / "metrics.json")
    assert found.runs == metrics.runs
    assert found.calibration == metrics.calibration
    assert compare(found) == compare(metrics)
    assert "Band as GRPO" in result.stdout


@pytest.mark.slow
def test_a_failed_run_stops_no_other_and_is_tried_again(tmp_path):
    changes = {"methods": {"GRPO": {"rule": {"name": "clip", "high": 9}}, "Band": {}}, "seeds": [0]}
    study = load_study(write(tmp_path, **changes))
    prepare(study, tmp_path / "out")
    runs = run_study(study, tmp_path / "out").runs
    assert [run.status for run in runs] == ["failed", "finished"]
    assert runs[0].error == "ValueError: too high"
    (tmp_path / "mended").touch()
    runs = run_study(study, tmp_path / "out").runs
    assert [run.status for run in runs] == ["finished", "finished"]
    assert starts(tmp_path / "out").count("runs/Band/0") == 1


def test_a_task_without_data_is_said_once_before_any_run(tmp_path):
    study = load_study(write(tmp_path), ["task={name: questions, data: nowhere.jsonl}"])
    prepare(study, tmp_path / "out")
    with pytest.raises(ValueError, match=r"'nowhere\.jsonl' does not exist"):
        run_study(study, tmp_path / "out")
    assert not (tmp_path / "out" / "starts.log").exists()


@pytest.mark.slow
def test_threads_that_the_user_has_set_are_kept(tmp_path, monkeypatch):
    """Two studies on one machine, each with all cores' threads, would slow each other down tenfold."""
    study = load_study(write(tmp_path, methods={"GRPO": {"rule": {"name": "clip", "high": 0.28}}}, workers=1))
    for threads in ("3", ""):  # an empty variable is not set
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        prepare(study, tmp_path / f"out{threads}")
        result = run_study(study, tmp_path / f"out{threads}")
        assert result.environment.threads == (3 if threads else cores())


def test_gpus_are_those_that_the_user_has_chosen(monkeypatch):
    import torch

    from bandpo.lab.runner import machine_workers, process_environment

    study = load_study("scratch")
    for chosen, names in (("2, 5", ["2", "5"]), (None, ["0", "1"])):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if chosen:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        _, gpus = machine_workers(study)
        found = [process_environment(slot, 2, gpus)["CUDA_VISIBLE_DEVICES"] for slot in range(3)]
        assert found == [*names, names[0]]


@pytest.mark.slow
@pytest.mark.parametrize(("load", "said"), [(0.5, False), (9.26, True)])
def test_a_busy_machine_is_said_before_a_study_starts(tmp_path, monkeypatch, load, said):
    monkeypatch.setattr(os, "getloadavg", lambda: (cores() + load, 0, 0) if said else (load, 0, 0))
    study = load_study(write(tmp_path, methods={"GRPO": {"rule": {"name": "clip", "high": 0.28}}}))
    prepare(study, tmp_path / "out")
    stream = io.StringIO()
    StudyRunner(study, "mine", tmp_path / "out", Console(file=stream, width=200)).run()
    first = stream.getvalue().split("\n")[0]
    assert first.startswith(f"the machine is busy: load average {cores() + load:.1f} on {cores()} cores") == said
    assert ("--workers" in first) == said


@pytest.mark.slow
def test_a_failed_pilot_run_skips_its_control_alone(tmp_path):
    methods = {
        "GRPO": {"rule": {"name": "clip", "high": 9}},
        "Band": {"rule.radius": 0.05},
        "Band as GRPO": {"match": {"method": "GRPO", "key": "rule.radius", "range": [0.01, 1.0]}},
    }
    study = load_study(write(tmp_path, methods=methods, reference="Band"))
    prepare(study, tmp_path / "out")
    stream = io.StringIO()
    result = StudyRunner(study, "mine", tmp_path / "out", Console(file=stream, width=200)).run()
    assert [run.status for run in result.runs] == ["failed", "finished", "waiting"]
    assert "Band as GRPO seed 0: skipped, a prerequisite failed" in stream.getvalue()
    assert starts(tmp_path / "out").count("pilots/GRPO/target") == 1


@pytest.mark.slow
def test_one_compare_at_a_time(tmp_path, whole):
    study, directory, _ = whole
    with held_elsewhere(directory), pytest.raises(ValueError, match="another process is working in"):
        run_study(study, directory)


@pytest.mark.slow
def test_sixty_runs_of_240_updates_are_well_below_a_megabyte(tmp_path, whole):
    _, directory, _ = whole
    run = directory / "runs" / "GRPO" / "0"
    copy = tmp_path / "run"
    (copy / "eval").mkdir(parents=True)
    for name in ("config.yaml", "summary.json", "status.json"):
        (copy / name).write_bytes((run / name).read_bytes())
    for when in ("before", "after"):
        os.symlink(run / "eval" / when, copy / "eval" / when)
    third = 1 / 3
    names = ["entropy", "grad_norm", "band/clip_fraction_low", "band/clip_fraction_high", "band/divergence"]
    row = dict.fromkeys([*names, "band/ratio_max", "band/ratio_min", "step_time"], third)
    rollout = dict.fromkeys(["reward", "frac_reward_zero_std", "completions/mean_length"], third)
    lines = [{"step": i, **row, **(rollout | {"num_tokens": 1e6 + i} if i % 4 == 1 else {})} for i in range(1, 241)]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = collect_run(copy)
    assert len(record.updates.entropy) == 60
    assert len(record.rollouts.reward) == 60
    assert 60 * (len(json.dumps(asdict(record), separators=(",", ":"))) + 2000) < 600_000
    assert [entries_per_run(runs) for runs in (1, 93, 270, 10_000)] == [64, 64, 22, 16]
    assert collect_run(copy, 22).updates.step == [*range(11, 241, 11), 240]


PATIENT = """
import signal, sys, time
from pathlib import Path
out = Path(sys.argv[1])
def save(*_):
    time.sleep(0.2)
    (out / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
(out / "ready").touch()
time.sleep(60)
"""


@pytest.mark.slow
def test_runs_of_an_interrupted_study_may_save_a_checkpoint(tmp_path):
    outputs = [tmp_path / "a", tmp_path / "b"]
    for output in outputs:
        output.mkdir()
    jobs = [Job(output.name, [sys.executable, "-c", PATIENT, str(output)], output) for output in outputs]

    def interrupt(*_):
        if all((output / "ready").exists() for output in outputs):
            os.kill(os.getpid(), signal.SIGTERM)

    pool = Pool(2, tmp_path / "logs", lambda slot: {}, interrupt, Console(quiet=True))
    with pytest.raises(SystemExit) as ended:
        pool.run(jobs)
    assert ended.value.code == 143
    assert all((output / "saved").exists() for output in outputs)
