"""Verified checkpoints: one counts only if it is complete and its files are unchanged since they were written."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

from bandpo.files import write_json

SEAL = "seal.json"


@dataclass(frozen=True)
class Found:
    """Result of a search for a checkpoint.

    Attributes:
        path: The newest complete and undamaged checkpoint, or None.
        refused: One sentence for each newer one that cannot be used.
        was_sealed: Whether one of those was once complete.
    """

    path: Path | None
    refused: list[str]
    was_sealed: bool


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def seal(checkpoint: Path) -> None:
    """Declare a checkpoint complete: record the size and checksum (CRC-32) of each file, once it is on disk."""
    record = {}
    for file in sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != SEAL):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        record[str(file.relative_to(checkpoint))] = _fingerprint(file)
    write_json(checkpoint / SEAL, record, indent=1)


def damage(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, or None if it is complete and unchanged."""
    try:
        record = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        for name, expected in record.items():
            if not (checkpoint / name).is_file():
                return f"{checkpoint.name} is missing {name}"
            if _fingerprint(checkpoint / name) != expected:
                return f"{name} of {checkpoint.name} is damaged"
    except FileNotFoundError:
        return f"{checkpoint.name} was not completely written"
    except (OSError, ValueError) as error:
        return f"{checkpoint.name} cannot be read: {error}"
    return None


def find_checkpoint(directory: Path) -> Found:
    """The newest usable checkpoint of a run; verifying it means reading it in full."""
    refused: list[str] = []
    was_sealed = False
    for checkpoint in reversed(list_checkpoints(directory)):
        problem = damage(checkpoint)
        if problem is None:
            return Found(checkpoint, refused, was_sealed)
        refused.append(problem)
        was_sealed |= (checkpoint / SEAL).exists()
    return Found(None, refused, was_sealed)


def list_checkpoints(directory: Path) -> list[Path]:
    """All checkpoints, oldest first, usable or not."""
    return sorted((p for p in directory.glob("checkpoint-*") if p.name[11:].isdigit()), key=step_of)


def set_aside_newer(directory: Path, than: Path | None) -> None:
    """Prepare to resume from `than`: delete unfinished newer checkpoints, rename damaged ones."""
    for checkpoint in list_checkpoints(directory):
        if than is not None and step_of(checkpoint) <= step_of(than):
            continue
        if (checkpoint / SEAL).exists():
            target = checkpoint.with_name(f"damaged-{checkpoint.name}")
            shutil.rmtree(target, ignore_errors=True)
            checkpoint.rename(target)
        else:
            shutil.rmtree(checkpoint)


def _fingerprint(file: Path) -> list[int]:
    checksum = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
        return [stream.tell(), checksum]
