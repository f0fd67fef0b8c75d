"""The panel of tokens as a person uses it."""

import json
import re

import pytest
from playwright.sync_api import expect

from bandpo.cli.app import app
from bandpo.explore.data import exported_page
from logged import NASTY, batch, lines

VIEW = "#tokens-view"
KINDS = ("freed", "held", "both", "neither")


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """A recorded batch and lines of docs/inspect.md, by name."""
    folder = tmp_path_factory.mktemp("logs")
    (folder / "batch").mkdir()
    (folder / "lines").mkdir()
    lines(folder / "lines" / "own.jsonl", completions=40)
    return {"batch": batch(24, 40, 0, 4).save(folder / "batch"), "lines": folder / "lines" / "own.jsonl"}


@pytest.fixture(scope="module")
def pages(logs, tmp_path_factory):
    """Addresses of exported pages of these logs, by name."""
    found = {}
    for name, path in logs.items():
        file = tmp_path_factory.mktemp("pages") / f"{name}.html"
        file.write_text(exported_page([path]), encoding="utf-8")
        found[name] = file.as_uri()
    return found


@pytest.fixture
def inspected(capsys):
    """What `bandpo inspect --json` says: arguments in, document out."""

    def run(*arguments):
        capsys.readouterr()
        app(args=["inspect", *map(str, arguments), "--json"], standalone_mode=False)
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def look(visit):
    """`visit`, and waits for the tokens in sight."""

    def open_page(address, **options):
        page = visit(address, **options)
        expect(page.locator(f"{VIEW} .t").first).to_be_attached()
        return page

    return open_page


def counts(page):
    return {kind: int(page.inner_text(f"[data-count={kind}]").replace(",", "")) for kind in KINDS}


def shown(page):
    """Text of each token made so far, in order."""
    return page.locator(f"{VIEW} .t").all_inner_texts()


@pytest.mark.parametrize("name", ["batch", "lines"])
def test_counts_are_those_of_inspect(look, pages, logs, inspected, name):
    page = look(pages[name])
    for text in ("0.05", "0.003"):
        page.fill("#tokens-a-radius", text)
        document = inspected(logs[name], "--rule", f"{{name: band, radius: {text}}}")
        expected = next(one for one in document["moves"] if one["to"] == f"Band KL {text}")
        assert counts(page) == {kind: expected[kind] for kind in KINDS}
        assert sum(counts(page).values()) == document["judged"]
        assert counts(page)["freed"] + counts(page)["held"] > 0
    page.select_option("#tokens-a-rule", "dcpo")
    page.fill("#tokens-b-high", "0.28")
    document = inspected(logs[name], "--epsilon-high", "0.28")
    expected = next(one for one in document["moves"] if one["to"] == "DCPO")
    assert counts(page) == {kind: expected[kind] for kind in KINDS}
    assert page.input_value("#b-high") == "0.28", "the section on the band follows"
    page.fill("#b-high", "0.2")
    assert page.input_value("#tokens-b-high") == "0.2", "and the other way"
    assert counts(page) != {kind: expected[kind] for kind in KINDS}


def test_places_and_the_same_share_are_those_of_inspect(look, pages, logs, inspected):
    page = look(pages["batch"])
    document = inspected(logs["batch"])
    places = next(one for one in document["places"] if one["rule"] == "Band KL 0.05")
    table = page.locator("#tokens-places table")
    texts = "rows => rows.map((row) => [...row.cells].map((cell) => cell.innerText))"
    rows = table.nth(1).locator("tbody tr").evaluate_all(texts)
    assert [(row[0], int(row[1])) for row in rows] == [(one["name"], one["clipped"]) for one in places["positions"]]
    for row, one in zip(rows, places["positions"], strict=True):
        assert float(row[3].rstrip("%")) == pytest.approx(100 * one["share_positive"], rel=0.01)
    page.select_option("#tokens-side", "b")
    expect(table.nth(0).locator("caption")).to_have_text("Where rule B clips, by text")
    radius = next(one["radius"] for one in document["same_share"] if one["divergence"] == "kl")
    said = page.inner_text("#match-share")
    assert float(re.search(r"a Band of radius (\S+) \(kl\)", said)[1]) == pytest.approx(radius, rel=1e-3)
    epsilon = next(one["epsilon"] for one in document["rules"] if one["rule"] == "Band KL 0.05")
    assert float(re.search(r"so does 1 ± (\S+)\.$", said)[1]) == pytest.approx(epsilon, rel=1e-3)


