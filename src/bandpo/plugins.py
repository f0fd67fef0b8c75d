"""The user's own objects, named as 'module:Name' in a recipe or on the command line."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from bandpo.words import nearest

Base = TypeVar("Base")


def is_own(name: str) -> bool:
    """Whether `name` is a user's own object ('module:Name'), not one from this package."""
    return ":" in name


def load_object(spec: str, what: str) -> Any:
    """The object that 'module:Name' names; the current directory is searched too.

    Args:
        spec: 'module:Name', for example 'my_rules:MyRule'.
        what: What the object is used as ("reward", "clip rule", "task"), for messages.

    Raises:
        ValueError: If the module cannot be imported or has no such name; names the cause.
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise ValueError(f"{what} {spec!r} is not of the form module:Name")
    if os.getcwd() not in sys.path:  # last, so that it cannot shadow an installed module
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs arbitrary code
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{what} {spec!r}: cannot import {module_name!r}: {reason}") from error
    if not hasattr(module, name):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise ValueError(f"{what} {spec!r}: {module_name} has no {name!r}{nearest(name, known)}")
    return getattr(module, name)


def load_function(spec: str, what: str) -> Callable[..., Any]:
    """The function that 'module:function' names.

    Raises:
        ValueError: As `load_object`, or if it cannot be called.
    """
    function = load_object(spec, what)
    if not callable(function):
        raise ValueError(f"{what} {spec!r} is a {type(function).__name__}; allowed: a function")
    return function


def load_class(spec: str, what: str, base: type[Base]) -> type[Base]:
    """The class that 'module:Class' names, a complete subclass of `base`.

    Raises:
        ValueError: As `load_object`, if it is not a subclass of `base`, or if it lacks one of its abstract methods.
    """
    found = load_object(spec, what)
    if not (isinstance(found, type) and issubclass(found, base)):
        kind = "class" if isinstance(found, type) else type(found).__name__
        home = base.__module__.partition(".")[0]
        raise ValueError(f"{what} {spec!r} is a {kind}; allowed: a subclass of {home}'s {base.__name__}")
    if inspect.isabstract(found):
        missing = ", ".join(f"{name}()" for name in sorted(found.__abstractmethods__))  # type: ignore[attr-defined]
        raise ValueError(f"{what} {spec!r} lacks {missing}")
    return found
