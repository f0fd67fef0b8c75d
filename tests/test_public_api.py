"""The names that others rely on, and the examples that the README prints."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import torch

import bandpo

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_names_of_the_design():
    old = torch.tensor([-0.5, -4.0])
    bounds = bandpo.band(old, radius=0.05, divergence="kl")
    assert isinstance(bounds, bandpo.RatioBounds)
    torch.testing.assert_close(bounds.lower, bounds.log_lower.exp())
    assert bandpo.inside(old, old, radius=0.05, divergence="kl").all()
    assert (bandpo.binary_divergence(old, old, divergence="kl") == 0).all()
    table = bandpo.BandTable(radius=0.05, divergence="kl")
    torch.testing.assert_close(table(old).upper, bounds.upper, rtol=1e-4, atol=1e-4)
    mine = bandpo.FDivergence(name="mine", f=lambda u: (u - 1) ** 2)
    torch.testing.assert_close(bandpo.band(old, 0.05, mine).upper, bandpo.band(old, 0.05, "chi2").upper)
    loss = bandpo.policy_loss(
        old.view(1, 2), old.view(1, 2), torch.ones(1, 2), torch.ones(1, 2), rule=bandpo.Band(radius=0.05),
        aggregation="token-mean",
    )  # fmt: skip
    assert isinstance(loss, bandpo.PolicyLoss)
    assert {bandpo.Clip(low=0.2, high=0.2), bandpo.Clip(0.2, 0.28), bandpo.DCPO(), bandpo.NoClip()}
    for name in bandpo.__all__:
        assert getattr(bandpo, name) is not None


def test_readme_prints_what_it_says():
    code, output = re.search(r"```python\n(import torch, bandpo.*?)```\n```\n(.*?)```", README, re.S).groups()
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(code, {})
    assert shown.getvalue() == output


def test_the_core_needs_torch_alone():
    heavy = "trl transformers datasets peft pydantic yaml rich typer matplotlib scipy safetensors math_verify triton"
    code = f"import sys, bandpo; print([m for m in '{heavy}'.split() if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_reports_and_recipes_do_without_trl():
    code = (
        "import sys, bandpo.report, bandpo.runs.config, bandpo.models;"
        "print([m for m in ('trl', 'transformers', 'datasets', 'peft') if m in sys.modules]);"
        "from bandpo.training import BandGRPOConfig, BandGRPOTrainer; print('trl' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == ["[]", "True"]