def test_colors_change_with_what_they_stand_for(look, pages):
    page = look(pages["lines"])

    def classes():
        return page.locator(f"{VIEW} .t").evaluate_all("spans => spans.map((span) => span.className)")

    verdicts = classes()
    assert {re.search(r" v\d", one)[0] for one in verdicts} == {" v0", " v1", " v2", " v3"}
    seen = {}
    for name in ("p", "ratio", "advantage", "entropy", "gap"):
        page.select_option("#tokens-color", name)
        seen[name] = classes()
        assert len({re.search(r" l\d+", one)[0] for one in seen[name] if " l" in one}) > 3
        for one, other in zip(verdicts, seen[name], strict=True):
            assert re.search(r" v\d", one)[0] == re.search(r" v\d", other)[0]
        assert len(page.locator("#tokens-scale .ticks span").all()) == 5
        assert any("less" in one for one in seen[name]) == (name in ("ratio", "advantage", "gap"))
    assert len({tuple(one) for one in seen.values()}) == 5
    assert page.locator("#tokens-color option[value=effect]").is_disabled(), "nobody logged slopes"
    page.select_option("#tokens-color", "verdict")
    assert classes() == verdicts
    page.evaluate("document.getElementById('tokens-a-radius-slider').focus()")
    page.keyboard.press("Home")
    assert classes() != verdicts, "a slider's key recolors"


def test_the_next_disagreement_by_a_key(look, pages):
    page = look(pages["batch"])
    marked = page.evaluate("[...document.querySelectorAll('#tokens-view .v1, #tokens-view .v2')].map((t) => t.token)")
    page.locator("#tokens-view").scroll_into_view_if_needed()
    page.keyboard.press("n")
    focused = page.locator(f"{VIEW} .t:focus")
    expect(focused).to_have_class(re.compile(r" v[12]"))
    first = page.evaluate("document.activeElement.token")
    assert first == min(marked)
    assert " clips it" in page.inner_text("#tokens-readout")
    page.keyboard.press("n")
    second = page.evaluate("document.activeElement.token")
    assert second == sorted(marked)[1]
    page.keyboard.press("p")
    assert page.evaluate("document.activeElement.token") == first
    page.keyboard.press("p")
    last = page.evaluate("document.activeElement.token")
    assert last >= max(marked), "round from the other end"
    expect(page).to_have_url(re.compile(rf"tokens\.at={last}\b"))
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.token") == last - 1
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.token") < last - 1
    page.locator("#chosen").focus()
    page.keyboard.type("n")
    assert page.input_value("#chosen").endswith("n"), "an input keeps its keys"
    assert page.evaluate("document.activeElement.id") == "chosen"
    page.locator("#tokens-a-radius").focus()
    page.keyboard.press("n")
    assert page.evaluate("document.activeElement.id") == "tokens-a-radius", "also one of this panel"
    page.locator("#tokens-next").focus()
    page.keyboard.press("Enter")
    expect(focused).to_have_count(1)


def test_rules_that_agree_are_said_to(look, pages):
    page = look(f"{pages['batch']}#a=clip&b=clip")
    page.click("#tokens-next")
    expect(page.locator("#tokens-found")).to_have_text("The rules agree on every token shown.")


def test_the_readout_follows_the_pointer(look, pages):
    page = look(pages["batch"])
    page.locator(f"{VIEW} .t").nth(40).hover()
    said = page.inner_text("#tokens-readout")
    for part in (
        "p of anchor",
        "ratio",
        "advantage",
        "entropy effect",
        "A allows ratios",
        "B allows ratios 0.8 to 1",
    ):
        assert part in said


def test_html_in_tokens_and_prompts_is_text(look, pages):
    page = look(pages["lines"])
    texts, markup = set(shown(page)), {"<script>alert(1)</script>", "<img␣src=x␣onerror=alert(1)>", "&amp;"}
    assert markup | {"\\u202e", "(empty)", "⏎", "⇥"} <= texts
    assert len(texts) == len(NASTY)
    assert page.locator("#tokens script, #tokens img").count() == 0
    assert page.locator(f"{VIEW} .special").first.inner_text() == "<|im_end|>"


