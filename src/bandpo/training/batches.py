"""The tokens of an update, on disk: batch-STEP.npz."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bandpo.files import write_atomic

BYTES_A_RUN = 400_000  # before compression, over all of a run's batches
LONGEST_PROMPT = 1000  # characters
_LATER = ("mean_slope", "prompts", "groups")  # fields that older files do not have


@dataclass(frozen=True)
class TokenBatch:
    """A micro-batch as an update saw it; nothing is rounded below the trainer's float32.

    Attributes:
        step: Number of the update, from 1.
        texts: Text of each distinct token, shape (V,).
        tokens: Index into `texts`, shape (B, T).
        logps: Log-probs under the policy just before the update, shape (B, T).
        old_logps: Log-probs under the anchor policy, shape (B, T); 0 where the mask is False.
        entropy: Entropy of the policy in nats, shape (B, T).
        advantages: Shape (B, T).
        mask: True for tokens that count, shape (B, T).
        mean_slope: E_pi[S] = sum_k pi_k^2 (ln pi_k + H) of the policy, which the entropy ledger needs
            (`bandpo.report.ledger`), shape (B, T); NaN if the logits were not seen, as in older files.
        prompts: Text of each distinct prompt, its last `LONGEST_PROMPT` characters, shape (P,).
        groups: Index into `prompts`, shape (B,); -1 if it was not recorded, as in older files.
    """

    step: int
    texts: NDArray[np.str_]
    tokens: NDArray[np.int32]
    logps: NDArray[np.float32]
    old_logps: NDArray[np.float32]
    entropy: NDArray[np.float32]
    advantages: NDArray[np.float32]
    mask: NDArray[np.bool_]
    mean_slope: NDArray[np.float32] = field(default_factory=lambda: np.full((1, 1), np.nan, np.float32))
    prompts: NDArray[np.str_] = field(default_factory=lambda: np.array([], np.str_))
    groups: NDArray[np.int32] = field(default_factory=lambda: np.full(1, -1, np.int32))

    def __post_init__(self) -> None:
        shape = self.tokens.shape
        if self.mean_slope.shape == (1, 1) and len(shape) == 2:
            object.__setattr__(self, "mean_slope", np.broadcast_to(self.mean_slope, shape))
        if self.groups.shape == (1,) and self.groups[0] < 0 and len(shape) == 2:
            object.__setattr__(self, "groups", np.broadcast_to(self.groups, shape[:1]))
        for name in ("logps", "old_logps", "entropy", "advantages", "mask", "mean_slope"):
            if getattr(self, name).shape != shape or len(shape) != 2:
                raise ValueError(
                    f"{name} has shape {getattr(self, name).shape}; allowed: (B, T) as tokens, here {shape}"
                )
        if self.groups.shape != shape[:1]:
            raise ValueError(f"groups has shape {self.groups.shape}; allowed: (B,), here {shape[:1]}")

    @classmethod
    def of_trainer(cls, trainer: Any, step: int, limit: int) -> TokenBatch | None:
        """The last micro-batch of a `Durable` trainer, or None if every ratio is 1 by construction.

        Args:
            limit: Bytes that the arrays may take before compression; only as many completions as fit are kept.
        """
        inputs = trainer.last_inputs
        if inputs is None or inputs.get("old_per_token_logps") is None:
            return None
        logps, entropy, slope = trainer.last_forward
        mask = inputs["completion_mask"].bool()
        if "tool_mask" in inputs:
            mask = mask & inputs["tool_mask"].bool()
        length = int(mask.any(0).nonzero().max()) + 1 if mask.any() else 1
        rows = min(len(mask), max(1, limit // (length * 4 * 6)))

        def take(values: Any) -> Any:
            return values[:rows, :length].cpu().numpy()

        mask = take(mask)
        kinds, tokens = np.unique(take(inputs["completion_ids"]), return_inverse=True)
        decode = trainer.processing_class.decode
        advantages = inputs["advantages"]
        if advantages.dim() == 1:
            advantages = advantages.unsqueeze(1).expand_as(logps)
        floats = {
            "logps": logps,
            "old_logps": inputs["old_per_token_logps"],
            "entropy": entropy,
            "advantages": advantages,
            "mean_slope": torch.full_like(logps, torch.nan) if slope is None else slope,
        }
        return cls(
            step=step,
            texts=np.array([decode([int(kind)]) for kind in kinds], dtype=np.str_),
            **_prompts(inputs, rows, decode),
            tokens=tokens.reshape(mask.shape).astype(np.int32),
            mask=mask,
            **{name: np.where(mask, take(values.float()), np.float32(0)) for name, values in floats.items()},
        )

    def save(self, folder: Path) -> Path:
        """Write batch-STEP.npz into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{f.name: getattr(self, f.name) for f in fields(self)})
        path = folder / f"batch-{self.step}.npz"
        write_atomic(path, buffer.getvalue())
        return path

    @classmethod
    def load(cls, path: Path) -> TokenBatch:
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is damaged or is not a token batch.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {f.name: file[f.name] for f in fields(cls) if f.name in file or f.name not in _LATER}
            return cls(**{**arrays, "step": int(arrays["step"])})
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{str(path)!r} is not a record of tokens: {error}") from error


def _prompts(inputs: dict[str, Any], rows: int, decode: Callable[[list[int]], str]) -> dict[str, Any]:
    """`TokenBatch.prompts` and `groups`; completions come shuffled, and only prompts show which belong together."""
    if "prompt_ids" not in inputs:
        return {}
    pairs = zip(inputs["prompt_ids"][:rows], inputs["prompt_mask"][:rows], strict=True)
    asked = [tuple(ids[keep.bool()].tolist()) for ids, keep in pairs]
    distinct = {ids: number for number, ids in enumerate(dict.fromkeys(asked))}
    texts = np.array([decode(list(ids))[-LONGEST_PROMPT:] for ids in distinct], dtype=np.str_)
    return {"prompts": texts, "groups": np.array([distinct[ids] for ids in asked], np.int32)}


def list_batches(folder: Path) -> list[Path]:
    """The batches' files in a folder, in the order of their updates; none if the folder is missing."""
    found = [
        (int(m[1]), path) for path in folder.glob("*.npz") if (m := re.fullmatch(r"batch-(\d+)\.npz", path.name))
    ]
    return [path for _, path in sorted(found)]


def read_batches(folder: Path) -> list[TokenBatch]:
    """The batches in a folder, in the order of their updates; none if the folder is missing."""
    return [TokenBatch.load(path) for path in list_batches(folder)]


def steps_to_record(updates: int, per_rollout: float, batches: int) -> set[int]:
    """Updates to record, spread evenly: each is the last of its rollout, where ratios are furthest from 1.

    Args:
        updates: Updates of the whole run.
        per_rollout: Updates that follow each rollout; may be a fraction.
        batches: How many to record at most.
    """
    rollouts = max(1, int(updates / per_rollout))
    chosen = {-(-rollouts * i // batches) for i in range(1, batches + 1)}
    return {min(updates, max(1, int(rollout * per_rollout))) for rollout in chosen}
