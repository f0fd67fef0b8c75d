"""The report of a run and of several: complete, offline, and safe against what a model may write."""

import json
import math
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch

from bandpo import Band, Clip
from bandpo.files import read_lines
from bandpo.report.pages import plot_bounds, write_report
from helpers import TINY

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \u202egnp.exe </details></main> | a | b |"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run with recorded batches, and hostile text among its completions."""
    from rich.console import Console

    from bandpo.runs.config import load_config
    from bandpo.runs.job import run_training

    folder = tmp_path_factory.mktemp("report")
    config = load_config(
        "scratch",
        [
            *TINY,
            "train.max_steps=16",
            "train.generation_batch_size=32",
            "train.per_device_train_batch_size=8",
            "train.learning_rate=3e-3",
            "train.warmup_steps=0",
            "train.report_to=[]",
            "rule.radius=0.0001",
            "task.heldout=4",
            "record.batches=2",
        ],
    )
    torch.manual_seed(0)
    run_training(config, folder / "run", Console(quiet=True), command=["bandpo", "train", "scratch"])
    log = folder / "run" / "eval" / "after" / "samples.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows[0]["completions"][0]["text"] = HOSTILE
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "run"


class Page(HTMLParser):
    """Tags that are open, attributes that load something, and the text."""

    VOID = frozenset(("meta", "link", "br", "img", "hr", "path", "line", "circle", "rect", "use", "polyline"))

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.loads, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [
            v for k, v in attributes if k in ("src", "href", "xlink:href", "data") and not v.startswith("#")
        ]
        self.loads += [k for k, _ in attributes if k.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.slow
def test_the_page_is_whole_offline_and_runs_nothing(run, tmp_path):
    html = write_report([run], tmp_path).read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert "script" not in page.tags
    assert page.loads == []
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import", html)
    assert "alert(1)" in "".join(page.text)  # shown, not run
    assert "\u202e" not in html
    assert len(html) < 3_000_000
    assert "default-src 'none'; style-src 'unsafe-inline'" in html
    assert 'name="viewport"' in html
    assert "@media print" in html
    assert "prefers-color-scheme: dark" in html
    assert page.tags.count("svg") >= 6


@pytest.mark.slow
def test_the_page_says_what_the_run_left(run, tmp_path):
    text = " ".join("".join(Page(write_report([run], tmp_path).read_text(encoding="utf-8")).text).split())
    summary = json.loads((run / "summary.json").read_text())
    assert f"{summary['before']['metrics']['entropy']['mean']:.3f}" in text
    assert "bandpo train scratch" in text
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["trl"] in text
    assert len(list((run / "batches").glob("batch-*.npz"))) == 2
    assert "Which tokens, and why" in text
    assert "No recorded token had an advantage" not in text
    assert "Which side of the rule moved entropy, by how much, on which tokens" in text
    assert "The tokens that moved most, under the run's own rule" in text
    assert "have no ledger" not in text
    for step in (1, 5, 9, 13):
        assert f"rollout before update {step}" in text
    clipped = max(row["band/clip_fraction"] for row in read_lines(run / "metrics.jsonl"))
    assert clipped > 0


@pytest.mark.slow
def test_recorded_tokens_give_the_figures_that_were_logged(run):
    """The update's only micro-batch is kept whole, so its counts are those of metrics.jsonl."""
    from bandpo.report.why import outside
    from bandpo.training.batches import read_batches

    rows = {row["step"]: row for row in read_lines(run / "metrics.jsonl")}
    batches = read_batches(run / "batches")
    assert [batch.step for batch in batches] == [8, 16]
    for batch in batches:
        found, row = outside(Band(0.0001), batch), rows[batch.step]
        assert batch.mask.shape[0] == 8
        assert found.clipped.sum() / batch.mask.sum() == pytest.approx(row["band/clip_fraction"])
        assert found.above.sum() / batch.mask.sum() == pytest.approx(row["band/out_of_band_fraction_high"])
        assert batch.entropy[batch.mask].mean() == pytest.approx(row["entropy"], rel=1e-4)
        ratio = (batch.logps - batch.old_logps)[batch.mask].max()
        assert ratio == pytest.approx(math.log(row["band/ratio_max"]), abs=1e-5)
    assert sum(outside(Band(0.0001), batch).clipped.sum() for batch in batches) > 0


@pytest.mark.slow
def test_pictures_and_markdown_beside_it(run, tmp_path):
    write_report([run], tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    named = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", markdown)
    assert {"curves.png", "bounds.png"} <= set(named)
    for name in named:
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


@pytest.mark.slow
def test_several_runs_need_a_place(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    with pytest.raises(ValueError, match="--output"):
        write_report([run, other])
    html = write_report([run, other], tmp_path / "both").read_text(encoding="utf-8")
    assert "other" in html
    with pytest.raises(ValueError, match="empty"):
        write_report([])
    with pytest.raises(ValueError, match="nowhere"):
        write_report([tmp_path / "nowhere"])


@pytest.mark.slow
def test_a_run_that_is_not_finished_has_a_report_too(run, tmp_path):
    early = tmp_path / "early"
    shutil.copytree(run, early)
    (early / "summary.json").unlink()
    shutil.rmtree(early / "eval")
    shutil.rmtree(early / "batches")
    Page(write_report([early]).read_text(encoding="utf-8"))


@pytest.mark.slow
def test_bounds_are_drawn(tmp_path):
    for name in ("bounds.png", "bounds.svg"):
        plot_bounds({"Clip": Clip(), "Band": Band()}, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5000


def a_study(name="demo", sweep=None):
    """The content of metrics.json of a study of three methods with three seeds; method i ends at .3 + .1 i."""
    methods = {
        "GRPO": {"rule": {"name": "clip"}},
        "SAPO": {"rule": {"name": "trl"}, "train": {"loss_type": "sapo"}},
        "BandKL": {"rule": {"name": "band", "radius": 0.05}},
    }
    points = [{"rule.radius": value} for value in sweep["rule.radius"]] if sweep else [{}]
    runs = []
    for point in points:
        for i, (method, own) in enumerate(methods.items()):
            for seed in range(3):
                runs.append(
                    {
                        "method": method,
                        "point": point,
                        "seed": seed,
                        "status": "finished",
                        "command": f"bandpo train scratch seed={seed} --output runs/{method}/{seed}",
                        "commit": "abc",
                        "rule": own["rule"],
                        "seconds": 60,
                        "stopped_by": None,
                        "updates_per_rollout": 4,
                        "alarms": [],
                        "rollouts": {
                            "step": [1, 5, 9],
                            "reward": [0.1, 0.2 + 0.01 * seed, 0.3 + 0.1 * i],
                            "tokens": [100, 200, 300],
                            **{name: [0.0, 0.0, 0.0] for name in ("uniform", "length", "truncated")},
                        },
                        "updates": {
                            "bin": 4,
                            **{name: [None, None, None] for name in ("divergence", "grad_norm")},
                            "step": [4, 8, 12],
                            "entropy": [2.0, 1.0, 0.5],
                            "clip_high": [0.0, 0.01, 0.02],
                            "clip_low": [0.0, 0.01, None],
                            "ratio_max": [1.0, 2.0, 3.0] if method != "SAPO" else [None, None, None],
                            "ratio_min": [1.0, 0.5, 0.1] if method != "SAPO" else [None, None, None],
                            "seconds": [1, 2, 3],
                        },
                        "evaluation": {
                            when: {
                                "samples": 4,
                                "temperature": 1.0,
                                "correct": [1, 2, i, seed],
                                "greedy": [1, 0, 1, 0],
                                **dict.fromkeys(("entropy", "length", "truncated"), 0.5),
                            }
                            for when in ("before", "after")
                        },
                    }
                )
    return {
        "format": 1,
        "name": name,
        "study": {
            "description": "Three methods",
            "recipe": "scratch",
            "methods": methods,
            "reference": "GRPO",
            "metric": "mean",
            "seeds": [0, 1, 2],
            "sweep": sweep or {},
        },
        "environment": {
            "python": "3.11",
            "packages": {"torch": "2.13.0"},
            "commit": "abc",
            "platform": "Linux",
            "gpus": [],
            "processor": "AMD EPYC",
            "cores": 2,
            "workers": 2,
            "threads": 1,
        },
        "calibration": {
            "clip as Band": {
                "keys": ["rule.low", "rule.high"],
                "value": 0.25,
                "metric": "band/clip_fraction",
                "matches": "BandKL",
                "target": 0.06,
                "reached": 0.061,
            },
            "Band as GRPO": {"pilots": []},
        },
        "runs": runs,
    }


def text_of(path):
    return " ".join(" ".join(Page(path.read_text(encoding="utf-8")).text).split())


@pytest.mark.slow
def test_a_study_needs_its_metrics_alone(tmp_path):
    file = tmp_path / "metrics.json"
    metrics = a_study()
    metrics["runs"][-1]["status"] = "failed"
    metrics["runs"][-1]["error"] = "no space left"
    file.write_text(json.dumps(metrics))
    text = text_of(write_report([file]))
    # Method i is right in 3 + i + seed of 16 samples; the last seed of BandKL failed.
    assert "GRPO 3 0.250 [0.095, 0.405]" in text.replace("\xa0", " ")
    assert "BandKL (1 failed) 2 0.344" in text
    assert "+0.125 [+0.125, +0.125]" in text.replace("\xa0", " ")
    for said in ("mean@4", "minus GRPO", "no space left", "bandpo train scratch seed=2 --output runs/SAPO/2"):
        assert said in text
    for said in ("rule.low=0.25, rule.high=0.25", "AMD EPYC 2 cores", "Study demo"):
        assert said in text.replace("\xa0", " ")
    assert "to come" not in text
    markdown = (tmp_path / "report.md").read_text()
    assert "| GRPO | 3 | 0.250 [0.095, 0.405] | - |" in markdown
    assert {p.name for p in tmp_path.glob("*.png")} == {"bounds.png", "curves.png", "differences.png", "regions.png"}


@pytest.mark.slow
def test_a_study_that_has_not_begun_has_a_report(tmp_path):
    metrics = a_study()
    metrics["environment"] = {}
    metrics["runs"] = [
        {key: run[key] for key in ("method", "point", "seed")} | {"status": "waiting"} for run in metrics["runs"]
    ]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert "9 of 9 runs are missing" in text_of(write_report([tmp_path]))


@pytest.mark.slow
def test_a_sweep_and_studies_beside_runs(run, tmp_path):
    swept, other = tmp_path / "a.json", tmp_path / "b.json"
    swept.write_text(json.dumps(a_study("swept", {"rule.radius": ["0.01", "0.05"]})))
    other.write_text(json.dumps(a_study("other")))
    html = write_report([swept, other, run], tmp_path / "all").read_text(encoding="utf-8")
    page = Page(html)
    text = " ".join(" ".join(page.text).split())
    assert "Scores, rule.radius = 0.01" in text
    assert "Study swept: Results" in text
    assert (tmp_path / "all" / "sweep.png").exists()
    assert (tmp_path / "all" / "study2-curves.png").exists()
    assert (tmp_path / "all" / "runs-curves.png").exists()
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', html)) <= set(ids)


def test_curves_are_those_of_their_point():
    from bandpo.lab.metrics import StudyResult
    from bandpo.report.study_page import study_records

    metrics = a_study(sweep={"rule.radius": ["0.01", "0.05"]})
    for run in metrics["runs"]:
        run["rollouts"]["reward"] = [float(run["point"]["rule.radius"])] * 3
    metrics["runs"][0]["status"] = "failed"
    result = StudyResult.parse(metrics)
    for value, count in (("0.01", 8), ("0.05", 9)):
        records = study_records(result, {"rule.radius": value})
        assert len(records) == count
        assert {y for record in records for _, y in record.series["reward"]} == {float(value)}
        assert records[-1].series["clip_fraction_low"] == [(4, 0.0), (8, 0.01)]  # the last was not a number


def test_what_is_no_study_is_named(tmp_path):
    for content, said in (("{", "damaged"), ("[]", "format"), ('{"format": 99}', "format")):
        (tmp_path / "metrics.json").write_text(content)
        with pytest.raises(ValueError, match=said):
            write_report([tmp_path])


@pytest.mark.slow
def test_runs_that_differ_in_the_seed_alone_are_one_curve(run, tmp_path):
    from bandpo.report.run_page import run_sections

    for name, change in (("one", ("\nseed: 0", "\nseed: 1")), ("two", ("radius: 0.0001", "radius: 0.2"))):
        shutil.copytree(run, tmp_path / name)
        config = tmp_path / name / "config.yaml"
        assert change[0] in config.read_text()
        config.write_text(config.read_text().replace(*change))
    results, curves, *_ = run_sections([run, tmp_path / "one", tmp_path / "two"])
    assert [row[:2] for row in results.blocks[0].cells] == [["Band KL 0.0001", "2"], ["Band KL 0.2", "1"]]
    lines = {line.label: line for line in curves.blocks[0].picture.panels[0].lines}
    assert set(lines) == {"Band KL 0.0001", "Band KL 0.2"}
    assert lines["Band KL 0.0001"].low == lines["Band KL 0.0001"].y  # two equal runs: no spread
    assert lines["Band KL 0.2"].low is None
    config = tmp_path / "two" / "config.yaml"
    config.write_text((run / "config.yaml").read_text().replace("learning_rate: 0.003", "learning_rate: 0.1"))
    results, *_ = run_sections([run, tmp_path / "one", tmp_path / "two"])
    assert [row[:2] for row in results.blocks[0].cells] == [
        ["Band KL 0.0001, run", "2"],
        ["Band KL 0.0001, two", "1"],
    ]


def test_curves_have_the_interval_over_seeds():
    from bandpo.report.curves import RunRecord, curves_pictures

    empty = {key: [] for key in ("entropy", "clip_fraction_high", "clip_fraction_low", "ratio_max", "ratio_min")}
    values = [[0.2, 0.5], [0.4, 0.7], [0.6, 0.6]]
    records = [
        RunRecord("A", seed, {**empty, "reward": [(1, own[0]), (5, own[1])]}) for seed, own in enumerate(values)
    ]
    (picture,) = curves_pictures([("", records)])
    (line,) = picture.panels[0].lines
    assert line.y == pytest.approx([0.4, 0.6])
    half = 4.302653 * 0.2 / 3**0.5  # t with two degrees of freedom
    assert line.high[0] == pytest.approx(0.4 + half, rel=1e-5)
    assert line.low[0] == 0  # a reward is not negative
    ratios = [{**empty, "reward": [], "ratio_max": [(1, 10.0**power)]} for power in (0, 1, 2)]
    (picture,) = curves_pictures([("", [RunRecord("A", seed, own) for seed, own in enumerate(ratios)])])
    (line,) = picture.panels[0].lines
    assert line.y == pytest.approx([10])
    assert line.high[0] == pytest.approx(10 ** (1 + 4.302653 / 3**0.5), rel=1e-5)


def test_many_methods_have_a_panel_each():
    from bandpo.report.curves import CROWDED, RunRecord, curves_pictures

    def pictures(methods):
        empty = {key: [] for key in ("entropy", "clip_fraction_high", "clip_fraction_low", "ratio_max", "ratio_min")}
        return curves_pictures(
            [
                (
                    "",
                    [
                        RunRecord(f"M{m}", seed, {**empty, "reward": [(1, m + seed)]})
                        for m in methods
                        for seed in (0, 1)
                    ],
                )
            ]
        )

    (few,) = pictures(range(CROWDED))
    assert all(line.high for line in few.panels[0].lines)
    together, each = pictures(range(CROWDED + 1))
    assert not any(line.high for line in together.panels[0].lines)
    assert [panel.title for panel in each.panels] == [f"M{m}" for m in range(CROWDED + 1)]
    *others, own = each.panels[2].lines
    assert (own.y, own.style, len(others)) == ([2.5], 2, CROWDED)
    assert own.high[0] == pytest.approx(2.5 + 12.7062 * 0.5, rel=1e-4)
    assert sorted(line.y[0] for line in others) == [0.5, 1.5, 3.5, 4.5, 5.5, 6.5]
    assert all(line.style is None and line.high is None for line in others)
    assert list(each.legend) == ["other methods"]


def test_long_curves_are_averaged():
    from bandpo.report.drawing import averaged

    points = [(step, 2 * step) for step in range(1, 101)]
    short = averaged(points, 50)
    assert short[:2] == [(1.5, 3.0), (3.5, 7.0)]
    assert len(short) == 50
    assert averaged([(1, 2)]) == [(1, 2)]


def test_of_a_long_completion_the_disputed_stretch_is_shown():
    import numpy as np

    from bandpo.report.sections import SHOWN_TOKENS, tokens_block
    from bandpo.training.batches import TokenBatch

    length = 3 * SHOWN_TOKENS
    old, new = np.full((1, length), np.log(0.01), np.float32), np.full((1, length), np.log(0.01), np.float32)
    new[0, -5:] = np.log(0.02)
    batch = TokenBatch(
        step=3,
        texts=np.array(["a\n"]),
        tokens=np.zeros((1, length), np.int32),
        logps=new,
        old_logps=old,
        entropy=np.ones((1, length), np.float32),
        advantages=np.ones((1, length), np.float32),
        mask=np.ones((1, length), bool),
    )
    block = tokens_block({"clip": Clip(), "band": Band()}, batch, 0)
    assert len(block.tokens) == SHOWN_TOKENS
    assert [token.clipped for token in block.tokens].count((True, False)) == 5
    assert f"of {length}" in block.summary


def test_text_that_hides_is_shown():
    from bandpo.report.html import visible

    assert visible("a\u202eb\x00c\ud800\n\td") == "a\\u202eb\\u0000c\\ud800\n\td"
    assert visible("x" * 10, 4) == "xxxx… (6 more characters)"


@pytest.mark.slow
def test_names_with_markup_stay_text():
    from bandpo.report.drawing import Line, Panel, svg

    drawn = svg(Panel("<b>$x^2$ &", "x", [Line("a", [0, 1], [0, 1])]), "n")
    assert "&lt;b&gt;$x^2$ &amp;" in drawn
    assert "var(--s0)" in drawn
    assert "#0103" not in drawn


def test_cells_cannot_break_a_markdown_table():
    from bandpo.lab.tables import Table

    lines = Table.of_text(["a", "b"], [["x|y", "1"]], title="T").markdown()
    assert lines == ["| a | b |", "| --- | ---: |", r"| x\|y | 1 |"]


@pytest.mark.parametrize(("log", "ends"), [(False, (0.5, 3.5)), (True, (0.25, 16.0))])
def test_wide_intervals_do_not_hide_the_lines(log, ends):
    from matplotlib.figure import Figure

    from bandpo.report.drawing import PAPER, Line, Panel, draw

    first, last = (1.0, 4.0) if log else (1.5, 2.5)
    wide = Line("two seeds", [0, 1], [first, last], low=[1e-9, first], high=[last, 1e9])
    axis = Figure().subplots()
    draw(axis, Panel("reward", "update", [wide], log_y=log), PAPER)
    drawn = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (drawn.min(), drawn.max()) == pytest.approx(ends)
