"""Silence libraries, whose progress bars and notices would bury the numbers that matter."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any


def show_warnings() -> None:
    """The package's own warnings as one line each, in the form of an error; others as Python shows them."""
    standard = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if category.__module__.partition(".")[0] == "bandpo":
            print(f"warning: {message}", file=sys.stderr)
        else:
            standard(message, category, *place, **more)

    warnings.showwarning = show


def quiet_libraries() -> None:
    """Silence them before they are imported, which takes seconds and may not be necessary."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
