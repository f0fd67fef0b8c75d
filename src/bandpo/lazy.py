"""Packages whose names are imported on first use (PEP 562), so that the command line starts fast."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy(package: str, names: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package, to be assigned there under these names.

    The package also imports the same names under `if TYPE_CHECKING` and lists them in `__all__`, for type checkers
    and editors; tests/test_public_api.py keeps the three lists equal.

    Args:
        package: Its `__name__`.
        names: Module -> public names that it defines.
    """
    homes = {name: module for module, own in names.items() for name in own}

    def find(name: str) -> Any:
        module = sys.modules[package]
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=module)
        value = getattr(import_module(homes[name]), name)
        setattr(module, name, value)  # from now on Python finds it without this function
        return value

    def listing() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return find, listing
