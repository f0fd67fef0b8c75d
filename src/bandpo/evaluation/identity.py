"""What distinguishes one evaluation from another: short names of data sets, a checksum of weights."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

from bandpo.tasks.reading import is_path, without_suffix


def names_apart(sources: Sequence[str]) -> list[str]:
    """A short name for each data set, with as many parent folders as needed to distinguish it.

    Raises:
        ValueError: If one is given twice.
    """
    paths = []
    for source in sources:
        path = without_suffix(Path(source).expanduser().resolve() if is_path(source) else Path(source))
        paths.append([part for part in path.parts if part != path.anchor])
    names = []
    for i, parts in enumerate(paths):
        others = paths[:i] + paths[i + 1 :]
        depths = (d for d in range(1, len(parts) + 1) if all(parts[-d:] != other[-d:] for other in others))
        names.append("-".join(parts[-next(depths, len(parts)) :]))
    if len(set(names)) < len(names):
        raise ValueError(f"a data set is given twice: {', '.join(sources)}")
    return names


def fingerprint(path: Path) -> str | None:
    """A checksum of both ends of a model's files, which distinguishes weights of equal size.

    None for a name on the hub.
    """
    files = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.suffix in (".safetensors", ".bin"))
    checksum = 0
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as stream:
            for start in (0, max(0, size - (1 << 20))):
                stream.seek(start)
                checksum = zlib.crc32(stream.read(1 << 20), checksum)
        checksum = zlib.crc32(str(size).encode(), checksum)
    return f"{checksum:08x}" if files else None
