"""Training with TRL: `BandGRPOConfig` and `BandGRPOTrainer` (needs the `train` extra)."""

from typing import TYPE_CHECKING

from bandpo.lazy import lazy

if TYPE_CHECKING:
    from bandpo.training.config import BandGRPOConfig
    from bandpo.training.trainer import BandGRPOTrainer

__all__ = ["BandGRPOConfig", "BandGRPOTrainer"]

# The other modules here do not need TRL, which takes seconds to import.
__getattr__, __dir__ = lazy(
    __name__, {"bandpo.training.config": ("BandGRPOConfig",), "bandpo.training.trainer": ("BandGRPOTrainer",)}
)
