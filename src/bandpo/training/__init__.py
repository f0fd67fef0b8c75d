"""Training with TRL: `BandGRPOConfig` and `BandGRPOTrainer` (needs the `train` extra)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bandpo.training.trainer import BandGRPOConfig, BandGRPOTrainer

__all__ = ["BandGRPOConfig", "BandGRPOTrainer"]


def __getattr__(name: str) -> Any:
    # Reports and recipes live beside the trainer and do without TRL, which takes seconds to import.
    if name in __all__:
        from bandpo.training import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
