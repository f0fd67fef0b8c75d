"""Every script of examples/ runs, at a size that a test can afford, and says what its text promises."""

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import bandpo
from bandpo.report.dumps import read_log
from helpers import ROOT, TINY

EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs" / "integrations" / "verl.md").read_text(encoding="utf-8")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """A script with its arguments, in an empty directory and in this process: its variables, and what it printed."""

    def start(name, *arguments, as_main=True):
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        scope = runpy.run_path(str(EXAMPLES / name), run_name="__main__" if as_main else "example")
        return scope, capsys.readouterr().out

    return start


def test_every_script_is_run_here():
    text = Path(__file__).read_text(encoding="utf-8")
    scripts = sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh"))
    assert scripts == sorted(set(re.findall(r'(?:run|words_of)\("(\w+\.\w+)"', text)))
    for name in scripts:
        lines = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
        assert 30 <= len(lines) <= 60, f"{name} has {len(lines)} lines"


@pytest.mark.slow
def test_the_custom_loop_learns_and_its_rule_acts(run):
    scope, _ = run("custom_loop.py", as_main=False)
    history = scope["train"](bandpo.Clip(0.2, 0.2), rollouts=4, updates=8, prompts=16)
    assert history[-1]["reward"] > history[0]["reward"] + 0.03
    assert history[-1]["clip_fraction"] > 0
    assert history[-1]["entropy"] < history[0]["entropy"]
    # A first update finds the policy where it was sampled.
    assert [row["ratio_max"] for row in scope["train"](bandpo.Band(), rollouts=1, updates=1)] == [1.0]


def test_the_rule_of_its_own_is_tighter_below_for_likely_tokens(run):
    scope, printed = run("own_rule.py")
    assert "p = 0.90: a ratio from 0.964 to 1.076" in printed
    assert printed.endswith("clipped: 0.33 of the tokens\n")
    assert scope["rule"].power == 2.0


def test_the_divergence_of_its_own_is_certified_and_clips(run):
    _, printed = run("own_divergence.py")
    assert "certified: True" in printed
    assert "clipped: 0.33 of the tokens; gradient tensor([-0.6074,  0.0000, -0.1829]" in printed
    assert "refused: divergence 'wavy': f must be convex" in printed


def test_the_task_of_its_own_grades(run):
    _, printed = run("own_task.py")
    assert "'kciuq' 1.0" in printed
    assert "'kciu' 0.8" in printed
    assert "'?' 0.0" in printed


@pytest.mark.slow
def test_the_task_of_its_own_trains(tmp_path, monkeypatch):
    from bandpo.cli.app import app
    from helpers import strict_json

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    settings = [x for x in TINY if not x.startswith("task.")]
    app(
        args=["train", "scratch", *settings, "task.name=own_task:Reverse", "eval=null", "--output", "run"],
        standalone_mode=False,
    )
    (summary,) = strict_json(tmp_path / "run" / "summary.json")
    assert summary["steps"] == 4


def test_a_dump_is_written_and_read(run, tmp_path):
    scope, printed = run("inspect_dump.py", "tokens.jsonl")
    assert re.search(r"^GRPO clip +clips \d\d\.\d\d%", printed)
    assert re.search(r"^Band +clips 0\.\d\d%", printed, re.M)
    assert len(read_log([tmp_path / "tokens.jsonl"])) == 4 * 64 * 32 == scope["found"].judged

    def body(text):
        (function,) = (node for node in ast.walk(ast.parse(text)) if getattr(node, "name", "") == "log_tokens")
        return [ast.unparse(node) for node in function.body[1:]]

    (page,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "inspect.md").read_text(encoding="utf-8"), re.S)
    assert body((EXAMPLES / "inspect_dump.py").read_text(encoding="utf-8")) == body(page)


@pytest.mark.slow
def test_the_trl_script_trains_with_the_rule(run, tiny, tmp_path):
    model, tokenizer = tiny
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = ["--model", tmp_path / "model", "--steps", 8, "--rollout", 32, "--length", 8, "--cpu"]
    scope, printed = run("trl_grpo.py", *options)
    trainer = scope["trainer"]
    assert (trainer.state.global_step, trainer.rule) == (8, bandpo.Band(radius=0.05))
    assert trainer.args.steps_per_generation == 4, "as its comment says"
    assert "band/divergence" in printed
    assert (tmp_path / "out" / "model.safetensors").exists()


def words_of(script, tmp_path, *arguments):
    """What a shell script hands to Python, which stands aside."""
    fake = tmp_path / "python"
    fake.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    environment = os.environ | {"PYTHON": str(fake)}
    command = ["bash", str(EXAMPLES / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_verl_script_has_the_three_lines_of_its_page(tmp_path):
    # tests_verl/test_examples.py lets verl itself read the settings.
    words = words_of("verl_band.sh", tmp_path, "trainer.nnodes=2")
    assert words[:2] == ["-m", "verl.trainer.main_ppo"]
    assert words[-1] == "trainer.nnodes=2"
    block = PAGE.partition("## Three lines\n```\n")[2].partition("```")[0]
    lines = [line.strip("'") for line in block.splitlines()]
    assert len(lines) == 3
    assert lines == words[2:5]
