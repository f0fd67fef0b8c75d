"""The names that others rely on, and the examples that the README prints."""

import ast
import contextlib
import importlib
import io
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
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
    for rule in (bandpo.Clip(low=0.2, high=0.2), bandpo.Clip(0.2, 0.28), bandpo.DCPO(), bandpo.NoClip()):
        assert isinstance(rule, bandpo.ClipRule)
        assert rule.inside(old, old).all(), rule
    assert bandpo.Clip(0.2, 0.28).bounds(old).upper.tolist() == pytest.approx([1.28, 1.28])


LAZY = ["bandpo", "bandpo.evaluation", "bandpo.training"]


@pytest.mark.parametrize("package", LAZY)
def test_lazy_packages_name_what_they_have(package):
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    checked = {alias.name: node.module for node in block.body for alias in node.names}
    public = [name for name in checked if name != "__version__"]
    assert sorted(public) == sorted(module.__all__), "what type checkers see is what is public"
    for name, home in checked.items():
        value = getattr(module, name)
        assert value is getattr(importlib.import_module(home), name)
        assert getattr(value, "__module__", home) == home, "named where it is defined"
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'bnd'"):
        module.bnd  # noqa: B018


@pytest.mark.slow
def test_names_arrive_when_they_are_used():
    code = """
import sys, bandpo, bandpo.evaluation, bandpo.training
assert set(bandpo.__all__) <= set(dir(bandpo)) and "torch" not in sys.modules, "listing loads nothing"
assert hasattr(bandpo, "__version__") and not hasattr(bandpo, "bnd") and "torch" not in sys.modules
from bandpo import *
assert Band(0.1).radius == 0.1 and callable(band) and band is bandpo.band and "torch" in sys.modules
assert "band" in vars(bandpo), "found without a detour the second time"
import pickle
assert pickle.loads(pickle.dumps(bandpo.Clip(0.2, 0.3))) == bandpo.Clip(0.2, 0.3)
assert pickle.loads(pickle.dumps(bandpo.band)) is bandpo.band
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version_is_that_of_the_installed_package():
    assert bandpo.__version__ == metadata.version("bandpo")


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


@pytest.mark.slow
def test_reports_and_recipes_do_without_trl():
    code = (
        "import sys, bandpo.report, bandpo.runs.config, bandpo.models;"
        "print([m for m in ('trl', 'transformers', 'datasets', 'peft') if m in sys.modules]);"
        "from bandpo.training import BandGRPOConfig, BandGRPOTrainer; print('trl' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == ["[]", "True"]
