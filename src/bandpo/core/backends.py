"""Picks how the loss is computed: the only place that does.

    eager     PyTorch operations one by one: every rule, dtype and device
    compile   the same operations through torch.compile: needs a C++ compiler on the CPU, Triton on CUDA
    triton    one hand-written kernel, only if asked for: CUDA, or the CPU under TRITON_INTERPRET=1 for tests; float32
              and below; any rule, with "kl", "tv" or "chi2" as its divergence

All three give the same value, gradient and metrics. Triton is imported on first use and never chosen
automatically: it has not run on a GPU yet.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bandpo.core.checks import is_traced
from bandpo.words import nearest

if TYPE_CHECKING:
    from bandpo.core.rules import ClipRule

BACKENDS = ("eager", "compile", "triton")

VARIABLE = "BANDPO_BACKEND"
"""Environment variable that forces a backend if the call names none."""

COMPILE_FROM = 2**18
"""Number of tokens from which compiling is worth the tens of seconds that the first compilation takes."""


TRACED = "logps is inside a transform of torch.func, or a FakeTensor"


class _State:
    compile_failure: str | None = None
    told = False


def triton_kernels() -> ModuleType:
    """The module of Triton kernels; ImportError without Triton."""
    return importlib.import_module("bandpo.core.kernels.fused")


def triton_refusal(logps: Tensor, rule: ClipRule) -> str | None:
    """Why the Triton kernels cannot do this call, or None if they can."""
    if is_traced(logps):
        return TRACED
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if logps.dtype == torch.float64:
        return "the kernel computes in float32, and logps is float64"
    if not logps.dim():
        return "logps is a single number"
    if logps.device.type not in ("cuda", "cpu"):
        return f"logps is on {logps.device.type}, and the kernel runs on CUDA"
    if logps.device.type == "cpu" and not triton_kernels().INTERPRETED:
        return "logps is on the CPU, where Triton only interprets (set TRITON_INTERPRET=1 before it is imported)"
    why: str | None = triton_kernels().refusal(rule)
    return why


def compile_refusal(logps: Tensor) -> str | None:
    """Why torch.compile cannot work for tensors like this, or None, as far as can be known without compiling."""
    if is_traced(logps):
        return TRACED
    if logps.device.type == "meta":
        return "logps is on the meta device"
    if logps.device.type == "cpu" and not _has_cpp_compiler():
        return "torch.compile needs a C++ compiler on the CPU, and none was found (install g++ or set CXX)"
    if logps.device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "torch.compile needs Triton on CUDA, and it is not installed"
    return _State.compile_failure


def _has_cpp_compiler() -> bool:
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler
    except ImportError:
        return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "cl"))
    try:
        get_cpp_compiler()
    except Exception:
        return False
    return True


def pick_backend(requested: str | None, logps: Tensor, rule: ClipRule) -> tuple[str, bool]:
    """(the backend that computes the loss of `logps` under `rule`, whether it was forced).

    Without a request (and with BANDPO_BACKEND unset or empty): "compile" from COMPILE_FROM tokens on if it can work,
    else "eager". If torch.compile would have been chosen but cannot work, it warns once per process.
    Inside a caller's torch.compile it is always "eager", because the operations are being compiled already.

    Raises:
        ValueError: an unknown name.
        RuntimeError: a requested backend that cannot run here; names the reason and the backends that can run.
    """
    if torch.compiler.is_compiling():
        return "eager", False
    source = "backend"
    if requested is None:
        requested, source = os.environ.get(VARIABLE) or None, VARIABLE
    if requested is not None:
        return _forced(requested, source, logps, rule) if logps.numel() else "eager", True
    if logps.numel() < COMPILE_FROM or is_traced(logps):
        return "eager", False
    why = compile_refusal(logps)
    if why is None:
        return "compile", False
    _tell(why)
    return "eager", False


def _forced(requested: str, source: str, logps: Tensor, rule: ClipRule) -> str:
    if requested not in BACKENDS:
        raise ValueError(
            f"unknown {source} {requested!r}{nearest(requested, BACKENDS)}; known: {', '.join(BACKENDS)}"
        )
    reasons: dict[str, Callable[[], str | None]] = {
        "eager": lambda: None,
        "compile": lambda: compile_refusal(logps),
        "triton": lambda: triton_refusal(logps, rule),
    }
    why = reasons[requested]()
    if why is not None:
        able = [name for name in BACKENDS if name != requested and reasons[name]() is None]
        raise RuntimeError(f"{source} {requested!r} cannot run: {why}; can run here: {', '.join(able)}")
    return requested


def _tell(why: str) -> None:
    if not _State.told:
        _State.told = True
        warnings.warn(f"bandpo computes the loss eagerly, because torch.compile cannot work: {why}", stacklevel=4)


def note_compile_failure(error: Exception) -> None:
    """Remember that compiling failed, so that the automatic choice stays with eager, and say so once."""
    first = str(error).strip().splitlines()
    _State.compile_failure = f"{type(error).__name__}: {first[0] if first else 'no message'}"
    _tell(_State.compile_failure)


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under torch.compile as one graph with dynamic shapes, wrapped once per process."""
    return torch.compile(function, fullgraph=True, dynamic=True)
