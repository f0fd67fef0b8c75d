"""Memory that training takes: estimated from a model's sizes, and measured. Needs only PyTorch."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

# TRL's fused head never holds more logits than one tile (trl.kernels.chunked_logprob).
LOGITS_TILE = (4096, 32768)
ADAM_STATES = 2
HEADROOM = 0.9  # share of the free memory that a plan may use


@dataclass(frozen=True)
class Architecture:
    """The sizes of a causal language model that decide its memory.

    Attributes:
        parameters, trainable: Parameter counts; tied weights count once.
        block: Weights of one layer.
        kv_width: Key-value heads times their size.
    """

    parameters: int
    trainable: int
    block: int
    layers: int
    hidden: int
    intermediate: int
    kv_width: int
    vocabulary: int

    @classmethod
    def of(cls, model: Any) -> Architecture:
        """Read the sizes from a model, which may be on the meta device."""
        config = model.config.get_text_config()
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        stack = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == layers)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            parameters=sum(p.numel() for p in model.parameters()),
            trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
            block=sum(p.numel() for p in stack[0].parameters()),
            layers=layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            kv_width=(getattr(config, "num_key_value_heads", None) or heads) * head_dim,
            vocabulary=config.vocab_size,
        )


@dataclass(frozen=True)
class Memory:
    """Bytes that one process holds, by purpose.

    Attributes:
        libraries: The process before it loads a model (on the CPU only).
        working: Activations of a micro-batch and temporaries.
        cache: KV cache during generation.
        measured: Whether `peak` comes from a probe.
    """

    weights: int
    gradients: int
    optimizer: int
    working: int
    logits: int
    cache: int
    peak: int
    reference: int = 0
    libraries: int = 0
    measured: bool = False


def estimate_memory(
    shape: Architecture,
    *,
    sequences: int,
    tokens: int,
    completion: int,
    generated: int,
    weight_bytes: int = 4,
    compute_bytes: int = 4,
    checkpointing: bool = False,
    reference: bool = False,
    processes: int = 1,
) -> Memory:
    """Bytes on each of `processes` GPUs under fully sharded training (FSDP, ZeRO-3) with AdamW.

    Args:
        sequences: Sequences of a micro-batch.
        tokens: Length of a sequence, prompt and completion.
        completion: Length of a completion.
        generated: Sequences that this process generates at a time; 0 if a server does.
        weight_bytes, compute_bytes: Bytes per stored weight, and per weight in the forward pass.
        checkpointing: Activations are recomputed in the backward pass.
        reference: A frozen copy of the model stays loaded for the KL term.
    """
    stored = shape.parameters * weight_bytes // processes
    weights = stored
    if processes > 1:  # two layers, and the weights outside of layers, are gathered at a time
        weights += (2 * shape.block + shape.parameters - shape.layers * shape.block) * compute_bytes
    elif compute_bytes < weight_bytes:  # autocast keeps its copies for a forward pass
        weights += shape.parameters * compute_bytes
    gradients = shape.trainable * weight_bytes // processes
    layer = 10 * shape.hidden + 4 * shape.intermediate  # numbers that a layer keeps per token
    kept = shape.layers * shape.hidden + layer if checkpointing else shape.layers * layer
    working = sequences * tokens * kept * compute_bytes
    tile = min(sequences * completion, LOGITS_TILE[0]) * min(shape.vocabulary, LOGITS_TILE[1])
    # For a fully trained head, the fused loss accumulates its gradient in float32.
    head = shape.vocabulary * shape.hidden * 4 if shape.trainable == shape.parameters else 0
    logits = tile * compute_bytes + head
    cache = 2 * shape.layers * shape.kv_width * generated * tokens * compute_bytes
    optimizer = ADAM_STATES * gradients
    copy = stored if reference else 0
    return Memory(
        weights=weights,
        reference=copy,
        gradients=gradients,
        optimizer=optimizer,
        working=working,
        logits=logits,
        cache=cache,
        peak=weights + copy + optimizer + max(gradients + working + logits, cache),
    )


def typical_model(hidden: int) -> Architecture:
    """The sizes of a typical current decoder of a given width."""
    layers, intermediate, vocabulary = max(hidden // 112, 2), 3 * hidden, 128_000
    block = 5 * hidden * hidden // 2 + 3 * hidden * intermediate
    parameters = layers * block + vocabulary * hidden
    return Architecture(parameters, parameters, block, layers, hidden, intermediate, hidden // 4, vocabulary)


def largest_models(free: int, gpu: bool) -> dict[str, int]:
    """Parameters of the largest decoder that trains in `free` bytes, per way of training.

    A micro-batch has 4 sequences of 1,024 tokens, half of them completion; 32 are generated at a time. Checkpointed
    and in bfloat16 on a GPU, neither on a CPU.
    """
    ways = {"full fine-tuning": 1.0, "LoRA": 0.01}
    largest = dict.fromkeys(ways, 0)
    for way, share in ways.items():
        for hidden in range(64, 32768, 64):
            shape = typical_model(hidden)
            shape = replace(shape, trainable=int(share * shape.parameters))
            need = estimate_memory(
                shape,
                sequences=4,
                tokens=1024,
                completion=512,
                generated=32,
                compute_bytes=2 if gpu else 4,
                checkpointing=gpu,
            ).peak
            if need > HEADROOM * free:
                break
            largest[way] = shape.parameters
    return largest


def resident_memory() -> int:
    """Bytes that this process currently holds."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int:
    """Largest number of bytes held so far: allocated on the GPU if there is one, else by this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory() -> None:
    """Reset the peak, if the system allows it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def show_bytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
