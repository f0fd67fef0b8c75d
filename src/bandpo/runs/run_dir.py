"""The run directory: all output of a run, written atomically."""

from __future__ import annotations

import json
import platform
import secrets
import shutil
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from bandpo.files import append_line, read_lines, to_line, write_atomic, write_json
from bandpo.runs.config import validate_config
from bandpo.settings import flatten

PACKAGES = ("bandpo", "torch", "trl", "transformers", "peft", "datasets", "accelerate", "math-verify", "vllm")


class RunDirectory:
    """Paths and files of one run.

    Layout: config.yaml (resolved), environment.json (versions, commit, hardware, command), status.json,
    resumes.jsonl (each time the run was resumed), metrics.jsonl, samples.jsonl, alarms.jsonl, batches/ (tokens of
    some updates, if the recipe asks for them), eval/before and eval/after (see bandpo.evaluation), initial/
    (weights created for this run: from scratch or warmed up), checkpoints/, model/, summary.json, report.html and
    report.md with their pictures.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.status = path / "status.json"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.alarms = path / "alarms.jsonl"
        self.batches = path / "batches"
        self.resumes = path / "resumes.jsonl"
        self.initial = path / "initial"
        self.summary = path / "summary.json"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"

    def evaluation(self, when: str) -> Path:
        return self.path / "eval" / when

    @classmethod
    def create(cls, path: Path, config: dict[str, Any], command: list[str]) -> RunDirectory:
        """Create a new run directory.

        Raises:
            ValueError: If it is not empty; nothing is overwritten.
        """
        cls.refuse_existing(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = cls(path.with_name(f".{path.name}-{secrets.token_hex(4)}"))
        new.path.mkdir()
        write_atomic(new.config, yaml.safe_dump(config, sort_keys=False))
        write_json(new.environment, describe_environment(command))
        new.set_status("running")
        try:
            new.path.rename(path)  # replaces an empty directory, fails on one that another run has just created
        except OSError:
            shutil.rmtree(new.path)
            cls.refuse_existing(path)
            raise
        return cls(path)

    @staticmethod
    def refuse_existing(path: Path) -> None:
        """Raise ValueError if there is something at `path` that a new run would overwrite."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(
                f"run directory {str(path)!r} already exists; resume it with --resume, or choose another --output"
            )

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

    def check_config(self, config: dict[str, Any]) -> None:
        """Raise ValueError if the run was started with other settings.

        Stored settings are read with today's code, so an older run may lack a setting or have a relative path.
        """
        found = dict(flatten(_as_today(yaml.safe_load(self.config.read_text(encoding="utf-8")))))
        given = dict(flatten(config))
        different = sorted(key for key in found.keys() | given.keys() if found.get(key) != given.get(key))
        if different:
            key = different[0]
            raise ValueError(
                f"run {str(self.path)!r} was started with {key}={found.get(key)!r}, not {given.get(key)!r}"
                f"{f' (and {len(different) - 1} more settings differ)' if different[1:] else ''}; a run resumes with "
                "its own settings; choose another --output to start a new one"
            )

    def state(self) -> str:
        """running (or killed), interrupted, failed or finished; 'unknown' without status.json."""
        if not self.status.is_file():
            return "unknown"
        return str(json.loads(self.status.read_text(encoding="utf-8"))["status"])

    def finished(self) -> bool:
        return self.state() == "finished"

    def rewind(self, step: int, command: list[str]) -> None:
        """Prepare to resume after update `step`: drop later records, because those updates will be repeated."""
        for file in (self.metrics, self.samples, self.alarms):
            if file.exists():
                kept = [line for line in read_lines(file) if line["step"] <= step]
                write_atomic(file, "".join(map(to_line, kept)))
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        append_line(self.resumes, {"time": now, "step": step, **describe_environment(command)})
        self.set_status("running")

    def set_status(self, status: str, **details: Any) -> None:
        record = {
            "status": status,
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            **details,
        }
        write_json(self.status, record)


def _as_today(stored: dict[str, Any]) -> dict[str, Any]:
    try:
        return validate_config(stored).model_dump(mode="json")
    except ValueError:  # no longer allowed, so it differs from any valid configuration
        return stored


def rewards_of(row: dict[str, Any]) -> dict[str, float]:
    """The rewards, by name, of one line of samples.jsonl."""
    known = ("step", "prompt", "completion", "advantage", "tokens", "truncated")
    return {name: value for name, value in row.items() if name not in known and isinstance(value, (int, float))}


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
    """Commit of the source tree that this package runs from, with a '+' if the tree has changes."""
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
