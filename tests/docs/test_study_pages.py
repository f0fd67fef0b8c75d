"""The pages of the studies, and the summary of results: what is generated is current, and no study is left out."""

import re

import pytest
import study_pages
from PIL import Image
from study_pages import PAGES, PICTURE, STUDIES

from helpers import ROOT

RESULTS = ROOT / "docs" / "results.md"
NUMBER = re.compile(r"(?<![\w.])[+-]?\d*\.\d+")


def page(name):
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def test_every_result_has_a_page_and_every_page_a_line_in_the_summary():
    studies = {path.parent.name for path in ROOT.glob("results/*/metrics.json")}
    assert studies == set(STUDIES) == {path.stem for path in PAGES.glob("*.md")}
    assert (
        set(re.findall(r"^\| \[[^]]+\]\(studies/([\w-]+)\.md\)", RESULTS.read_text(encoding="utf-8"), re.M))
        == studies
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_the_tables_are_those_of_the_metrics(name):
    assert page(name) == study_pages.rendered(name, page(name)), "python tests/docs/study_pages.py writes it again"


@pytest.mark.slow
def test_the_picture_shows_the_metrics():
    with Image.open(PICTURE) as image:
        assert image.text["Description"] == study_pages.picture_data(), (
            "python tests/docs/study_pages.py draws it again"
        )


def test_the_summary_is_short_and_its_picture_small():
    text = RESULTS.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert text.count("![") == 1
    assert PICTURE.stat().st_size < 80_000


@pytest.mark.parametrize("name", STUDIES)
def test_the_summary_states_no_number_that_the_page_does_not(name):
    line = next(
        line
        for line in RESULTS.read_text(encoding="utf-8").splitlines()
        if re.match(rf"\| \[[^]]+\]\(studies/{name}\.md", line)
    )
    known = {number.lstrip("+") for number in NUMBER.findall(page(name))}
    assert {number.lstrip("+") for number in NUMBER.findall(line)} - known == set()


def test_a_page_without_its_block_is_refused():
    with pytest.raises(ValueError, match=r"many.md should have one block <!-- facts -->"):
        study_pages.rendered("many", "# many\n")
