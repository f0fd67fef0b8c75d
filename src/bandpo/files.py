"""Atomic writes, and JSON that every parser reads."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file, text in UTF-8, under a temporary name and move it into place."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as stream:
        stream.write(content.encode("utf-8") if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock a directory against other processes; the lock ends with the process, however that ends.

    Does nothing if the platform or the file system has no locks.

    Raises:
        ValueError: If another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (directory / ".lock").open("w") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, it is not left to forked children
        except (BlockingIOError, PermissionError):
            raise ValueError(
                f"another process is working in {str(directory)!r}; wait until it ends, or choose another directory"
            ) from None
        except OSError:
            pass
        yield


def to_json(value: Any, **options: Any) -> str:
    """Strict JSON (RFC 8259), with null for each number that is not finite.

    Args:
        options: Options of `json.dumps`.
    """
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, (list, tuple)) else value


def write_json(path: Path, value: Any, indent: int = 2) -> None:
    """Write a file of strict JSON."""
    write_atomic(path, to_json(value, indent=indent) + "\n")


def to_line(record: dict[str, Any]) -> str:
    """One line of a .jsonl file."""
    return to_json(record, ensure_ascii=False) + "\n"


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as a line."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(to_line(record))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a .jsonl file; a last line cut off by a crash is skipped.

    Infinity and NaN, which older versions wrote, are read as the null that `append_line` writes for them.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            if line.endswith("\n") and line.strip():
                yield json.loads(line, parse_constant=lambda _: None)
