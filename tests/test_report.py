"""The report of a run and of several: complete, offline, and safe against what a model may write."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch

from bandpo import Band, Clip
from bandpo.files import read_lines
from bandpo.report import plot_bounds, write_report

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \u202egnp.exe </details></main> | a | b |"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run with recorded batches, and hostile text among its completions."""
    from rich.console import Console

    from bandpo.training.config import load_config
    from bandpo.training.job import run_training

    folder = tmp_path_factory.mktemp("report")
    config = load_config(
        "scratch",
        [
            "model.scratch={hidden_size: 32, layers: 2, heads: 2, positions: 64}",
            "warmup.steps=60",
            "train.max_steps=16",
            "train.generation_batch_size=32",
            "train.per_device_train_batch_size=8",
            "train.num_generations=4",
            "train.max_completion_length=4",
            "train.learning_rate=1e-3",
            "rule.radius=0.001",
            "task.low=0",
            "task.high=4",
            "train.report_to=[]",
            "task.heldout=4",
            "eval.samples=2",
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
    assert "Content-Security-Policy" in html
    assert 'name="viewport"' in html
    assert "@media print" in html
    assert "prefers-color-scheme: dark" in html
    assert page.tags.count("svg") >= 6


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
    clipped = max(row["band/clip_fraction"] for row in read_lines(run / "metrics.jsonl"))
    assert clipped > 0


def test_pictures_and_markdown_beside_it(run, tmp_path):
    write_report([run], tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    named = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", markdown)
    assert {"curves.png", "bounds.png"} <= set(named)
    for name in named:
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


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


def test_a_run_that_is_not_finished_has_a_report_too(run, tmp_path):
    early = tmp_path / "early"
    shutil.copytree(run, early)
    (early / "summary.json").unlink()
    shutil.rmtree(early / "eval")
    shutil.rmtree(early / "batches")
    Page(write_report([early]).read_text(encoding="utf-8"))


def test_bounds_are_drawn(tmp_path):
    for name in ("bounds.png", "bounds.svg"):
        plot_bounds({"Clip": Clip(), "Band": Band()}, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5000
