"""docs/architecture.md: a module imports from its own folder, and from those that the table lists."""

import ast
import re

import pytest

from helpers import ROOT

PACKAGE = ROOT / "src" / "bandpo"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
GROUND = "(ground floor)"


def floors():
    """Folder -> the folders that it may import from."""
    rows = re.findall(r"^\| (\(ground floor\)|`\w+`) \|.*\| (.*) \|$", PAGE, re.M)
    return {name.strip("`"): {*re.findall(r"`(\w+)`", allowed), GROUND} for name, allowed in rows}


def folder_of(module):
    """The folder of a module below bandpo, by its dotted name without 'bandpo.'."""
    first = module.partition(".")[0]
    return first if (PACKAGE / first).is_dir() else GROUND


def imported(path):
    """Every module of the package that a file imports, lazily too; relative imports stay in their folder."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("bandpo.") for alias in node.names if alias.name.startswith("bandpo.")
            )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            if node.module == "bandpo":
                yield from (alias.name for alias in node.names)
            elif node.module.startswith("bandpo."):
                yield node.module.removeprefix("bandpo.")


@pytest.mark.slow
def test_modules_import_only_what_the_page_allows():
    allowed = floors()
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and list(p.glob("*.py"))} - {"recipes", "studies"}
    assert set(allowed) - {GROUND} == folders - {"simulations"}, "every folder has a row"
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        home = folder_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
        if home == "cli" or (path.parent == PACKAGE and path.stem in ("__init__", "__main__")):
            continue
        for module in imported(path):
            if folder_of(module) not in allowed[home] | {home}:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert wrong == []


def test_the_files_that_the_page_names_exist():
    named = re.findall(r"`((?:core|integrations|training|cli|tests|examples)/\w+)(?:\.\w+)?(?:\.py)?`", PAGE)
    assert len(named) > 8
    for name in named:
        if "NAME" not in name:
            root = ROOT if name.startswith(("tests", "examples")) else PACKAGE
            assert (root / f"{name}.py").exists(), name
