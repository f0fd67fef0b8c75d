"""Runs and studies as data of the page: the numbers of the files, what is new, and what is damaged."""

import json
import math

import numpy as np
import pytest
import yaml
from node import run_node

from bandpo.core.rules import Band
from bandpo.explore.data import data_of
from bandpo.explore.runs import metrics, run_data, study_data
from bandpo.explore.sources import find_sources
from bandpo.lab.collect import collect_run
from bandpo.lab.comparison import compare
from bandpo.lab.metrics import StudyResult
from bandpo.report import ledger, why
from bandpo.training.batches import read_batches
from folders import make_run, metric_line
from helpers import ROOT

STUDY = ROOT / "results" / "tail" / "metrics.json"


def test_a_run_is_the_numbers_of_its_files(tmp_path):
    path = make_run(tmp_path / "run", alarms=[(8, "entropy_low", "fired"), (12, "entropy_low", "cleared")])
    data = run_data(path, "run")
    (run,) = data["runs"]
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert run["steps"] == {"updates": list(range(1, 25)), "rollouts": [1, 5, 9, 13, 17, 21]}
    for name, key in (("entropy", "entropy"), ("divergence", "band/divergence"), ("ratio_max", "band/ratio_max")):
        assert run["series"][name] == pytest.approx([row[key] for row in rows], rel=1e-3)
    assert run["series"]["reward"] == pytest.approx([row["reward"] for row in rows if "reward" in row], rel=1e-3)
    assert run["alarms"] == [(8, "entropy_low", "fired"), (12, "entropy_low", "cleared")]
    assert (run["label"], run["seed"], run["state"]) == ("Band KL 0.05", 0, "finished")
    assert data["problems"] == []
    assert set(run["series"]) <= {metric["name"] for metric in metrics()}


def test_seeds_have_one_group_and_rules_another(tmp_path):
    runs = [make_run(tmp_path / f"{rule}{seed}", 4, seed, rule) for rule in ("band", "clip") for seed in (0, 1)]
    groups = [run_data(path, path.name)["runs"][0]["group"] for path in runs]
    assert groups[0] == groups[1] != groups[2] == groups[3]


def test_what_was_recorded_is_counted_with_the_runs_own_rule(tmp_path):
    path = make_run(tmp_path / "run", batches=(8, 16))
    found = run_data(path, "run")["recorded"]
    batches = read_batches(path / "batches")
    for i, batch in enumerate(batches):
        clipped = why.outside(Band(), batch).clipped
        above = np.array(found["clipped"]["above"][i]).sum()
        below = np.array(found["clipped"]["below"][i]).sum()
        assert above == (clipped & (batch.logps > batch.old_logps)).sum() > 0
        assert below == (clipped & (batch.logps < batch.old_logps)).sum() > 0
        assert np.sum(found["clipped"]["tokens"][i]) == batch.mask.sum()
        *entries, net = found["ledger"]["rows"][i]
        whole = ledger.whole(Band(), [batch])
        assert entries == pytest.approx((1000 * whole.entries[0] / batch.mask.sum()).tolist(), rel=1e-3)
        assert net == pytest.approx(entries[0] + entries[1], rel=1e-2)
    assert found["clipped"]["steps"] == found["ledger"]["steps"] == [8, 16]


def test_a_live_run_is_asked_for_what_is_new(tmp_path):
    path = make_run(tmp_path / "run", 6, status="running")
    first = run_data(path, "run")
    with (path / "metrics.jsonl").open("a") as stream:
        rows = [json.loads(metric_line(step)) for step in (7, 8)]
        stream.writelines(json.dumps({**row, "grad_norm": None}) + "\n" for row in rows)  # a series with a gap
        stream.write(metric_line(9)[:20])
    second = run_data(path, "run", first["version"])
    assert (first["whole"], second["whole"]) == (True, False)
    assert second["runs"][0]["steps"] == {"updates": [7, 8], "rollouts": []}
    with (path / "metrics.jsonl").open("a") as stream:
        stream.write(metric_line(9)[20:])
    third = run_data(path, "run", second["version"])
    assert third["runs"][0]["steps"] == {"updates": [9], "rollouts": [9]}
    assert run_data(path, "run", third["version"])["runs"][0]["steps"]["updates"] == []
    whole = run_data(path, "run")["runs"][0]
    (path / "new.jsonl").write_text("".join(map(metric_line, range(1, 41))))  # a resume that has overtaken it
    (path / "new.jsonl").replace(path / "metrics.jsonl")
    again = run_data(path, "run", third["version"])
    assert again["whole"]
    assert again["runs"][0]["steps"]["updates"] == list(range(1, 41))

    driver = "given.answers.reduce((old, fresh) => grown(old, fresh, given.metrics)).runs[0]"
    answers = [first, second, third]
    joined = run_node(driver, {"answers": answers, "metrics": metrics()}, "plot", "state", "controls", "run")
    assert joined["steps"] == whole["steps"]
    assert joined["series"] == {name: values for name, values in whole["series"].items() if name in joined["series"]}
    assert joined["series"]["grad_norm"] == [0.5] * 6 + [None, None, 0.5]


