"""Readers of token logs: our own, and those of other frameworks, each recognized by its content.

Nothing in a file is executed: .npz files are read without pickle, .pt files with `weights_only=True`.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from bandpo.report.ledger import has_slopes
from bandpo.report.token_logs import ENTROPIES, LOGPS, Completion, Floats, Note, Problem, TokenLog, prompt_key
from bandpo.training.batches import TokenBatch
from bandpo.words import first_line

SCHEMA = "bandpo.tokens/1"
LONGEST_LINE = 1 << 26  # bytes
ENDINGS = (".jsonl", ".npz", ".pt", ".parquet")
KNOWN = (
    f"a line of {SCHEMA} (docs/inspect.md), of prime-rl's token_exports or of verl's rollout dump; a batch-STEP.npz "
    "of bandpo; slime's --dump-details (.pt); TRL's completions (.parquet)"
)
T = TypeVar("T")
Record = Mapping[str, object]
Read = Iterator[Completion | Problem | Note]


class BadRecordError(ValueError):
    """A record that does not fit its schema; the message becomes the text of a `Problem`."""


def read_log(paths: Sequence[Path], decode: Callable[[int], str] | None = None) -> TokenLog:
    """The tokens of files and directories (of a run: its recorded batches; of anything else: every log below it).

    Args:
        paths: Files and directories; each file is read once.
        decode: Maps a token id to its text, for logs without texts.

    Raises:
        ValueError: If a path does not exist, or a directory has no log.
    """
    files = [file for path in paths for file in find_logs(path)]
    files = list(dict.fromkeys(files))
    found = ((file, one) for file in files for one in read_file(file))
    if decode is not None:
        found = ((file, _decoded(one, decode)) for file, one in found)
    return TokenLog.gather(found, files)


def find_logs(path: Path) -> list[Path]:
    """The token logs at a path, in the order of their names.

    Raises:
        ValueError: If it does not exist, or is a directory without token logs.
    """
    if not path.is_dir():
        if not path.exists():
            raise ValueError(f"{str(path)!r} does not exist; allowed: token logs and directories of them")
        return [path]
    folder = path / "batches" if (path / "config.yaml").is_file() else path
    found = sorted((p for p in folder.rglob("*") if p.suffix in ENDINGS and p.is_file()), key=_natural)
    if not found:
        what = "a run without recorded batches" if folder != path else "a directory without token logs"
        raise ValueError(f"{str(path)!r} is {what}; expected files that end in {', '.join(ENDINGS)}")
    return found


def _natural(path: Path) -> tuple[str, int, str]:
    digits = "".join(c for c in path.stem if c.isdigit())
    return str(path.parent), int(digits[:18] or 0), path.name


def read_file(path: Path) -> Read:
    """The contents of a file, completion by completion. A damaged part becomes a `Problem`; nothing is raised."""
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
            if not start:
                yield Note(str(path), "is empty")
            elif start.startswith(b"PK"):
                yield from _archive(path)
            elif start == b"PAR1":
                yield from _parquet(path)
            elif start.startswith(b"\x80"):
                yield from _torch(path)
            elif start.startswith(b"\x1f\x8b"):
                yield Problem(str(path), None, "is compressed with gzip, expected the uncompressed file")
            else:
                stream.seek(0)
                yield from _lines(path, stream)
    except OSError as error:
        yield Problem(str(path), None, f"cannot be read: {error.strerror or first_line(error)}")


def _archive(path: Path) -> Read:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:  # zipfile raises arbitrary errors on a damaged file
        text = f"is a damaged archive ({first_line(error)}), expected a whole .npz or .pt file"
        yield Problem(str(path), None, text)
        return
    yield from _torch(path) if any(name.endswith("data.pkl") for name in names) else _npz(path)


def _each(
    path: Path, what: str, items: Iterable[tuple[int, T] | Problem], read: Callable[[T, int], Completion | None],
    unlogged: str,
) -> Read:  # fmt: skip
    """Numbered items one by one: a bad one becomes a problem and its `what` is skipped; those without log-probs are
    counted in a note, worded by `unlogged`."""
    without = 0
    for item in items:
        if isinstance(item, Problem):
            yield item
            continue
        number, one = item
        try:
            found = read(one, number)
        except BadRecordError as error:
            yield Problem(str(path), number, f"{error}; the {what} is skipped")
            continue
        if found is None:
            without += 1
        else:
            yield found
    if without:
        yield Note(str(path), unlogged.format(without), without)


def _lines(path: Path, stream: BinaryIO) -> Read:
    unlogged = (
        "is verl's rollout dump: {} completions without log-probs, so no rule can be applied. Have the "
        f"reward function return rollout_log_probs and old_log_probs among its extra values, or write {SCHEMA}"
    )
    return _each(path, "line", _numbered(path, stream), _record, unlogged)


def _numbered(path: Path, stream: BinaryIO) -> Iterator[tuple[int, bytes] | Problem]:
    """Lines with their numbers; empty ones are skipped."""
    number = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        if not line.strip():
            continue
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            while rest := stream.readline(LONGEST_LINE):
                if rest.endswith(b"\n"):
                    break
            yield Problem(str(path), number, f"is over {LONGEST_LINE:,} bytes long, expected one completion per line")
            continue
        yield number, line


def _record(line: bytes, number: int) -> Completion | None:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRecordError(f"is not UTF-8 (byte {error.start + 1}), expected JSON") from None
    except RecursionError:
        raise BadRecordError("is nested too deeply, expected a JSON object of lists") from None
    except ValueError as error:  # also for a number with more digits than Python converts
        cut = "" if line.endswith(b"\n") else " (the file ends here: truncated?)"
        raise BadRecordError(f"is not JSON ({first_line(error)}){cut}, expected one object per line") from None
    if not isinstance(record, dict):
        raise BadRecordError(f"is {_kind(record)}, expected a JSON object")
    if "schema" in record or ("old_logps" in record and "tokens" in record):
        return _own(record, number)
    if "inference_logprobs" in record or "trainer_logprobs" in record:
        return _prime_rl(record, number)
    if "output" in record and ("input" in record or "score" in record):
        return _verl(record, number)
    keys = ", ".join(list(map(repr, record))[:6])
    raise BadRecordError(f"has the unknown keys {keys[:200] or 'none'}; expected {KNOWN}")


def _own(record: Record, line: int) -> Completion:
    schema = record.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise BadRecordError(f"schema is {_short(schema)}, expected {SCHEMA!r}")
    tokens = _tokens(record, "tokens")
    columns = _columns(record, {name: name for name in (*LOGPS, *ENTROPIES)}, len(tokens))
    if not columns.keys() & set(LOGPS):
        raise BadRecordError(f"has no log-probs, expected {' or '.join(LOGPS)}")
    if record.get("advantages") is not None:
        columns["advantages"] = _advantages(record, "advantages", len(tokens))
    prompt = record.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise BadRecordError(f"prompt is {_kind(prompt)}, expected a string")
    group = _group(record, "group") or (None if prompt is None else prompt_key(prompt))
    mask, positions = _mask(record, "mask", len(tokens)), _positions(record, len(tokens))
    return Completion(SCHEMA, line, tokens, columns, mask, group, positions, prompt)


def _prime_rl(record: Record, line: int) -> Completion:
    """prime-rl's export: its loss is anchored on the inference engine's log-probs, which are also the sampler's."""
    tokens = _tokens(record, "token_ids")
    names = {"old_logps": "inference_logprobs", "logps": "trainer_logprobs", "entropy": "entropy"}
    columns = _columns(record, names, len(tokens))
    for name in ("old_logps", "logps"):
        if name not in columns:
            raise BadRecordError(f"has no {names[name]}, expected a list of {len(tokens)} log-probs")
    columns["sampling_logps"] = columns["old_logps"]
    columns["advantages"] = _advantages(record, "advantages", len(tokens))
    mask = _mask(record, "loss_mask", len(tokens))
    first = int(mask.argmax()) if mask.any() else 0
    positions = np.maximum(np.arange(len(tokens)) - first, 0)
    return Completion("prime-rl token export", line, tokens, columns, mask, None, positions)


