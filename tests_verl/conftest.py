"""Tests that need the real verl: `make test-verl` runs them in an environment of their own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bandpo.integrations.verl_launch import prepare_cpu

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
# verl decides on its device when it is imported, in this process and in those that Ray starts.
HERE = Path(__file__).parent
prepare_cpu()
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
sys.path.insert(0, str(HERE))


@pytest.fixture(scope="session")
def model_path(tmp_path_factory) -> Path:
    from tiny import write_model

    path = tmp_path_factory.mktemp("model")
    write_model(path)
    return path
