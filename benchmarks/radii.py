"""What a radius that adapts costs beyond Band's: time against an update of the scratch recipe's model, and memory.

    python benchmarks/radii.py [--repeats 40]

An update is forward and backward of the model and of the loss under Band, on one micro-batch. Each rule's loss is
timed in turn with Band's, forward and backward, and the extra time per token is divided by an update's per token; so
is `group_disagreement`, which runs once per rollout, as if one update followed. Medians of the paired differences, in
CPU seconds of one thread, which other processes on the machine disturb least.
A row per rule is appended to benchmarks/results/radii.jsonl.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch
from machine import RESULTS, environment
from speed import Inputs, _status_bytes

import bandpo
from bandpo.files import append_line
from bandpo.models import scratch_model
from bandpo.runs.config import load_config

BAND = bandpo.Band()
RULES = {
    "adaptive-band": bandpo.AdaptiveBand(),
    "entropy-band": bandpo.EntropyBand(),
    "position-band": bandpo.PositionBand(),
    "disagreement-band": bandpo.DisagreementBand(),
}


def seconds(call: Callable[..., Any], *arguments: Any) -> float:
    begin = time.process_time()
    call(*arguments)
    return time.process_time() - begin


def peak(call: Callable[..., Any], *arguments: Any) -> int:
    """Bytes by which a call raises the resident set, at its highest."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _status_bytes("VmRSS")
    call(*arguments)
    return max(0, _status_bytes("VmHWM") - before)


def loss(x: Inputs, rule: Any, backend: str) -> None:
    x.new.grad = None
    # For a timing any numbers do as entropy and disagreement.
    context = dict.fromkeys(rule.needs & {"old_entropy", "disagreement"}, x.advantages)
    found = bandpo.policy_loss(x.new, x.old, x.advantages, x.mask, rule=rule, backend=backend, **context)
    found.loss.backward()


def update_seconds(repeats: int) -> tuple[float, int]:
    """(median seconds, completion tokens) of an update on the scratch recipe's micro-batch."""
    config = load_config("scratch")
    assert config.model.scratch is not None
    model, _ = scratch_model(**config.model.scratch.model_dump(), seed=0)
    rows, length = config.train["per_device_train_batch_size"], config.train["max_completion_length"]
    x = Inputs(rows * 1000, "cpu")
    old, advantages, mask = (t[:, :length] for t in (x.old, x.advantages, x.mask))
    ids = torch.randint(3, 90, (rows, 8 + length))

    def update() -> None:
        logits = model(ids, logits_to_keep=length + 1).logits[:, :-1]
        logps = logits.log_softmax(-1).gather(-1, ids[:, 8:, None]).squeeze(-1)
        bandpo.policy_loss(logps, old, advantages, mask, rule=BAND).loss.backward()
        model.zero_grad()

    update()
    return statistics.median(seconds(update) for _ in range(repeats)), rows * length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    here = environment("cpu")
    step, micro = update_seconds(options.repeats)
    print(f"an update: {1e3 * step:.1f} ms for {micro} tokens")

    def report(name: str, backend: str, tokens: int, base: float, extra: float, memory: int | None) -> None:
        row = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"), "rule": name, "backend": backend,
            "tokens": tokens, "band_seconds": base, "extra_seconds": extra, "update_seconds": step,
            "update_tokens": micro, "share_of_update": extra / tokens / (step / micro), "extra_bytes": memory, **here,
        }  # fmt: skip
        append_line(RESULTS / "radii.jsonl", row)
        extra_bytes = "" if memory is None else f", {memory / tokens:+.1f} bytes/token"
        share = f"{100 * row['share_of_update']:.3f}% of an update"
        print(f"{name:20} {backend:8} {tokens:>9,}  {1e3 * extra:+8.2f} ms on {1e3 * base:.2f}, {share}{extra_bytes}")

    for backend in ("eager", "compile"):
        for tokens in (micro, options.tokens):
            x = Inputs(tokens, "cpu")
            repeats = options.repeats * (10 if tokens == micro else 1)
            for rule in (BAND, *RULES.values()):
                loss(x, rule, backend)
            for name, rule in RULES.items():
                pairs = [[seconds(loss, x, r, backend) for r in (BAND, rule)] for _ in range(repeats)]
                base, extra = (statistics.median(v) for v in zip(*((b, a - b) for b, a in pairs), strict=True))
                memory = None
                if tokens == options.tokens:
                    memory = peak(loss, x, rule, backend) - peak(loss, x, BAND, backend)
                report(name, backend, tokens, base, extra, memory)
    for rows, length in ((512, micro // 32), (options.tokens // 1000, 1000)):
        ids, groups = torch.randint(3, 90, (rows, length)), torch.arange(rows).unsqueeze(1) // 8
        arguments = (bandpo.group_disagreement, ids, groups, torch.ones_like(ids))
        taken = statistics.median(seconds(*arguments) for _ in range(max(3, options.repeats // 4)))
        report("group_disagreement", "eager", rows * length, 0.0, taken, peak(*arguments))


if __name__ == "__main__":
    main()