def _verl(record: Record, line: int) -> Completion | None:
    """verl's rollout dump; None if it has only text, which is verl's default."""
    names = {"old_logps": "old_log_probs", "sampling_logps": "rollout_log_probs", "logps": "log_probs"}
    present = [name for name in names.values() if record.get(name) is not None]
    if not present:
        return None
    first = record[present[0]]
    if not isinstance(first, list):
        raise BadRecordError(f"{present[0]} is {_kind(first)}, expected a list of log-probs")
    ids = next((key for key in ("response_ids", "responses", "token_ids") if key in record), None)
    tokens = list(range(len(first))) if ids is None else _tokens(record, ids)
    if ids is None:
        tokens = ["?"] * len(first)
    columns = _columns(record, names, len(tokens))
    if record.get("advantages") is not None:
        columns["advantages"] = _advantages(record, "advantages", len(tokens))
    mask = _mask(record, "response_mask", len(tokens))
    prompt = record.get("input")
    return Completion("verl rollout dump", line, tokens, columns, mask, prompt_key(prompt), None, str(prompt))


def _npz(path: Path) -> Read:
    try:
        batch = TokenBatch.load(path)
        known = (batch.tokens[batch.mask] >= 0) & (batch.tokens[batch.mask] < len(batch.texts))
        texts = [str(text) for text in batch.texts]
        if not known.all() or batch.tokens.dtype.kind not in "iu":
            raise ValueError("tokens are not indices into texts")
        arrays = {name: np.asarray(getattr(batch, name), np.float32) for name in ("logps", "old_logps", "entropy")}
        arrays["advantages"] = np.asarray(batch.advantages, np.float32)
        if has_slopes(batch):
            arrays["mean_slope"] = np.asarray(batch.mean_slope, np.float32)
        prompts = [str(text) for text in batch.prompts]
        if not ((batch.groups >= -1) & (batch.groups < len(prompts))).all() or batch.groups.dtype.kind not in "iu":
            raise ValueError("groups are not indices into prompts")
        mask = np.asarray(batch.mask, bool)
    except Exception as error:  # NumPy and zlib raise arbitrary errors on a damaged file
        text = f"is not a recorded batch ({first_line(error)}), expected TokenBatch.save's arrays {', '.join(_BATCH)}"
        yield Problem(str(path), None, text)
        return
    for row, (kinds, keep) in enumerate(zip(batch.tokens, mask, strict=True)):
        tokens = [texts[k] if counts else "" for k, counts in zip(kinds.tolist(), keep, strict=True)]
        columns = {name: values[row] for name, values in arrays.items()}
        group = int(batch.groups[row])
        named = (None, None) if group < 0 else (str(group), prompts[group])
        yield Completion("bandpo batch", row + 1, tokens, columns, keep, named[0], None, named[1])


