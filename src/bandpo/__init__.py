"""BandPO: probability-aware trust regions for reinforcement learning of language models (arXiv 2603.04918)."""

from typing import TYPE_CHECKING

from bandpo.lazy import lazy

if TYPE_CHECKING:
    from bandpo.core.adaptive import AdaptiveBand, DisagreementBand, EntropyBand, PositionBand, group_disagreement
    from bandpo.core.band import RatioBounds, band, band_side, binary_divergence, inside
    from bandpo.core.certify import Certificate, certify
    from bandpo.core.divergences import FDivergence
    from bandpo.core.losses import PolicyLoss, policy_loss
    from bandpo.core.rivals import DCPO, ESTR, IPO, RIPO, Clip, NoClip, RelaxedBand
    from bandpo.core.rules import Band, ClipRule
    from bandpo.core.table import BandTable, band_table
    from bandpo.core.tokens import Tokens
    from bandpo.version import __version__ as __version__

__all__ = [
    "DCPO",
    "ESTR",
    "IPO",
    "RIPO",
    "AdaptiveBand",
    "Band",
    "BandTable",
    "Certificate",
    "Clip",
    "ClipRule",
    "DisagreementBand",
    "EntropyBand",
    "FDivergence",
    "NoClip",
    "PolicyLoss",
    "PositionBand",
    "RatioBounds",
    "RelaxedBand",
    "Tokens",
    "band",
    "band_side",
    "band_table",
    "binary_divergence",
    "certify",
    "group_disagreement",
    "inside",
    "policy_loss",
]

# The command line imports this file, and PyTorch takes seconds.
__getattr__, __dir__ = lazy(
    __name__,
    {
        "bandpo.core.adaptive": (
            "AdaptiveBand",
            "DisagreementBand",
            "EntropyBand",
            "PositionBand",
            "group_disagreement",
        ),
        "bandpo.core.band": ("RatioBounds", "band", "band_side", "binary_divergence", "inside"),
        "bandpo.core.certify": ("Certificate", "certify"),
        "bandpo.core.divergences": ("FDivergence",),
        "bandpo.core.losses": ("PolicyLoss", "policy_loss"),
        "bandpo.core.rivals": ("DCPO", "ESTR", "IPO", "RIPO", "Clip", "NoClip", "RelaxedBand"),
        "bandpo.core.rules": ("Band", "ClipRule"),
        "bandpo.core.table": ("BandTable", "band_table"),
        "bandpo.core.tokens": ("Tokens",),
        "bandpo.version": ("__version__",),
    },
)
