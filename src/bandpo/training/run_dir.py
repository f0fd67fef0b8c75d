"""The run directory: everything a run leaves behind, written so that a half-written file is never seen."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from bandpo.files import write_atomic

PACKAGES = ("bandpo", "torch", "trl", "transformers", "peft", "datasets", "accelerate", "math-verify", "vllm")


class RunDirectory:
    """Paths and files of one run.

    Layout: config.yaml (resolved), environment.json (versions, commit, hardware, command), status.json,
    metrics.jsonl, samples.jsonl, eval/before and eval/after (see bandpo.evaluation), checkpoints/, model/,
    summary.json, report.md with its pictures.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.status = path / "status.json"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.summary = path / "summary.json"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.report = path / "report.md"

    def evaluation(self, when: str) -> Path:
        return self.path / "eval" / when

    @classmethod
    def create(cls, path: Path, config: dict[str, Any], command: list[str]) -> RunDirectory:
        """Make a new run directory.

        Raises:
            ValueError: If it already holds something; nothing is overwritten.
        """
        cls.refuse_existing(path)
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        write_atomic(run.config, yaml.safe_dump(config, sort_keys=False))
        write_atomic(run.environment, json.dumps(describe_environment(command), indent=2) + "\n")
        run.set_status("running")
        return run

    @staticmethod
    def refuse_existing(path: Path) -> None:
        """Raise ValueError if there is something at `path` that a new run would overwrite."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"run directory {str(path)!r} already exists; choose another --output or remove it")

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run directory.

        Raises:
            ValueError: If there is none at that path.
        """
        run = cls(path)
        if not run.config.is_file():
            raise ValueError(f"{str(path)!r} is not a run directory: it has no config.yaml")
        return run

    def set_status(self, status: str, **details: Any) -> None:
        record = {
            "status": status,
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            **details,
        }
        write_atomic(self.status, json.dumps(record, indent=2) + "\n")


def describe_environment(command: list[str]) -> dict[str, Any]:
    """Versions, commit, hardware and command line of this process."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": command,
        "python": sys.version.split()[0],
        "packages": versions,
        "commit": source_commit(),
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def source_commit() -> str | None:
    """Commit of the source tree that this package runs from, '+' behind it if the tree has changes."""
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    try:
        inside = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=False)
        if inside.returncode != 0:  # installed somewhere inside an unrelated repository
            return None
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
