"""The explorer's page as a person uses it; the panel of tokens has a file of its own."""

import json
import math
import re

import pytest
import torch
from playwright.sync_api import expect

import bandpo
from bandpo.explore.page import PRESETS
from bandpo.lab.bandit import simulate
from bandpo.lab.metrics import StudyResult
from bandpo.lab.simulation import load_simulation
from conftest import HOSTILE, STUDY
from folders import make_run, metric_line
from helpers import NAMES

ENTROPY = "#run-plots svg[aria-label^=Entropy]"
FOCUSABLE = "a[href], button, input, select, textarea, summary, [tabindex='0']"


def slide(page, name, share):
    """Move a slider to a share of its length, as the pointer does."""
    page.locator(f"#{name}").evaluate(
        """(slider, share) => {
          slider.value = Math.round(Number(slider.max) * share);
          slider.dispatchEvent(new Event("input", { bubbles: true }));
        }""",
        share,
    )


def cells(page, table):
    """Rows of a table as texts."""
    return page.locator(f"#{table} tr").evaluate_all(
        "rows => rows.map((row) => [...row.cells].map((c) => c.innerText))"
    )


@pytest.mark.parametrize("name", NAMES)
def test_slider_and_number_give_the_bounds_of_the_package(visit, plain, name):
    page = visit(f"{plain}#a=band&a.divergence={name}&b=clip&p=0.05")
    probabilities = [float(row[0]) for row in cells(page, "table")[1:]]
    old = torch.tensor(probabilities, dtype=torch.float64).log()
    for share in (0.3, 0.61, 0.8):
        slide(page, "a-radius-slider", share)
        radius = float(page.locator("#a-radius").input_value())
        assert radius == page.evaluate("state.a.radius")
        found = torch.tensor(
            page.evaluate("state.chosen.map((p) => makeRule(state.a).bounds(Math.log(p)))"), dtype=torch.float64
        )
        bounds = bandpo.band(old, radius=radius, divergence=name)
        torch.testing.assert_close(found, torch.stack([bounds.lower, bounds.upper], -1), rtol=1e-6, atol=1e-6)
        shown = [[float(cell) for cell in row[1:3]] for row in cells(page, "table")[1:]]
        torch.testing.assert_close(torch.tensor(shown, dtype=torch.float64), found, rtol=1e-3, atol=1e-4)
    page.locator("#a-radius").fill("0.05")
    assert page.evaluate("state.a.radius") == 0.05
    steps = float(page.locator("#a-radius-slider").input_value())
    assert 1e-4 * (2 / 1e-4) ** (steps / 1000) == pytest.approx(0.05, rel=0.01)


def test_the_simulator_agrees_with_the_package(visit, plain):
    changes = {"prompts": 96, "rollouts": 4, "updates": 8, "learning_rate": 1.2}  # steps that tell the rules apart
    asked = "".join(f"&sim.{name}={value}" for name, value in changes.items())
    page = visit(f"{plain}#a=band&b=clip&p=0.05&sim=bleeds{asked}")
    page.locator("#sim-run").click()
    expect(page.locator("#sim-status")).to_contain_text("rollouts in", timeout=120_000)
    head, *rows = cells(page, "sim-table")
    column = head.index("Entropy of neutral tokens (nats)")
    preset = PRESETS["bleeds"]
    settings = load_simulation(preset.simulation)
    rules = {label: settings.rules[label] for label in preset.labels}
    ours = simulate(settings.model_copy(update=changes | {"rules": rules}))
    assert [row[0] for row in rows] == list(preset.labels)
    for row, run in zip(rows, ours.runs.values(), strict=True):
        error = math.sqrt(2) * run.entropy_neutral.error[-1]
        assert abs(float(row[column]) - run.entropy_neutral.mean[-1]) < 4 * error + 1e-3


