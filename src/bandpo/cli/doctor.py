"""bandpo doctor"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

EXTRAS = {
    "": "operator and loss",
    "cli": "command line",
    "report": "pictures and reports",
    "train": "training",
    "quickstart": "model of the quickstart",
    "explore": "server of the explorer",
}
# What a feature outside our extras needs: (feature, package, what to install).
OPTIONAL = (
    ("vLLM generation", "vllm", "trl[vllm]"),
    ("DeepSpeed", "deepspeed", "trl[deepspeed]"),
    ("fused kernels", "triton", "triton"),
    ("reasoning-gym tasks", "reasoning-gym", "reasoning-gym"),
    ("trackio logging", "trackio", "trackio"),
    ("wandb logging", "wandb", "wandb"),
    ("verl on Ray", "verl", "verl"),
)
NOTES = {"verl": "in a separate environment: it requires an older transformers"}
HUB_TIMEOUT = 3.0  # seconds


@dataclass(frozen=True)
class Requirement:
    """A package that a feature needs.

    Attributes:
        wanted: Versions that work, as in pyproject.toml; empty for any.
        installed: The version here, or None.
        works: Whether it is installed in a wanted version.
        command: The command that installs it.
    """

    feature: str
    package: str
    wanted: str
    installed: str | None
    works: bool
    command: str


@dataclass(frozen=True)
class Device:
    """A device for tensors, with its memory in bytes."""

    name: str
    total: int
    free: int


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `bandpo doctor` reports.

    Attributes:
        broken: What keeps the package from working at all; empty if it works.
        disks: Folder -> free bytes.
        hub: A sentence on whether the model hub answers.
        largest: Way of training -> parameters of the largest model that fits.
    """

    python: str
    broken: list[str]
    requirements: list[Requirement]
    devices: list[Device]
    disks: dict[str, int]
    hub: str
    largest: dict[str, int]


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False) -> None:
    """Show what is installed, what is missing for which feature, and what this machine can train."""
    diagnosis = diagnose()
    if as_json:
        typer.echo(json.dumps(asdict(diagnosis), indent=2))
    else:
        _print(diagnosis)
    if diagnosis.broken:
        raise typer.Exit(1)


def diagnose() -> Diagnosis:
    """Inspect this Python, this machine and the network."""
    requirements = [*_own_requirements(), *_optional_requirements()]
    broken = [
        f"{r.package} {r.wanted} is needed, {'none is' if r.installed is None else r.installed + ' is'} installed"
        for r in requirements
        if r.feature in (EXTRAS[""], EXTRAS["cli"]) and not r.works
    ]
    broken += _check_operator()
    devices = find_devices()
    return Diagnosis(
        python=sys.version.split()[0],
        broken=broken,
        requirements=requirements,
        devices=devices,
        disks=_disks(),
        hub=ask_hub(),
        largest=_largest(devices),
    )


def _own_requirements() -> Iterator[Requirement]:
    """The requirements of each extra, from the installed package's metadata."""
    from packaging.requirements import Requirement as Parsed

    for text in metadata.requires("bandpo") or []:
        parsed = Parsed(text)
        for extra, feature in EXTRAS.items():
            fits = parsed.marker is None if not extra else parsed.marker is not None
            if not fits or parsed.name == "bandpo":
                continue
            if parsed.marker is None or (
                parsed.marker.evaluate({"extra": extra}) and not parsed.marker.evaluate({"extra": ""})
            ):
                command = f"pip install 'bandpo[{extra}]'" if extra else "pip install bandpo"
                yield _look_up(feature, parsed.name, str(parsed.specifier), command)


def _optional_requirements() -> Iterator[Requirement]:
    for feature, package, install in OPTIONAL:
        wanted = _wanted_by_trl(package) if install.startswith("trl[") else ""
        yield _look_up(feature, package, wanted, f"pip install '{install}'")


def _wanted_by_trl(package: str) -> str:
    from packaging.requirements import Requirement as Parsed

    try:
        parsed = map(Parsed, metadata.requires("trl") or [])
    except metadata.PackageNotFoundError:
        return ""
    return next((str(p.specifier) for p in parsed if p.name == package), "")


def _look_up(feature: str, package: str, wanted: str, command: str) -> Requirement:
    from packaging.specifiers import SpecifierSet

    try:
        installed = metadata.version(package)
    except metadata.PackageNotFoundError:
        return Requirement(feature, package, wanted, None, False, command)
    works = SpecifierSet(wanted).contains(installed, prereleases=True)
    return Requirement(feature, package, wanted, installed, works, command)