@pytest.mark.parametrize("version", ["x", "-", "1-", "1-x", "1--5", f"{'9' * 30}-1", "0-0", "1-999999999999"])
def test_a_version_that_is_none_is_a_new_start(tmp_path, version):
    path = make_run(tmp_path / "run", 5)
    assert run_data(path, "run", version)["runs"][0]["steps"]["updates"] == [1, 2, 3, 4, 5]


def test_a_file_that_was_cut_short_is_sent_whole(tmp_path):
    path = make_run(tmp_path / "run", 5)
    version = run_data(path, "run")["version"]
    with (path / "metrics.jsonl").open("r+") as stream:  # the same file
        stream.truncate(len(metric_line(1)))
    again = run_data(path, "run", version)
    assert (again["whole"], again["runs"][0]["steps"]["updates"]) == (True, [1])


def test_damaged_lines_are_named_and_the_rest_is_shown(tmp_path):
    path = make_run(tmp_path / "run", 3)
    with (path / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"step": 4, "entropy": NaN, "reward": "x", "grad_norm": 1e999}\nno\n[]\n{"step": "5"}\n\xff\n')
        stream.write(metric_line(6).encode())
    (path / "alarms.jsonl").write_text('{"step": 1}\n')
    (path / "status.json").write_text("[")
    data = run_data(path, "run")
    (run,) = data["runs"]
    assert run["steps"]["updates"] == [1, 2, 3, 4, 6]
    assert run["series"]["entropy"][3] is None
    assert run["state"] == "unknown"
    assert [f"metrics.jsonl:{line}: is not a log line" for line in (5, 6, 7, 8)] == [
        text.split("/")[-1].partition(" (")[0] for text in data["problems"][:4]
    ]
    assert "alarms.jsonl' is damaged" in data["problems"][4]
    assert json.dumps(data, allow_nan=False)


@pytest.mark.parametrize("text", ["", "[", "a: {", "rule: 3", "rule: {name: bend}\ntrain: {}", "null", "- 1", "\x00"])
def test_a_damaged_configuration_leaves_the_curves(tmp_path, text):
    path = make_run(tmp_path / "run", 3, batches=(2,))
    (path / "config.yaml").write_text(text)
    data = run_data(path, "run")
    assert "config.yaml' is not the configuration of a run" in data["problems"][0]
    assert data["runs"][0]["label"] == "run"
    assert data["runs"][0]["steps"]["updates"] == [1, 2, 3]
    assert data["recorded"] is None


def test_a_damaged_batch_is_a_sentence(tmp_path):
    path = make_run(tmp_path / "run", 3, batches=(2,))
    (path / "batches" / "batch-3.npz").write_bytes(b"PK\x03\x04 no")
    data = run_data(path, "run")
    assert data["recorded"] is None
    assert "batch-3.npz' is not a record of tokens" in data["problems"][0]


def test_a_study_is_its_finished_runs():
    study = StudyResult.load(STUDY)
    data = study_data(STUDY, "tail")
    assert len(data["runs"]) == len(study.finished)
    for shown, run in zip(data["runs"], study.finished, strict=True):
        assert (shown["label"], shown["seed"]) == (run.method, run.seed)
        assert shown["series"]["entropy"] == run.updates.entropy
        assert shown["series"]["reward"] == run.rollouts.reward
    assert json.dumps(data, allow_nan=False)


def test_the_runs_of_a_study_have_the_curves_of_its_file(tmp_path):
    """Both are read off the same log."""
    path = make_run(tmp_path / "run")
    (path / "summary.json").write_text('{"steps": 24, "rollouts": 6, "seconds": 1.0}')
    config = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump(config | {"eval": None}))
    record = collect_run(path)
    (run,) = run_data(path, "run")["runs"]
    assert record.updates.bin == 1
    assert run["series"]["entropy"] == record.updates.entropy
    assert run["steps"]["rollouts"] == record.rollouts.step


