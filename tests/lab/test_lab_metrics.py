"""metrics.json: what older files say is kept, and what a bad file gets."""

import io
import json
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from rich.console import Console

from bandpo.lab import schema
from bandpo.lab.collect import ROLLOUT_SERIES, UPDATE_SERIES
from bandpo.lab.comparison import compare
from bandpo.lab.metrics import Environment, Rollouts, StudyResult, Updates
from bandpo.lab.summary import print_study
from bandpo.lab.tables import study_tables
from helpers import ROOT

RESULTS = [
    file for file in sorted((ROOT / "results").glob("*/metrics.json")) if json.loads(file.read_text())["format"] == 1
]
GOLDEN = Path(__file__).parent / "golden"  # what the code before format 2 printed for these studies
OF_FORMAT_1 = {"clip_fraction_low": "clip_low", "clip_fraction_high": "clip_high"}


@pytest.mark.parametrize("file", RESULTS, ids=[file.parent.name for file in RESULTS])
def test_every_number_of_a_file_of_format_1_is_kept(file):
    raw, result = json.loads(file.read_text()), StudyResult.load(file)
    assert raw["format"] == 1
    assert (result.name, result.format, len(result.finished)) == (raw["name"], 2, len(raw["runs"]))
    assert asdict(result.environment) == raw["environment"]
    for label, found in raw["calibration"].items():
        kept = json.loads(json.dumps(asdict(result.calibration[label])))
        assert kept == found
    for run, old in zip(result.runs, raw["runs"], strict=True):
        new = json.loads(json.dumps(asdict(run)))
        assert new.pop("error") == ""
        for held_out in (new["evaluation"] or {}).values():
            assert (held_out.pop("parts"), held_out.pop("distinct"), held_out.pop("spread")) == ({}, None, None)
        new["updates"] = {OF_FORMAT_1.get(key, key): value for key, value in new["updates"].items()}
        assert new == old


@pytest.mark.parametrize("name", ["smollm2", "scratch-confirm"])
def test_tables_are_those_of_format_1(name):
    result = StudyResult.load(ROOT / "results" / name / "metrics.json")
    stream = io.StringIO()
    print_study(result, Console(file=stream, width=200))
    tables, _, _ = stream.getvalue().partition("Means over seeds")
    assert [line.rstrip() for line in tables.splitlines()] == (GOLDEN / f"{name}.txt").read_text().splitlines()
    blocks = ["\n".join(table.markdown()) for c in compare(result) for table in study_tables(c)]
    assert "\n\n".join(blocks) == (GOLDEN / f"{name}.md").read_text().rstrip("\n")


def test_what_is_saved_is_what_is_loaded(tmp_path):
    result = StudyResult.load(ROOT / "results" / "smollm2" / "metrics.json")
    result.save(tmp_path / "metrics.json")
    text = (tmp_path / "metrics.json").read_text()
    assert StudyResult.load(tmp_path / "metrics.json") == result
    assert json.loads(text)["format"] == 2
    assert text.count('"clip_fraction_low":[') == len(result.finished)
    assert '"clip_low"' not in text
    assert text.count("\n{") == len(result.runs)  # one line per run
    tokens = ",".join(str(int(count)) for count in result.finished[0].rollouts.tokens)
    assert f'"tokens":[{tokens}]' in text  # counts stay counts


def whole():
    return json.loads((ROOT / "results" / "smollm2" / "metrics.json").read_text())


def broken(change):
    data = whole()
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist; `bandpo compare STUDY --output DIR` writes it"),
        ("{", "is damaged"),
        ("[]", "another format; allowed: 1 to 2"),
        (broken(lambda data: data.update(format=3)), "another format; allowed: 1 to 2"),
        (broken(lambda data: data.pop("runs")), "is damaged: runs: Field required"),
        (broken(lambda data: data["runs"][2]["updates"].pop("entropy")), "is damaged: runs.2.updates.entropy: Field"),
        (
            broken(lambda data: data["runs"][0].update(seed="x")),
            "runs.0.seed: Input should be a valid int",
        ),
        (
            broken(lambda data: data["runs"][0].update(method="Grpo")),
            "runs.0.method is 'Grpo', which is not a method",
        ),
        (
            broken(lambda data: data["study"].update(reference="Grpo")),
            "is damaged: .*'Grpo' is not a method",
        ),
        (broken(lambda data: data.update(environment=[])), "is damaged: environment"),
    ],
)
def test_a_bad_file_is_named_with_the_place(tmp_path, text, words):
    if text is not None:
        (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        StudyResult.load(tmp_path / "metrics.json")
    assert str(tmp_path / "metrics.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_page_on_the_format_is_current():
    page = (ROOT / "docs" / "metrics_json.md").read_text(encoding="utf-8")
    assert page == schema.page(), "run `python -m bandpo.lab.schema > docs/metrics_json.md`"
    for described in (Environment, Rollouts, Updates):
        for field in fields(described):
            assert f"| `{field.name}` |" in page


def test_a_field_without_a_meaning_is_no_page(monkeypatch):
    monkeypatch.setattr(Updates, "__doc__", Updates.__doc__.replace("grad_norm:", "norm:"))
    with pytest.raises(ValueError, match="Updates does not describe grad_norm"):
        schema.page()


def test_every_series_has_its_source():
    assert {field.name for field in fields(Rollouts)} - {"step"} == ROLLOUT_SERIES.keys()
    assert {field.name for field in fields(Updates)} - {"bin", "step", "seconds"} == UPDATE_SERIES.keys()
