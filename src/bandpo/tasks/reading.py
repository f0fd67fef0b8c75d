"""Rows of a data set: from a file, a folder, or the Hugging Face hub.

Files are read here, not through `datasets`, whose CSV and JSON readers infer types and so change answers: 033
becomes 33, 1.50 becomes 1.5, None disappears, 2024-01-01 becomes a date. Folders are read by `datasets`.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bandpo.words import nearest

Row = dict[str, Any]


def is_path(source: str) -> bool:
    """Whether a source is a file or folder, existing or not, rather than a name on the hub."""
    path = Path(source).expanduser()
    return path.exists() or _format(path) != "" or source.startswith((".", "/", "~"))


def absolute(source: str) -> str:
    """The full path of a file or folder that exists; any other source unchanged."""
    path = Path(source).expanduser()
    return os.path.abspath(path) if path.exists() else source


def without_suffix(path: Path) -> Path:
    """A path without its format extension: .jsonl.gz, .parquet, ..."""
    form = _format(path)
    return path.with_name(path.name[: -len(form)]) if form else path


def read_path(source: str, subset: str | None, split: str | None, purpose: str) -> list[Row]:
    """The rows of a file, or of a folder: a copy of a data set from the hub, data files, or save_to_disk's.

    Args:
        subset, split: For a folder that has several.
        purpose: "train" or "test", the default split; a single split is used for both.

    Raises:
        ValueError: If there is no such file, it has no rows, or its format is not supported.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise ValueError(f"data path {source!r} does not exist")
    return _read_folder(path, subset, split, purpose) if path.is_dir() else read_file(path)


def read_file(path: Path) -> list[Row]:
    """The rows of a JSONL, JSON, CSV, TSV or parquet file, all except the last also gzipped.

    Raises:
        ValueError: If it has no valid rows; the message names the place.
    """
    form = _format(path)
    if not form:
        raise ValueError(f"{path} has an unknown format; allowed: {', '.join(FORMATS)}, or a folder")
    try:
        return FORMATS[form](path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def _text(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from error
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line} is not UTF-8 text (byte 0x{data[error.start]:02x})") from error


def _objects(value: list[Any], where: str) -> list[Row]:
    for row in value:
        if not isinstance(row, dict):
            raise ValueError(f"{where} is a {type(row).__name__}; allowed: an object")
    return value


def _read_json_lines(path: Path) -> list[Row]:
    rows: list[Row] = []
    # JSON allows line separators inside strings that splitlines() would split at.
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
            rows += _objects([value], f"{path}, line {number}")
    return rows


def _read_json(path: Path) -> list[Row]:
    text = _text(path)
    if not text.strip():
        return []
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _read_json_lines(path)
        raise ValueError(f"{path} is not JSON: {error}") from error
    if isinstance(value, dict):
        value = _wrapped(value, path)
    return _objects(value if isinstance(value, list) else [value], str(path))


def _wrapped(value: Row, path: Path) -> list[Row]:
    """The rows in {"data": [...]}, or the object itself as the only row."""
    lists = {key: held for key, held in value.items() if is_rows(held) and "role" not in held[0]}
    if len(lists) > 1:
        raise ValueError(f"{path} has several lists of rows, {', '.join(map(repr, lists))}; allowed: one")
    return next(iter(lists.values()), [value])


def is_rows(value: Any) -> bool:
    """Whether a value is a list of objects, and not empty."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _read_csv(path: Path, delimiter: str = ",") -> list[Row]:
    text = _text(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    # Strict, or an unclosed quotation mark would swallow the rows after it.
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    try:
        header = next(lines, [])
        for cells in lines:
            if len(cells) > len(header):
                raise ValueError(
                    f"{path}, line {lines.line_num} has {len(cells)} cells, but the first line has {len(header)}; "
                    "a cell with a separator in it must be quoted"
                )
            if cells:
                rows.append(dict(zip(header, cells, strict=False)))
    except csv.Error as error:
        raise ValueError(f"{path}, line {lines.line_num} is not CSV: {error}") from error
    return rows


def _read_tsv(path: Path) -> list[Row]:
    return _read_csv(path, "\t")


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a parquet file: {' '.join(str(error).split())}") from error


FORMATS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".jsonl.gz": _read_json_lines,
    ".json.gz": _read_json,
    ".csv.gz": _read_csv,
    ".tsv.gz": _read_tsv,
}


def _format(path: Path) -> str:
    """A file's format extension, '' if unknown."""
    name = path.name.lower()
    return next((form for form in FORMATS if name.endswith(form) and name != form), "")


def _read_folder(path: Path, subset: str | None, split: str | None, purpose: str) -> list[Row]:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _read_saved(path, split, purpose)
    from datasets import load_dataset_builder

    try:
        files = load_dataset_builder(str(path), subset).config.data_files
    except Exception as error:  # many types
        raise ValueError(
            f"{str(path)!r} is a directory, not a data file, and cannot be read as a folder of data: {_reason(error)}"
        ) from error
    _refuse_mixed(path, [Path(file) for chosen in files.values() for file in chosen])
    return [row for file in files[_choose(files, split, purpose, path)] for row in read_file(Path(file))]


def _refuse_mixed(path: Path, read: list[Path]) -> None:
    """Raise ValueError for data files that `datasets` would skip because more files have another format.

    A README.md that lists the data files of its configurations settles the choice.
    """
    readme = path / "README.md"
    if readme.is_file() and "data_files:" in readme.read_text(encoding="utf-8", errors="replace"):
        return
    kinds = {_kind(file) for file in read}
    others = [f for f in sorted(path.rglob("*")) if _kind(f) and f.is_file() and _kind(f) not in kinds]
    if read and others:
        raise ValueError(
            f"data {str(path)!r} has files of several formats, such as {read[0].name} and {others[0].name}; give one "
            "file, or a folder with one format"
        )


def _kind(path: Path) -> str:
    """The extension by which `datasets` recognizes the format, '' if it is not a data file."""
    if path.name.startswith(".") or path.name in ("dataset_infos.json", "dataset_info.json"):
        return ""
    return {".jsonl": ".json", ".tsv": ".csv"}.get(form := _format(path).removesuffix(".gz"), form)


def _read_saved(path: Path, split: str | None, purpose: str) -> list[Row]:
    """The output of `save_to_disk` of a Dataset or a DatasetDict."""
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(path)
    except Exception as error:  # many types
        raise ValueError(f"{str(path)!r} is a damaged folder of save_to_disk: {_reason(error)}") from error
    return list(saved[_choose(saved, split, purpose, path)] if isinstance(saved, DatasetDict) else saved)


def _choose(splits: Any, split: str | None, purpose: str, path: Path) -> str:
    names = list(map(str, splits))
    wanted = split or purpose
    if split is None and len(names) == 1:
        return names[0]
    if wanted not in names:
        raise ValueError(f"data {str(path)!r} has no split {wanted!r}; its splits are {', '.join(names)}")
    return wanted


def read_hub(source: str, subsets: Sequence[str | None], split: str, known: Sequence[str]) -> list[Row]:
    """The rows of a data set on the hub.

    Args:
        known: Names of data sets to suggest.

    Raises:
        ValueError: If it cannot be loaded; names the reason and the nearest known name.
    """
    from datasets import load_dataset

    try:
        return [row for subset in subsets for row in load_dataset(source, subset, split=split)]
    except Exception as error:  # the hub client raises many types
        raise ValueError(
            f"cannot load data {source!r}{nearest(source, known)}, neither a file nor on the hub: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."
