"""The plug-in that keeps what the tests of other frameworks ran against."""

import json
from types import SimpleNamespace

import pytest

import tested
from helpers import ROOT

SUITE = "tests_frameworks/test_ms_swift.py"


@pytest.fixture(autouse=True)
def rows_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tested, "ROWS", tmp_path / "tested.json")
    monkeypatch.setattr(tested, "VERSIONS", tmp_path / "versions.toml")
    monkeypatch.setattr(tested.metadata, "version", lambda name: f"installed {name}")
    return tmp_path / "tested.json"


def record(files, skipped=(), exitstatus=0):
    recorder = tested.Recorder()
    for file in files:
        for when in ("setup", "call", "teardown"):
            skips = file in skipped and when == "setup"
            report = SimpleNamespace(nodeid=f"{file}::test", when=when, skipped=skips, passed=not skips)
            recorder.pytest_runtest_logreport(report)
    recorder.pytest_sessionfinish(exitstatus)
    return recorder.lines


def test_every_suite_exists():
    for suite in tested.SUITES:
        assert (ROOT / suite).exists(), suite


def test_a_file_belongs_to_its_framework():
    assert tested.suite_of("tests_frameworks/test_nemo_rl.py") == ("nemo-rl", "tests_frameworks/test_nemo_rl.py")
    assert tested.suite_of("tests_verl/test_actor.py") == ("verl", "tests_verl")
    assert tested.suite_of("tests_verl_loop/test_loop.py") == ("verl", "tests_verl_loop")
    assert tested.suite_of("tests/core/test_band.py") is None


def test_a_whole_suite_is_recorded_beside_the_others(rows_file):
    rows_file.write_text(json.dumps({"vllm": {"tests_vllm": {"version": "1"}}, "old": {"tests_gone": {}}}))
    record([SUITE, SUITE, "tests/core/test_band.py"])
    rows = json.loads(rows_file.read_text())
    assert rows["vllm"] == {"tests_vllm": {"version": "1"}}
    assert rows["old"] == {}
    row = rows["ms-swift"][SUITE]
    assert (row["version"], row["passed"]) == ("installed ms-swift", 2)
    assert len(row["date"]) == len("2026-11-26")


def test_a_part_of_a_suite_is_not_recorded(rows_file):
    (line,) = record(["tests_vllm/test_trl.py"])
    assert "not recorded, not all of tests_vllm/test_eval.py, tests_vllm/test_sampling.py ran" in line
    assert not rows_file.exists()


@pytest.mark.parametrize("how", [{"skipped": [SUITE]}, {"exitstatus": 1}])
def test_neither_a_skipped_nor_a_failed_test_is_recorded(how, rows_file):
    (line,) = record([SUITE, SUITE], **how)
    assert "recorded" in line
    assert not rows_file.exists()


def test_a_checkout_is_recorded_by_its_commit_and_a_tag_as_a_release(rows_file):
    text = '[{name}]\nversion = "0.8"\ncommit = "{commit}"\n'
    tested.VERSIONS.write_text(text.format(name="prime_rl", commit="559b447" * 5))
    assert tested.version_of("prime-rl") == {"version": "0.8", "commit": "559b447" * 5}
    tested.VERSIONS.write_text(text.format(name="prime_rl", commit="v0.8"))
    assert tested.version_of("prime-rl") == {"version": "0.8"}


def test_a_selection_cannot_be_recorded(pytestconfig):
    option = SimpleNamespace(record=True, keyword="loss", markexpr="", deselect=None, lf=False)
    with pytest.raises(pytest.UsageError, match="--record wants whole files"):
        tested.pytest_configure(SimpleNamespace(option=option, args=["tests_vllm"]))