def test_samples_of_one_prompt_are_aligned_by_position(look, pages):
    page = look(pages["batch"])
    assert page.locator(f"{VIEW} h3").count() == 4
    page.select_option("#tokens-prompt", label="2: What is 1?")
    expect(page.locator(f"{VIEW} h3")).to_have_text("Prompt 2, 6 completions")
    page.select_option("#tokens-layout", "aligned")
    expect(page.locator(f"{VIEW} .block .t").first).to_be_attached()
    lefts = page.evaluate("""() => {
      const [source] = opened.values(), found = {};
      document.querySelectorAll("#tokens-view .block:first-of-type .t").forEach((t) => {
        (found[source.positions[t.token]] ??= []).push(t.getBoundingClientRect().left);
      });
      return Object.entries(found);
    }""")
    assert len(lefts) > 8
    for _, places in lefts:
        assert max(places) - min(places) < 1
    assert len(lefts[0][1]) == 6, "all six completions begin there"
    expect(page).to_have_url(re.compile(r"tokens\.layout=aligned.*tokens\.prompt=1"))
    again = look(page.url)
    assert again.input_value("#tokens-layout") == "aligned"
    assert shown(again) == shown(page)


def test_a_long_log_is_made_where_it_comes_into_sight(look, tmp_path):
    batch(120, 60, 3, 2).save(tmp_path)
    (tmp_path / "page.html").write_text(exported_page([tmp_path / "batch-7.npz"]), encoding="utf-8")
    page = look((tmp_path / "page.html").as_uri())
    total = page.evaluate("[...opened.values()][0].size")
    before = page.locator(f"{VIEW} .t").count()
    assert 0 < before < total
    page.locator(VIEW).evaluate("(view) => (view.scrollTop = view.scrollHeight)")
    expect(page.locator(f"{VIEW} .t").nth(before + 1)).to_be_attached()
    page.keyboard.press("p")
    assert page.evaluate("document.activeElement.token") > total // 2


def test_what_could_not_be_read_is_said(look, logs, tmp_path):
    whole = logs["lines"].read_text()
    (tmp_path / "cut.jsonl").write_text(whole + '{"<b>": 1}\n' + whole[:50])
    (tmp_path / "page.html").write_text(exported_page([tmp_path / "cut.jsonl"]), encoding="utf-8")
    page = look((tmp_path / "page.html").as_uri())
    said = page.inner_text("#tokens-files")
    assert said.startswith("2 problems while reading")
    assert "cut.jsonl:41: has the unknown keys '<b>'; expected" in said
    assert "truncated?" in said
    assert page.locator(f"{VIEW} .t").count() > 100


def test_a_served_page_asks_for_the_tokens(look, served, logs):
    page = look(served(logs["batch"].parent))
    expect(page.locator("#tokens-counts")).to_contain_text("freed")
    assert any("data" in address for address in page.asked)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_fits_and_can_be_read(look, pages, width, scheme):
    page = look(pages["lines"], width=width, scheme=scheme)
    for color in ("verdict", "ratio", "p"):
        for layout in ("text", "aligned"):
            page.select_option("#tokens-color", color)
            page.select_option("#tokens-layout", layout)
            expect(page.locator(f"{VIEW} .t").first).to_be_attached()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = page.evaluate("""() => {
      const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
      const channel = (x) => (x / 255 <= 0.04045 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4);
      const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
      const over = (...colors) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const color of colors) {
          canvas.fillStyle = color;
          canvas.fillRect(0, 0, 1, 1);
        }
        return light(canvas.getImageData(0, 0, 1, 1).data);
      };
      const ground = getComputedStyle(document.body).backgroundColor;
      return [...document.querySelectorAll("#tokens-view .t")].map((t) => {
        const { color, backgroundColor } = getComputedStyle(t);
        const [a, b] = [over(ground, backgroundColor), over(ground, backgroundColor, color)].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
      });
    }""")
    assert min(contrasts) >= 4.5
