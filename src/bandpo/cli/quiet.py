"""Silence of the libraries: their progress bars and notices would bury the numbers that matter."""

from __future__ import annotations

import os
import warnings


def quiet_libraries() -> None:
    """Ask for it before they are imported, which takes seconds and may not be necessary."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