_BATCH = [f.name for f in fields(TokenBatch)]


def _torch(path: Path) -> Read:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its warnings about a damaged file; the error is reported below
            data: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch passes on any error that it meets in the file
        text = (
            f"cannot be loaded with weights_only=True ({first_line(error)[:200]}): it is damaged or contains Python "
            "objects, which are never unpickled here. Expected slime's --dump-details"
        )
        yield Problem(str(path), None, text)
        return
    samples = data.get("samples") if isinstance(data, dict) else None
    if not isinstance(samples, list):
        found = f"keys {', '.join(map(repr, list(data)[:6]))}" if isinstance(data, dict) else _kind(data)
        text = f"contains {found[:200]}, expected slime's --dump-details: a dict with a list 'samples'"
        yield Problem(str(path), None, text)
        return
    if not samples:
        yield Note(str(path), "is slime's dump without samples")
    unlogged = "is slime's dump: {} samples without log-probs"
    yield from _each(path, "sample", enumerate(samples, 1), _slime, unlogged)


def _slime(sample: object, number: int) -> Completion | None:
    """A sample of train_data (anchor's log-probs, advantages) or of rollout_data (only the sampler's)."""
    if not isinstance(sample, dict):
        raise BadRecordError(f"is {_kind(sample)}, expected a dict")
    names = {"old_logps": "log_probs", "sampling_logps": "rollout_log_probs", "old_entropy": "entropy"}
    if all(sample.get(name) is None for name in ("log_probs", "rollout_log_probs")):
        return None
    length = sample.get("response_length", sample.get("response_lengths"))
    length = length.item() if isinstance(length, torch.Tensor) and length.numel() == 1 else length
    ids = _tokens(sample, "tokens")
    if not isinstance(length, int) or not 0 <= length <= len(ids):
        raise BadRecordError(f"response_length is {_short(length)}, expected an integer from 0 to {len(ids)}")
    tokens = ids[len(ids) - length :]
    columns = _columns(sample, names, length)
    if sample.get("advantages") is not None:
        columns["advantages"] = _advantages(sample, "advantages", length)
    mask = _mask(sample, "loss_masks" if "loss_masks" in sample else "loss_mask", length)
    return Completion("slime dump", number, tokens, columns, mask, _group(sample, "group_index"))


