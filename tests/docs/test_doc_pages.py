"""README and docs: links and anchors lead somewhere, Python blocks run, commands parse, generated pages are current.

A Python block that is not run says why in a comment on the line before it: <!-- not run: it needs a trainer -->.
A block right below one, after the comment <!-- prints -->, is what it prints.
"""

import re
import shlex
from typing import NamedTuple

import commands_page
import pytest
from typer.main import get_command

import bandpo
from bandpo.cli.app import app
from helpers import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# Blocks of pages that are run elsewhere, or that cannot be run in a test.
RUN_ELSEWHERE = {
    "README.md": "tests/test_public_api.py runs the one that prints; the others are fragments of a script",
    "docs/divergences.md": "tests/core/test_divergences.py",
    "docs/entropy.md": "minutes, and the results of a study",
}
SLOW = {"docs/lab.md", "docs/tutorial.md"}
SYNOPSIS = re.compile(r"\s\[|\.\.\.|\s\|\s|\$")
FENCE = re.compile(r"^(```+|~~~+)(.*?)\n(.*?)^\1[ \t]*$", re.M | re.S)


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line before it."""

    language: str
    text: str
    before: str
    line: int


def blocks(text):
    for match in FENCE.finditer(text):
        before = text[: match.start()].rstrip().rpartition("\n")[2]
        yield Block(match[2].strip(), match[3], before, text[: match.start()].count("\n") + 1)


def prose(text):
    """The text without code."""
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", FENCE.sub("", text), flags=re.S)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    found = {}
    for heading in re.findall(r"^#{1,6}\s+(.*?)\s*#*$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {slug if i == 0 else f"{slug}-{i}" for slug, n in found.items() for i in range(n + 1)}


def broken_links(page):
    """What is wrong with the relative links of a page."""
    text = prose(page.read_text(encoding="utf-8"))
    for target in re.findall(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else (page.parent / path).resolve()
        if not file.exists():
            yield f"{target}: there is no such file"
        elif not file.is_relative_to(ROOT.resolve()):
            yield f"{target}: outside the project"
        elif anchor and anchor not in anchors(file):
            yield f"{target}: no heading makes this anchor"


@pytest.mark.parametrize("name", NAMES)
def test_every_link_and_anchor_leads_somewhere(name):
    assert list(broken_links(ROOT / name)) == []


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = {(ROOT / "docs" / target).resolve() for target in re.findall(r"\]\(([^)#]+\.md)", index)}
    pages = {page.resolve() for page in PAGES if page.is_relative_to(ROOT / "docs") and page.name != "index.md"}
    assert {str(page.relative_to(ROOT.resolve())) for page in pages - listed} == set()


def test_the_api_page_has_every_public_name():
    names = re.findall(r"^::: bandpo\.(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M)
    assert sorted(names) == sorted(bandpo.__all__)


def python_blocks():
    """Each Python block that can be run, with the lines that the page says it prints, if it does."""
    for page, name in zip(PAGES, NAMES, strict=True):
        if name in RUN_ELSEWHERE:
            continue
        found = list(blocks(page.read_text(encoding="utf-8")))
        for block, after in zip(found, [*found[1:], Block("", "", "", 0)], strict=False):
            if block.language == "python" and not re.fullmatch(r"<!-- not run: .+ -->", block.before):
                prints = after.before == "<!-- prints -->"
                shown = [line.rstrip() for line in after.text.splitlines()] if prints else None
                marks = [pytest.mark.slow] if name in SLOW else []
                yield pytest.param(name, block, shown, id=f"{name}:{block.line}", marks=marks)


@pytest.mark.parametrize(("name", "block", "shown"), python_blocks())
def test_python_blocks_run(name, block, shown, monkeypatch, tmp_path, capsys):
    """Blocks of a page do not share variables."""
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    capsys.readouterr()
    exec(compile(block.text, f"{name}:{block.line}", "exec"), {"__name__": "example"})
    if shown is not None:
        assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == shown


def bandpo_commands():
    """Every `bandpo ...` line of a shell block, as words; a synopsis, with its brackets and dots, is none."""
    for page, name in zip(PAGES, NAMES, strict=True):
        if name == "docs/commands.md":
            continue
        for block in blocks(page.read_text(encoding="utf-8")):
            if block.language not in ("", "sh", "bash", "shell"):
                continue
            text = block.text.replace("\\\n", " ")
            for i, line in enumerate(text.splitlines(), block.line + 1):
                command = re.sub(r"\s{2,}\S.*$", "", line.strip())  # without what is said of it
                if command.startswith("bandpo ") and not re.search(SYNOPSIS, command):
                    yield pytest.param(command, id=f"{name}:{i}")


@pytest.mark.parametrize("command", bandpo_commands())
def test_every_command_of_the_docs_parses(command):
    words = shlex.split(command)[1:]
    group = get_command(app)
    while words and hasattr(group, "commands") and not words[0].startswith("-"):
        assert words[0] in group.commands, command
        group, words = group.commands[words[0]], words[1:]
    if not hasattr(group, "commands"):
        group.make_context("bandpo", list(words))


@pytest.mark.slow
def test_the_page_of_commands_is_what_help_prints():
    assert commands_page.PAGE.read_text(encoding="utf-8") == commands_page.render(), (
        "python tests/docs/commands_page.py writes it again"
    )


def test_the_page_of_commands_names_a_page_for_each():
    names = [" ".join(words) for words in commands_page.commands(get_command(app))]
    assert sorted(names) == sorted(commands_page.PAGES)