def test_a_run_is_shown_with_its_numbers(visit, exported):
    page = visit(exported)
    study = page.locator("#run-choice input").last
    page.locator("#run-sources summary").click()
    assert study.is_checked()
    study.uncheck()
    page.get_by_label("runs/band-0", exact=True).check()
    assert page.locator("#run-legend").inner_text().strip() == "Band KL 0.05"
    page.locator("#run-at").fill("23")
    head, row = cells(page, "run-table")
    shown = dict(zip(head[1:], row[1:], strict=True))
    expected = json.loads(metric_line(23))
    assert float(shown["Entropy (nats per token)"]) == pytest.approx(expected["entropy"], rel=1e-3)
    assert float(shown["Clipped: A > 0, above upper"]) == pytest.approx(expected["band/clip_fraction_high"])
    assert float(shown["Mean reward of the rollout"]) == pytest.approx(
        json.loads(metric_line(21))["reward"], rel=1e-3
    )
    assert page.locator("#run-alarms-title").inner_text() == "Alarms: 1"
    assert page.locator("#run-plots .mark").count() == 5
    assert "update 9: entropy_low fired, cleared at 17" in page.locator("#run-alarms").text_content()
    assert page.locator("#run-clipped figure").count() == 2
    assert page.locator("#run-ledger figure").count() == 1


def test_seeds_are_bands_and_methods_can_be_taken_away(visit, exported):
    page = visit(exported)
    page.locator("#run-sources summary").click()
    page.locator("#run-none").click()
    assert page.locator("#run-status").inner_text() == "Nothing is shown."
    for name in ("band-0", "band-1", "clip-0"):
        page.get_by_label(f"runs/{name}", exact=True).check()
    labels = [text.strip() for text in page.locator("#run-legend li").all_inner_texts()]
    assert labels == ["Band KL 0.05 (2 seeds)", "Clip 0.2/0.2"]
    entropy = page.locator(ENTROPY)
    assert (entropy.locator("path.area").count(), entropy.locator("path.line").count()) == (1, 2)
    assert "smallest to the largest seed" in page.locator("#run-note").inner_text()
    head, band, _ = cells(page, "run-table")
    low, high = (json.loads(metric_line(40, seed))["entropy"] for seed in (0, 1))
    mean, rest = band[head.index("Entropy (nats per token)")].split(" ", 1)
    assert float(mean) == pytest.approx((low + high) / 2, rel=1e-3)
    assert [float(x) for x in rest.strip("()").split(" to ")] == pytest.approx([low, high], rel=1e-3)
    page.locator("#run-legend input").first.uncheck()
    assert entropy.locator("path.line").count() == 1
    expect(page).to_have_url(re.compile("run.hidden=Band"))
    other = visit(page.url)
    assert other.locator(ENTROPY).locator("path.line").count() == 1
    assert other.locator("#run-legend input").first.is_checked() is False


def test_the_study_shows_what_it_measured(visit, exported):
    page = visit(exported)
    study = StudyResult.load(STUDY)
    methods = [text.strip().rpartition(" (")[0] for text in page.locator("#run-legend li").all_inner_texts()]
    assert methods == list(study.study.methods)
    page.locator("#saving-hours").fill("1000")
    page.locator("#saving-price").fill("3")
    rows = {row[0]: row[1:] for row in cells(page, "saving-table")[1:]}
    hours, money, ratio, reached = rows["BandKL"]
    assert reached == "5 of 5"
    assert float(ratio.split(" [")[0]) < 1
    assert float(hours.split(" [")[0]) == pytest.approx(1000 * (1 - float(ratio.split(" [")[0])), rel=1e-3)
    assert float(money.split(" [")[0]) == pytest.approx(3 * float(hours.split(" [")[0]), rel=1e-3)
    assert rows["DCPO"][0] == "no difference shown"
    expect(page).to_have_url(re.compile("saving.hours=1000"))


def test_html_in_names_and_alarms_is_text(visit, exported):
    page = visit(exported)
    page.locator("#run-sources summary").click()
    page.locator("#run-all").click()
    expect(page.locator("#run-status")).to_contain_text("runs; updates")
    assert "onerror=alert(1)" in page.locator("#run-choice").inner_text()
    assert HOSTILE in page.locator("#run-alarms").text_content()
    assert page.locator("img").count() == 0
    assert page.locator("#run script, #tokens script").count() == 0


