"""Token logs of any training loop in one form: sampled tokens with what is known about each.

`bandpo.report.dumps` reads files into `Completion`s, `TokenLog.gather` packs them, `bandpo.report.inspection`
analyzes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bandpo.core.tokens import Tokens

Floats = NDArray[np.float32]
LOGPS = ("old_logps", "logps", "sampling_logps")
ENTROPIES = ("entropy", "old_entropy")
ASIDE = (*ENTROPIES, "mean_slope")  # columns that no rule's verdict needs: a token is kept without them
LEAST = -1000.0  # nats; no sampler draws a token of probability 1e-434
ROUNDED = 1e-4  # a log-prob that bfloat16 or a fused kernel rounded this far above 0 counts as 0
CHUNK = 1 << 20  # tokens judged per step


@dataclass(frozen=True)
class Problem:
    """What could not be read, and what was expected there.

    Attributes:
        file: The file.
        line: Its line, or the number of the sample in a binary file, from 1; None for the whole file.
        text: What was found, what was expected, and what was skipped.
    """

    file: str
    line: int | None
    text: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f':{self.line}'}: {self.text}"


@dataclass(frozen=True)
class Note:
    """A sentence on a file whose format is known but holds no log-probs; counts its `completions`."""

    file: str
    text: str
    completions: int = 0


@dataclass(frozen=True)
class Completion:
    """One sampled completion of T tokens; every column has the shape (T,), or is None if it was not logged.

    Attributes:
        format: Name of the file's format.
        line: Line of the file, or the number of the sample in a binary file, from 1.
        tokens: Text of each token, or its id if the log has no text.
        columns: Name (of `LOGPS`, `ASIDE` or "advantages") -> values as logged. `old_logps` are of the anchor,
            which the trust region is centered on, `logps` of the policy being trained, `sampling_logps` those that
            the sampler reported; `entropy` is of the policy of `logps`, `old_entropy` of the anchor; in nats;
            `mean_slope` as in `bandpo.training.batches.TokenBatch`.
        mask: True for tokens that count.
        group: The prompt: completions of one prompt have the same.
        positions: Position of each token in the completion, from 0.
        prompt: The prompt's text.
    """

    format: str
    line: int
    tokens: list[str] | list[int]
    columns: Mapping[str, Floats]
    mask: NDArray[np.bool_]
    group: str | None = None
    positions: NDArray[np.int64] | None = None
    prompt: str | None = None


@dataclass
class FileSummary:
    """The contents of a file.

    Attributes:
        format: Its format, or "" if nothing was recognized.
        completions, tokens: Number of each that counts.
        masked: Tokens that the mask excludes.
        left_out: Tokens or whole completions skipped as damaged, counted in tokens if known.
        having: Column -> number of tokens that have it.
    """

    file: str
    format: str = ""
    completions: int = 0
    tokens: int = 0
    masked: int = 0
    left_out: int = 0
    having: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*LOGPS, *ENTROPIES, "advantages"), 0))


@dataclass(frozen=True, eq=False)
class TokenLog:
    """All tokens that count, concatenated over files: N tokens of S completions.

    Attributes:
        texts: Text of each distinct token, of length V.
        tokens: Index into `texts`, shape (N,).
        columns: Column (`Completion.columns`) -> values, shape (N,); NaN if it was not logged.
        positions: Position in the completion, shape (N,).
        completion: Index of the completion, shape (N,).
        groups: Index of each completion's prompt, shape (S,); -1 if it was not logged.
        prompts: Text of each prompt, "" if it was not logged, of length G.
        places: Index of each completion's file, and its line or sample there, shape (S, 2).
        files: Contents of each file.
        problems: What could not be read.
        notes: Sentences on files without log-probs.
    """

    texts: list[str]
    tokens: NDArray[np.int32]
    columns: Mapping[str, Floats]
    positions: NDArray[np.int64]
    completion: NDArray[np.int32]
    groups: NDArray[np.int64]
    prompts: list[str]
    places: NDArray[np.int64]
    files: list[FileSummary]
    problems: list[Problem]
    notes: list[Note]

    def __len__(self) -> int:
        return len(self.tokens)

    def has(self, *names: str) -> NDArray[np.bool_]:
        """Tokens that have all these columns, shape (N,)."""
        return np.logical_and.reduce([np.isfinite(self.columns[name]) for name in names])

    def chunks(self, keep: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
        """Indices of the tokens in `keep`, at most `CHUNK` at a time."""
        found = np.flatnonzero(keep)
        for start in range(0, len(found), CHUNK):
            yield found[start : start + CHUNK]

    def rule_tokens(self, where: NDArray[np.int64], anchor: str, advantages: Floats) -> Tokens:
        """Some tokens as a clip rule sees them; columns that some of them lack are omitted."""

        def given(name: str) -> Tensor | None:
            values = self.columns[name][where]
            return torch.from_numpy(values) if np.isfinite(values).all() else None

        return Tokens(
            old_logps=torch.from_numpy(self.columns[anchor][where]),
            advantages=torch.from_numpy(advantages),
            mask=torch.ones(len(where), dtype=torch.bool),
            old_entropy=given("old_entropy"),
            sampling_logps=given("sampling_logps"),
            positions=torch.from_numpy(self.positions[where]),
        )

    @classmethod
    def gather(cls, read: Iterable[tuple[Path, Completion | Problem | Note]], paths: Iterable[Path]) -> TokenLog:
        """Pack what was read. Each value is checked here, once, for every format: a token with an impossible
        value is skipped and reported, the rest of its completion is kept.
        """
        packer = _Packer({path: FileSummary(str(path)) for path in paths})
        for path, found in read:
            packer.add(path, found)
        return packer.log()


def one_line(text: str) -> str:
    """Untrusted text, with everything unprintable (control characters, lone surrogates) as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def quoted(text: str) -> str:
    """A token on one line: quoted, with white space, control characters and similar as escapes."""
    shown = repr(text)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."


