"""A row of the benchmark is what its label says."""

import sys

import pytest

import bandpo
from helpers import ROOT


@pytest.mark.parametrize("backend", ["eager", "compile"])
def test_the_loss_runs_on_the_backend_that_the_row_names(monkeypatch, backend):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "speed", raising=False)
    import speed

    asked = []

    def policy_loss(logps, *_, **options):
        asked.append(options.get("backend"))
        return bandpo.PolicyLoss(logps.sum(), {})

    monkeypatch.setattr(bandpo, "policy_loss", policy_loss)
    for name in ("clip", "kl", "adaptive"):
        speed.operation("loss", name, backend, "cpu")(speed.Inputs(10, "cpu"))
    assert asked == [backend] * 3
