"""BandPO: probability-aware trust regions for reinforcement learning of language models (arXiv 2603.04918)."""

from bandpo.core.band import RatioBounds, band, band_side, binary_divergence, inside
from bandpo.core.certify import Certificate, certify
from bandpo.core.divergences import FDivergence
from bandpo.core.losses import PolicyLoss, policy_loss
from bandpo.core.rules import DCPO, AdaptiveBand, Band, Clip, ClipRule, NoClip
from bandpo.core.table import BandTable, band_table

__all__ = [
    "DCPO",
    "AdaptiveBand",
    "Band",
    "BandTable",
    "Certificate",
    "Clip",
    "ClipRule",
    "FDivergence",
    "NoClip",
    "PolicyLoss",
    "RatioBounds",
    "band",
    "band_side",
    "band_table",
    "binary_divergence",
    "certify",
    "inside",
    "policy_loss",
]