def _parquet(path: Path) -> Read:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names, rows = set(file.schema_arrow.names), file.metadata.num_rows
    except Exception as error:  # PyArrow raises arbitrary errors on a damaged file
        text = f"is a damaged Parquet file ({first_line(error)[:200]}), expected TRL's completions"
        yield Problem(str(path), None, text)
        return
    if not {"prompt", "completion"} <= names:
        text = (
            f"has columns {', '.join(sorted(names)[:8])}, expected TRL's completions: prompt, completion, advantage"
        )
        yield Problem(str(path), None, text)
        return
    text = (
        f"is TRL's log_completions: {rows} completions without log-probs, so no rule can be applied. Train with "
        "BandGRPOTrainer, which records batches with them (under any rule, a fixed clip included)"
    )
    yield Note(str(path), text, rows)


def _decoded(found: Completion | Problem | Note, decode: Callable[[int], str]) -> Completion | Problem | Note:
    if not isinstance(found, Completion):
        return found
    texts = [decode(t) if isinstance(t, int) else t for t in found.tokens]
    return Completion(**{**{f.name: getattr(found, f.name) for f in fields(found)}, "tokens": texts})


def _values(record: Record, key: str) -> list[Any]:
    value = record.get(key)
    if isinstance(value, torch.Tensor):
        if value.dim() == 2 and 1 in value.shape:
            value = value.flatten()
        if value.dim() != 1:
            raise BadRecordError(f"{key} is a tensor of shape {tuple(value.shape)}, expected one dimension")
        value = (value.float() if value.dtype.is_floating_point else value).tolist()
    if not isinstance(value, (list, tuple)):
        raise BadRecordError(f"{key} is {'missing' if value is None else _kind(value)}, expected a list")
    return list(value)


def _tokens(record: Record, key: str) -> list[str] | list[int]:
    values = _values(record, key)
    for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise BadRecordError(f"{key}[{i}] is {_short(value)}, expected a string or a token id")
    return values


def _floats(record: Record, key: str, length: int) -> Floats:
    values = _values(record, key)
    if len(values) != length:
        raise BadRecordError(f"{key} has {len(values)} values, expected {length}, one per token")
    for i, value in enumerate(values):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise BadRecordError(f"{key}[{i}] is {_short(value)}, expected a number")
    try:
        with np.errstate(over="ignore"):
            return np.array([np.nan if value is None else value for value in values], np.float64).astype(np.float32)
    except OverflowError:
        raise BadRecordError(f"{key} holds an integer beyond the range of floats, expected numbers") from None


def _columns(record: Record, names: Mapping[str, str], length: int) -> dict[str, Floats]:
    return {name: _floats(record, key, length) for name, key in names.items() if record.get(key) is not None}


def _advantages(record: Record, key: str, length: int) -> Floats:
    """One per token, or one for all."""
    value = record.get(key)
    one = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 and value.dim() == 0 else value
    if isinstance(one, (int, float)):
        return _floats({key: [one] * length}, key, length)
    return _floats(record, key, length)


def _mask(record: Record, key: str, length: int) -> NDArray[np.bool_]:
    if record.get(key) is None:
        return np.ones(length, bool)
    values = _values(record, key)
    if len(values) != length:
        raise BadRecordError(f"{key} has {len(values)} values, expected {length}, one per token")
    for i, value in enumerate(values):
        if value not in (0, 1):
            raise BadRecordError(f"{key}[{i}] is {_short(value)}, expected true or false, 1 or 0")
    return np.array(values, bool)


def _positions(record: Record, length: int) -> NDArray[np.int64] | None:
    if record.get("positions") is None:
        return None
    values = _values(record, "positions")
    if len(values) != length:
        raise BadRecordError(f"positions has {len(values)} values, expected {length}, one per token")
    for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
            raise BadRecordError(f"positions[{i}] is {_short(value)}, expected an integer from 0")
    return np.array(values, np.int64)


def _group(record: Record, key: str) -> str | None:
    value = record.get(key)
    return None if value is None else str(value)[:200]


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else f"a {type(value).__name__}")


def _short(value: object) -> str:
    if isinstance(value, (str, float, bool)) or value is None:
        return repr(value)[:60]
    return str(value) if isinstance(value, int) and abs(value) < 1e18 else _kind(value)
