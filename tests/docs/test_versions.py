"""docs/versions.md and docs/integrations/README.md: what is asked for, what the locks install, what was tested."""

import re
import tomllib

import tested_page

from helpers import ROOT
from tested import DISTRIBUTIONS, files_of, read_rows, stated

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TABLE = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8").partition("## ")[0]


def name_of(text):
    return re.match(r"[\w.-]+", text)[0].lower().replace("_", "-")


def locked(*files):
    lines = [line for file in files for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    pins = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {name_of(name): version.partition(";")[0].strip() for name, version in pins}


def asked():
    texts = [
        *PROJECT["dependencies"],
        *(text for group in PROJECT["optional-dependencies"].values() for text in group),
    ]
    found = {"python": PROJECT["requires-python"]}
    for text in texts:
        bare = re.sub(r"\[.*?\]", "", text.partition(";")[0]).strip()
        found[name_of(bare)] = re.sub(r"^[\w.-]+", "", bare)
    return found


def test_the_table_is_that_of_pyproject_and_the_locks():
    rows = re.findall(r"^\| ([\w-]+) \| ([^|]*) \| ([^|]*) \|", TABLE, re.M)[1:]
    ours = locked("requirements.lock", "requirements-test.lock")
    assert {"python", "torch", "trl", "transformers"} <= {name.lower() for name, _, _ in rows}
    for name, supported, tested in rows:
        assert supported == asked()[name.lower()], name
        if name != "Python" and tested:
            assert tested == ours[name], name


def test_the_table_of_frameworks_is_what_the_tests_recorded():
    assert tested_page.PAGE.read_text(encoding="utf-8") == tested_page.rendered(
        tested_page.PAGE.read_text(encoding="utf-8")
    ), "python tests/docs/tested_page.py writes it again"


def test_the_recorded_releases_are_those_of_the_locks_and_checkouts():
    """Or the suite has to run again, with --record."""
    locks = [locked(path.name) for path in ROOT.glob("requirements*.lock")]
    own = [lock for lock in locks if "ms-swift" not in lock]  # it brings an older TRL
    for framework, suites in read_rows().items():
        name, entry = DISTRIBUTIONS.get(framework, framework), stated(framework)
        held = [lock[name] for lock in (locks if name == "ms-swift" else own) if name in lock]
        releases = {entry["version"]} if "commit" in entry else set(held)
        for suite, row in suites.items():
            assert files_of((framework, suite)), f"{suite} is gone"
            assert {row["version"]} == releases, suite
            assert row.get("commit", entry.get("commit")) == entry.get("commit"), suite


def test_every_framework_with_a_module_is_in_the_table():
    files = (ROOT / "src" / "bandpo" / "integrations").glob("*.py")
    frameworks = {file.stem for file in files if not re.match("verl_|common|_", file.stem)}
    assert frameworks <= {name.replace("-", "_") for name in tested_page.TITLES}
