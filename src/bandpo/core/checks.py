"""What the core accepts: log-probabilities, radii, shapes. A refusal is a ValueError that names the value.

Tensor values are checked only if that is free, on the CPU and outside a trace; shapes and types always.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

DEFAULT_RADIUS = 0.05
"""The divergence budget per token; the only place this default is written."""

POSITIVE_TOLERANCE = 1e-3
"""A log-probability in (0, POSITIVE_TOLERANCE] is rounding and counts as 0; a larger one is an error."""

Radius = float | Tensor | tuple[float | Tensor, float | Tensor]


def is_traced(x: Tensor) -> bool:
    """Whether `x` has no values to read: under torch.compile, torch.func or FakeTensorMode."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return isinstance(x, torch._subclasses.FakeTensor)


def can_look(x: Tensor) -> bool:
    """Whether reading the values of `x` is free: on the CPU and outside a trace."""
    return x.device.type == "cpu" and not is_traced(x)


def check_plain(x: Tensor, name: str) -> None:
    """ValueError if `x` is a DTensor."""
    if hasattr(x, "full_tensor"):
        raise ValueError(
            f"{name}: got a DTensor; allowed: a plain tensor; pass its to_local() if each process holds its own "
            "tokens, else its full_tensor()"
        )


def as_work_dtype(x: Tensor) -> Tensor:
    """The tensor in the dtype of the results: float64 stays, any other float becomes float32.

    Raises:
        ValueError: the tensor is not floating point, or a DTensor.
    """
    check_plain(x, "log-probabilities")
    if not x.dtype.is_floating_point:
        raise ValueError(
            f"log-probabilities must be floating point (float16, bfloat16, float32, float64), got {x.dtype}"
        )
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def as_tensor(x: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number as a tensor; filled on the device, because a copy from the host makes the host wait for it."""
    if isinstance(x, Tensor):
        return x.to(device, dtype, non_blocking=True)
    return torch.full((), x, dtype=dtype, device=device)


def check_logps(x: Tensor, name: str) -> Tensor:
    """`x` in its work dtype without a gradient, rounding above 0 removed.

    Raises:
        ValueError: not a tensor, not floating point, or a value above POSITIVE_TOLERANCE; if checking would cost a
            device sync such a value becomes NaN instead, so that it fails loudly.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a tensor of log-probabilities, got {type(x).__name__}")
    work = as_work_dtype(x.detach())
    if not can_look(work):
        return torch.where(work > POSITIVE_TOLERANCE, torch.nan, work.clamp(max=0.0))
    top = float(work.max()) if work.numel() else 0.0
    if math.isnan(top):
        top = float(work.nan_to_num(nan=0.0).max())
    if top > POSITIVE_TOLERANCE:
        raise ValueError(
            f"{name} must be log-probabilities <= 0 (up to {POSITIVE_TOLERANCE:g} counts as rounding), got {top:.6g}"
        )
    return work.clamp(max=0.0) if top > 0.0 else work


def check_logps_pair(logps: Tensor, old_logps: Tensor) -> tuple[Tensor, Tensor]:
    """Both log-probs as by `check_logps`, in one shape and dtype; ValueError also if they do not broadcast."""
    new, old = check_logps(logps, "logps"), check_logps(old_logps, "old_logps")
    dtype = torch.promote_types(new.dtype, old.dtype)
    try:
        new, old = torch.broadcast_tensors(new.to(dtype), old.to(dtype))
    except RuntimeError:
        shapes = f"logps of shape {tuple(new.shape)} and old_logps of shape {tuple(old.shape)}"
        raise ValueError(f"{shapes} do not broadcast") from None
    return new, old


def _check_one_radius(radius: Any) -> None:
    if isinstance(radius, Tensor):
        if can_look(radius) and radius.numel():
            least, most = map(float, torch.aminmax(radius.detach().nan_to_num(1.0, math.inf, -math.inf)))
            if not 0.0 < least <= most < math.inf:
                raise ValueError(f"radius must be > 0 and finite, got {most if least > 0.0 else least}")
        return
    try:
        value = float(radius)
    except (TypeError, ValueError):
        raise ValueError(
            f"radius must be a number, a tensor or a pair (lower side, upper side), got {radius!r}"
        ) from None
    if not 0.0 < value < math.inf:  # comparisons, because torch.compile can trace them for a symbolic float
        raise ValueError(f"radius must be > 0 and finite, got {value}")


def check_radius(radius: Radius) -> tuple[float | Tensor, float | Tensor]:
    """The (lower side, upper side) radii; ValueError unless they are > 0 and finite, if checking is free."""
    pair = radius if isinstance(radius, (tuple, list)) else (radius, radius)
    if len(pair) != 2:
        raise ValueError(f"a radius pair is (lower side, upper side), got {len(pair)} entries: {radius!r}")
    low, high = pair
    _check_one_radius(low)
    if high is not low:
        _check_one_radius(high)
    return low, high


def place_radius(radius: Radius, like: Tensor) -> tuple[Tensor, Tensor]:
    """(lower side, upper side) radii as tensors like `like`, one object if they are one; ValueError as above."""
    low, high = check_radius(radius)

    def place(one: float | Tensor) -> Tensor:
        if not isinstance(one, Tensor):
            return torch.full((), float(one), dtype=like.dtype, device=like.device)
        check_broadcast("radius", one, "old_logps", like)
        return one.to(device=like.device, dtype=like.dtype)

    placed = place(low)
    return placed, placed if low is high else place(high)


def check_broadcast(name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    """ValueError with both shapes unless `x` broadcasts to the shape of `like`."""
    check_plain(x, name)
    try:
        fits = torch.broadcast_shapes(x.shape, like.shape) == like.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} of shape {tuple(x.shape)} does not broadcast to {like_name} of shape {tuple(like.shape)}"
        )


def check_number(owner: str, name: str, value: float, low: float, high: float, allowed: str) -> None:
    """ValueError that names the option of `owner` unless its value is a number from `low` to `high`."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{owner}: {name} is {value!r}; allowed: {allowed}")


def check_cap_and_floor(owner: str, cap: float | None, floor: float | None) -> None:
    """ValueError unless the largest ratio allowed is >= 1 and the smallest from 0 to 1, or None."""
    if not (cap is None or isinstance(cap, Tensor)):  # a tensor was checked when it was a number
        check_number(owner, "cap", cap, 1.0, math.inf, "None or a number >= 1")
    if not (floor is None or isinstance(floor, Tensor)):
        check_number(owner, "floor", floor, 0.0, 1.0, "None or a number from 0 to 1")