def test_savings_are_those_of_the_comparison():
    (comparison,) = compare(StudyResult.load(STUDY))
    targets = {result.method: result.target for result in comparison.results}
    saving = {one["method"]: one for one in study_data(STUDY, "tail")["saving"]}
    assert saving.keys() == targets.keys() - {comparison.reference}
    shown = targets["BandKL"].ratios["updates"]
    assert saving["BandKL"]["ratios"]["updates"] == {"mean": shown.mean, "low": shown.low, "high": shown.high}
    driver = "given.map((one) => savedOf({ ...one, ratio: one.ratios.updates }, 100))"
    found = run_node(driver, list(saving.values()), "plot", "state", "controls", "sources", "saving")
    by_method = dict(zip(saving, found, strict=True))
    assert by_method["BandKL"]["hours"] == pytest.approx([100 * (1 - r) for r in (shown.mean, shown.high, shown.low)])
    assert by_method["DCPO"] == {"why": "no difference shown"}  # its interval holds 1
    assert "3 of 5 runs never reached the target" in by_method["GRPO"]["why"]


def test_the_ratio_is_a_geometric_mean_over_seeds_that_all_got_there():
    (comparison,) = compare(StudyResult.load(STUDY))
    for result in comparison.results:
        for kind, ratio in result.target.ratios.items():
            assert (ratio is None) == (result.target.reached < result.target.runs), (result.method, kind)
    own = next(r.target for r in comparison.results if r.method == comparison.reference)
    assert own.ratios["updates"] == type(own.ratios["updates"])(1.0, 1.0, 1.0)
    band = next(r.target.ratios["updates"] for r in comparison.results if r.method == "BandKL")
    assert band.mean == pytest.approx(math.sqrt(band.low * band.high))  # symmetric in the logarithm


def test_curves_are_thinned_to_means_and_extremes_stay():
    values = [float(i % 50) for i in range(10_000)]
    given = {"steps": list(range(1, 10_001)), "values": [None, *values[1:]]}
    driver = "['entropy', 'ratio_max', 'ratio_min'].map((name) => thinned(given.steps, given.values, name, 200))"
    mean, largest, smallest = run_node(driver, given, "plot", "state", "controls", "run")
    assert mean["width"] == 50
    assert len(mean["points"]) == 200
    assert mean["points"][1] == [pytest.approx(76.5), pytest.approx(24.5), 0, 49]
    assert {point[1] for point in largest["points"][:-1]} == {49}
    assert {point[1] for point in smallest["points"][:-1]} == {0}


def test_a_band_goes_as_far_as_all_seeds_got():
    curves = [[[1, 2, 2, 2], [3, 4, 4, 4], [5, 6, 6, 6]], [[1, 4, 4, 4], [4, 1, 1, 1]]]
    found = run_node("[bandOf(given), bandOf(given, true)]", curves, "plot", "state", "controls", "run")
    assert found[0] == [[1, 3, 2, 4], [3, 3, 2, 4]]
    assert found[1][0] == [1, pytest.approx(math.sqrt(8)), 2, 4]


def test_equal_labels_of_other_settings_are_told_apart():
    runs = [
        {"group": "x", "label": "Band", "name": "s/runs/a/0"},
        {"group": "y", "label": "Band", "name": "s/runs/b/0"},
        {"group": "x", "label": "Band", "name": "s/runs/a/1"},
        {"group": "z", "label": "Clip", "name": "s/runs/c/0"},
    ]
    driver = "groupsOf(given).map(({ label, runs }) => [label, runs.length])"
    found = run_node(driver, runs, "plot", "state", "controls", "run")
    assert found == [["Band, s/runs/a", 2], ["Band, s/runs/b/0", 1], ["Clip", 1]]


def test_a_source_gives_what_its_kind_says(tmp_path):
    make_run(tmp_path / "all" / "a", 4, batches=(2,))
    sources, problems = find_sources([tmp_path / "all", STUDY])
    assert problems == []
    assert [(one.kind, one.name) for one in sources] == [("run", "all/a"), ("tokens", "all/a"), ("study", "tail")]
    run, tokens, study = map(data_of, sources)
    assert run["runs"][0]["name"] == "all/a"
    assert tokens["tokens"] == 24
    assert study["reference"] == "Clip-Higher"
