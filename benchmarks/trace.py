"""What one call of policy_loss does on CUDA: kernels, copies, waits, and its share of an update of a model.

    python benchmarks/trace.py                   the loss alone, 32 x 1,024 tokens
    python benchmarks/trace.py --model PATH      and an update of that model on as many tokens, in bfloat16

Prints a row per backend and rule and appends them to benchmarks/results/trace.jsonl.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, environment
from speed import measure
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import bandpo
from bandpo.files import append_line

ROWS, COLUMNS, MICRO = 32, 1024, 8
BUDGET = 0.4  # seconds of repeats, as in speed.py
RULES = {"clip": bandpo.Clip(), "band": bandpo.Band()}


def trace(rule: Any, backend: str) -> dict[str, Any]:
    """A call of policy_loss with its backward."""
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS, COLUMNS)
    old = (-torch.empty(shape).exponential_(generator=generator) * 1.5).cuda()
    new = (old + 0.1 * torch.randn(shape, generator=generator).cuda()).clamp(max=0.0).requires_grad_()
    advantages = torch.randn(ROWS, 1, generator=generator).cuda()
    mask = torch.ones(shape, dtype=torch.bool, device="cuda")

    def step() -> None:
        new.grad = None
        bandpo.policy_loss(new, old, advantages, mask, rule=rule, backend=backend).loss.backward()

    seconds = measure(step, "cuda", BUDGET)[0]
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    events = seen.events()
    on_device = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    return {
        "ms": 1e3 * seconds,
        "device_us": sum(e.device_time for e in on_device),
        "kernels": len(on_device),
        "copies_to_host": sum("Memcpy DtoH" in e.name for e in events),
        "copies_to_device": sum("Memcpy HtoD" in e.name for e in events),
        # Ours, before the profile ends, is a cudaDeviceSynchronize.
        "synchronizations": sum("cudaStreamSynchronize" in e.name for e in events),
    }


def update_ms(path: str) -> float:
    """Forward and backward of a model on the same number of tokens, log-probs included, optimizer not."""
    from bandpo.models import load_model

    model = load_model(path)[0].cuda().train()
    ids = torch.randint(5, 40_000, (MICRO, COLUMNS + 1), device="cuda")

    def logps() -> Tensor:
        logits = model(ids).logits[:, :-1].float()
        return torch.gather(logits.log_softmax(-1), -1, ids[:, 1:, None])

    def update() -> None:
        model.zero_grad(set_to_none=True)
        for _ in range(ROWS // MICRO):
            with torch.autocast("cuda", torch.bfloat16):
                found = logps()
            found.mean().backward()

    return 1e3 * measure(update, "cuda", 10 * BUDGET)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="what bandpo train takes as model.path")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device was found")
    rows = [
        {"backend": backend, "rule": name, **trace(rule, backend)}
        for backend in ("eager", "compile", "triton")
        for name, rule in RULES.items()
    ]
    whole = update_ms(options.model) if options.model else None
    for row in rows:
        if whole:
            row["share"] = row["ms"] / whole
        print(
            "  ".join(f"{key} {value:.5g}" if isinstance(value, float) else f"{value}" for key, value in row.items())
        )
    if whole:
        print(f"update {whole:.4g} ms")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    model = Path(options.model).stem if options.model else None
    place = {"date": now, "model": model, "tokens": [ROWS, COLUMNS], "update_ms": whole, **environment("cuda")}
    append_line(RESULTS / "trace.jsonl", {**place, "rows": rows})


if __name__ == "__main__":
    main()
