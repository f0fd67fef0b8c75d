"""The script of examples/ for verl: its settings are verl's, and the rule reaches the policy loss."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass

from bandpo.core.rules import Band
from bandpo.integrations.common import read_rule
from bandpo.integrations.verl import outlook_of

SCRIPT = Path(__file__).parents[1] / "examples" / "verl_band.sh"


def start(*overrides: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), *overrides]
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_verl_takes_the_settings_of_the_example():
    shown = start("--cfg=job")
    assert shown.returncode == 0, shown.stderr[-2000:]
    config = OmegaConf.create(shown.stdout)
    assert read_rule(omega_conf_to_dataclass(config.actor_rollout_ref.actor).policy_loss.rule) == Band(radius=0.05)
    assert outlook_of(config).updates.startswith("4 updates follow each rollout: ")


def test_a_mistake_in_the_example_ends_before_ray_starts():
    stopped = start("actor_rollout_ref.actor.policy_loss.rule.raduis=0.1")
    assert stopped.returncode != 0
    assert "raduis" in stopped.stderr
    assert "ray init kwargs" not in stopped.stdout
