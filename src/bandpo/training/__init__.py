"""Training with TRL: `BandGRPOConfig` and `BandGRPOTrainer` (needs the `train` extra)."""

from bandpo.training.trainer import BandGRPOConfig, BandGRPOTrainer

__all__ = ["BandGRPOConfig", "BandGRPOTrainer"]
