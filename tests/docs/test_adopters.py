"""Files that adopters look for agree with the project: workflows call the Makefile, versions are those in use."""

import re
import tomllib

import yaml

from helpers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GITHUB = ROOT / ".github"


def read_yaml(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_workflows_call_targets_of_the_makefile_and_nothing_else():
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    called = set()
    for path in (GITHUB / "workflows").glob("*.yml"):
        workflow = read_yaml(path)
        assert workflow["permissions"] == {"contents": "read"}, path.name
        for job in workflow["jobs"].values():
            for command in (step["run"] for step in job["steps"] if "run" in step):
                words = [word for word in command.split() if "=" not in word]
                assert words[0] == "make", command
                assert set(words[1:]) <= targets, command
                called |= set(words[1:])
    assert {"check", "test", "test-verl", "docs", "test-wheel", "test-newest-trl", "test-newest-verl"} <= called


def test_issue_forms_ask_for_bandpo_doctor():
    for name in ("bug.yml", "training.yml"):
        fields = {
            field["id"]: field for field in read_yaml(GITHUB / "ISSUE_TEMPLATE" / name)["body"] if "id" in field
        }
        assert "bandpo doctor" in fields["doctor"]["attributes"]["description"]
        assert fields["doctor"]["validations"]["required"] is True


def test_versions_and_license_are_the_projects():
    citation = read_yaml(ROOT / "CITATION.cff")
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    locks = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("requirements*.lock"))
    pins = re.findall(r"ruff==[\d.]+", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert pins
    assert set(pins) == set(re.findall(r"^ruff==[\d.]+$", locks, re.M))


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 110
    assert len(text.split()) <= 900