class _Packer:
    def __init__(self, files: dict[Path, FileSummary]) -> None:
        self.files = files
        self.numbers = {path: number for number, path in enumerate(files)}
        self.texts: dict[str, int] = {}
        self.groups: dict[tuple[str, str], int] = {}
        self.prompts: list[str] = []
        self.places: list[tuple[int, int]] = []
        self.parts: dict[str, list[NDArray[np.float32]]] = {n: [] for n in (*LOGPS, *ASIDE, "advantages")}
        self.tokens: list[NDArray[np.int32]] = []
        self.positions: list[NDArray[np.int64]] = []
        self.lengths: list[int] = []
        self.group: list[int] = []
        self.problems: list[Problem] = []
        self.notes: list[Note] = []

    def add(self, path: Path, found: Completion | Problem | Note) -> None:
        summary = self.files[path]
        if isinstance(found, Problem):
            self.problems.append(found)
        elif isinstance(found, Note):
            self.notes.append(found)
            summary.completions += found.completions
        else:
            summary.format = found.format
            self._add(self.numbers[path], summary, found)

    def _add(self, file: int, summary: FileSummary, one: Completion) -> None:
        keep, columns = one.mask.copy(), dict(one.columns)
        for name, values in one.columns.items():
            good, expected = _check(name, values)
            bad = np.flatnonzero(keep & ~good)
            if not len(bad):
                continue
            what = "skipped"
            if name in ASIDE:
                columns[name], what = np.where(good, values, np.float32(np.nan)), "without it"
            else:
                keep &= good
            text = f"{name}[{bad[0]}] is {values[bad[0]]:g}, expected {expected}; {len(bad)} of "
            self.problems.append(Problem(summary.file, one.line, f"{text}{int(one.mask.sum())} tokens {what}"))
        count = int(keep.sum())
        summary.masked += int((~one.mask).sum())
        summary.left_out += int(one.mask.sum()) - count
        if not count:
            return
        summary.completions += 1
        summary.tokens += count
        kinds = [self.texts.setdefault(t, len(self.texts)) for t in map(_text, one.tokens)]
        self.tokens.append(np.array(kinds, np.int32)[keep])
        positions = np.arange(len(keep)) if one.positions is None else one.positions
        self.positions.append(positions[keep].astype(np.int64))
        for name, parts in self.parts.items():
            given = columns.get(name)
            part = np.full(count, np.nan, np.float32) if given is None else _clean(name, given[keep])
            if name in summary.having:
                summary.having[name] += int(np.isfinite(part).sum())
            parts.append(part)
        self.lengths.append(count)
        self.places.append((file, one.line))
        self.group.append(-1 if one.group is None else self._group(summary.file, one.group, one.prompt or ""))

    def _group(self, file: str, group: str, prompt: str) -> int:
        number = self.groups.setdefault((file, group), len(self.groups))
        if number == len(self.prompts):
            self.prompts.append(prompt)
        return number

    def log(self) -> TokenLog:
        def joined(parts: list[NDArray[np.float32]]) -> Floats:
            whole = np.concatenate(parts) if parts else np.zeros(0, np.float32)
            parts.clear()  # the pieces are no longer needed
            return whole

        return TokenLog(
            texts=list(self.texts),
            tokens=np.concatenate(self.tokens) if self.tokens else np.zeros(0, np.int32),
            columns={name: joined(parts) for name, parts in self.parts.items()},
            positions=np.concatenate(self.positions) if self.positions else np.zeros(0, np.int64),
            completion=np.repeat(np.arange(len(self.lengths), dtype=np.int32), self.lengths),
            groups=np.array(self.group, np.int64),
            prompts=self.prompts,
            places=np.array(self.places, np.int64).reshape(-1, 2),
            files=list(self.files.values()),
            problems=self.problems,
            notes=self.notes,
        )


def _text(token: str | int) -> str:
    return f"#{token}" if isinstance(token, int) else token


def _check(name: str, values: Floats) -> tuple[NDArray[np.bool_], str]:
    if name in LOGPS:
        return (values >= LEAST) & (values <= ROUNDED), f"a log-prob from {LEAST:g} to 0"
    if name in ENTROPIES:
        return (values >= -ROUNDED) & (values < math.inf), "an entropy in nats, at least 0"
    return np.isfinite(values), "a finite number" if name == "mean_slope" else "a finite advantage"


def _clean(name: str, values: Floats) -> Floats:
    return np.minimum(values, np.float32(0)) if name in LOGPS else values


def prompt_key(prompt: object) -> str:
    """A short key for a prompt, so that its text need not be kept."""
    return hashlib.sha1(str(prompt).encode("utf-8", "replace")).hexdigest()[:12]