def test_an_exported_page_asks_for_nothing(visit, exported):
    page = visit(exported, offline=True)
    page.locator("#run-sources summary").click()
    page.locator("#run-all").click()
    page.locator("#sim-run").click()
    expect(page.locator("#sim-table tbody tr")).to_have_count(3)
    asked = [address for address in page.asked if not address.startswith("blob:")]
    assert asked == [exported]
    with pytest.raises(Exception, match="Failed to fetch"):
        page.evaluate("fetch('http://127.0.0.1:9/')")
    assert any("Content Security Policy" in text for text in page.wrong)
    page.wrong.clear()


def test_a_served_page_asks_its_own_server_alone(visit, served, runs):
    address = served(runs)
    page = visit(address)
    expect(page.locator("#run-plots figure")).to_have_count(5)
    assert len(page.asked) > 1
    for asked in page.asked:
        assert asked.startswith((address, "blob:")), asked
    other = served(runs)
    with pytest.raises(Exception, match="Failed to fetch"):
        page.evaluate(f"fetch('{other}')")
    assert any("Content Security Policy" in text for text in page.wrong)
    page.wrong.clear()


def test_a_run_that_goes_on_is_followed(visit, served, tmp_path):
    path = make_run(tmp_path / "live", 8, status="running")
    page = visit(served(path))
    expect(page.locator("#run-status")).to_have_text("1 run, 1 in progress; updates 8")
    with (path / "metrics.jsonl").open("a") as stream:
        stream.write(metric_line(9) + metric_line(10))
    expect(page.locator("#run-status")).to_have_text("1 run, 1 in progress; updates 10")
    assert any("since=" in address for address in page.asked)
    (path / "status.json").write_text('{"status": "finished"}')
    expect(page.locator("#run-status")).to_have_text("1 run; updates 10")


def test_a_run_that_is_gone_is_a_sentence(visit, served, tmp_path):
    make_run(tmp_path / "runs" / "a", 8)
    gone = make_run(tmp_path / "runs" / "b", 8)
    address = served(tmp_path / "runs")
    page = visit(f"{address}#a=band&b=clip&run.shown=run:runs/a")
    page.locator("#run-sources summary").click()
    gone.rename(tmp_path / "elsewhere")
    page.get_by_label("runs/b").check()
    page.locator("#run-bad", has_text="is not a run directory").wait_for()
    assert page.locator("#run-plots figure").count() == 5
    page.wrong.clear()  # the browser notes the answer 422


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_can_be_read(visit, exported, width, scheme):
    page = visit(exported, width, scheme)
    page.locator("details").evaluate_all("all => all.forEach((one) => (one.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colors = page.evaluate(
        """() => {
          const numbers = (color) => color.match(/[\\d.]+/g).slice(0, 3).map(Number);
          const style = getComputedStyle(document.body);
          const line = (name) => getComputedStyle(document.querySelector(`.line.${name}`)).stroke;
          return [style.backgroundColor, style.color, line("c0"), line("c1")].map(numbers);
        }"""
    )
    background, ink, *lines = map(luminance, colors)
    assert (background > 0.8) == (scheme == "light")
    assert contrast(background, ink) >= 7
    assert min(contrast(background, line) for line in lines) >= 3


def luminance(color):
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_the_keyboard_reaches_everything(visit, exported):
    page = visit(exported)
    page.locator("details").evaluate_all("all => all.forEach((one) => (one.open = true))")
    page.evaluate(
        f"""() => {{
          window.reached = new Set();
          document.addEventListener("focusin", ({{ target }}) => window.reached.add(target));
          window.wanted = [...document.querySelectorAll("{FOCUSABLE}")]
            .filter((one) => one.checkVisibility() && !one.disabled);
        }}"""
    )
    count = page.evaluate("wanted.length")
    assert count > 60
    for _ in range(count + 5):
        page.keyboard.press("Tab")
    missed = page.evaluate("wanted.filter((one) => !reached.has(one)).map((one) => one.outerHTML.slice(0, 120))")
    assert missed == []


def test_keys_move_what_the_pointer_moves(visit, exported):
    page = visit(exported)
    page.locator("#a-radius-slider").focus()
    before = page.evaluate("state.a.radius")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("state.a.radius") > before
    assert page.evaluate("document.activeElement.id") == "a-radius-slider"
    page.locator("#run-at-slider").focus()
    page.keyboard.press("Home")
    assert page.locator("#run-at").input_value() == "0"
    page.keyboard.press("End")
    page.locator("nav a", has_text="Runs").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "run"