def _check_operator() -> list[str]:
    """Problems with the bounds of a coin with radius 0.05 nats; empty if they are right."""
    try:
        torch = importlib.import_module("torch")
        bandpo = importlib.import_module("bandpo")
        bounds = bandpo.band(torch.tensor([0.5], dtype=torch.float64).log(), radius=0.05, divergence="kl")
        upper = float(bounds.upper)
    except Exception as error:
        return [f"the operator does not run: {type(error).__name__}: {' '.join(str(error).split())}"]
    # KL(old || new) = -ln(4 q (1 - q)) / 2 = 0.05 at the new probability q.
    exact = 1 + (1 - 2.718281828459045**-0.1) ** 0.5
    return [] if abs(upper - exact) < 1e-6 else [f"the operator is wrong: upper bound {upper}, should be {exact}"]


def find_devices() -> list[Device]:
    """The CPU, and the GPUs that torch sees."""
    devices = []
    try:
        import psutil

        memory = psutil.virtual_memory()
        devices.append(Device(f"CPU, {os.cpu_count()} cores", memory.total, memory.available))
    except ImportError:  # comes with the train extra
        if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
            page = os.sysconf("SC_PAGE_SIZE")
            total, free = (page * os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
            devices.append(Device(f"CPU, {os.cpu_count()} cores", total, free))
    try:
        import torch
    except ImportError:
        return devices
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        devices.append(Device(torch.cuda.get_device_name(i), total, free))
    return devices


def _disks() -> dict[str, int]:
    from bandpo.models import cache_directory

    folders = {"here": Path.cwd(), "converted models": cache_directory()}
    try:
        from huggingface_hub.constants import HF_HUB_CACHE

        folders["hub's cache"] = Path(HF_HUB_CACHE)
    except ImportError:
        pass
    free = {}
    for what, folder in folders.items():
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        free[f"{what} ({folder})"] = shutil.disk_usage(there).free
    return free


def ask_hub() -> str:
    """Whether the Hugging Face hub answers within a few seconds; not asked if the user is offline."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return "not asked: huggingface_hub is not installed"
    if constants.HF_HUB_OFFLINE:
        return "not asked: HF_HUB_OFFLINE is set"
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT).close()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            return f"{constants.ENDPOINT} answers with error {error.code}"
    except OSError as error:
        reason = getattr(error, "reason", error)
        return f"{constants.ENDPOINT} cannot be reached ({reason}); use local paths and HF_HUB_OFFLINE=1"
    return f"{constants.ENDPOINT} answers"


def _largest(devices: list[Device]) -> dict[str, int]:
    gpus = [device for device in devices if not device.name.startswith("CPU")]
    if not devices or importlib.util.find_spec("torch") is None:
        return {}
    from bandpo.runs.memory import largest_models

    return largest_models(max(device.free for device in gpus or devices), gpu=bool(gpus))


def _print(diagnosis: Diagnosis) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from bandpo.runs.memory import show_bytes

    console = Console()
    table = Table("", "", "installed", "wanted", "what to do", box=None, padding=(0, 2))
    feature = ""
    for r in diagnosis.requirements:
        mark = "[green]ok[/green]" if r.works else "[yellow]--[/yellow]"
        command = "" if r.works else " ".join(filter(None, [r.command, NOTES.get(r.package, "")]))
        package = Text(f"{r.package} {r.installed or 'missing'}")
        table.add_row(r.feature if r.feature != feature else "", mark, package, Text(r.wanted), Text(command))
        feature = r.feature
    console.print(f"Python {diagnosis.python}", highlight=False)
    console.print(table)
    facts = Table(box=None, show_header=False, padding=(0, 2))
    facts.add_column(overflow="fold")
    facts.add_column(overflow="fold")
    for device in diagnosis.devices:
        facts.add_row(device.name, f"{show_bytes(device.free)} free of {show_bytes(device.total)}")
    for folder, free in diagnosis.disks.items():
        facts.add_row(Text(folder), f"{show_bytes(free)} free")
    facts.add_row("model hub", Text(diagnosis.hub))
    for way, weights in diagnosis.largest.items():
        facts.add_row(f"largest by {way}", _count(weights))
    facts.add_row("shell completion", "bandpo --install-completion")
    console.print(facts)
    for sentence in diagnosis.broken:
        console.print(Text(f"broken: {sentence}", style="red"), soft_wrap=True)


def _count(weights: int) -> str:
    if not weights:
        return "none"
    amount = f"{weights / 1e9:.1f} billion" if weights >= 1e9 else f"{weights / 1e6:.0f} million"
    return f"about {amount} parameters (micro-batches of 4 sequences of 1,024 tokens)"
