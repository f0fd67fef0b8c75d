"""Time, memory and error of the Band operator and the policy loss, against three baselines of the same run.

    python benchmarks/speed.py            measure, then redraw the pictures and the tables of docs/benchmarks.md
    python benchmarks/speed.py --quick    the same in a minute or two, small sizes
    python benchmarks/speed.py --report   only redraw, from the rows kept in benchmarks/results
    python benchmarks/speed.py --resume   go on with an interrupted run of this commit on this machine

Baselines: a straightforward eager bisection, a fixed clip through the same loss, and a copy of as many bytes as
the operation must read and write. Each row is appended as it is measured, with hardware, versions, commit and
date; rows that would not fit in --max-seconds are left out and named.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, ROOT, environment
from torch import Tensor

import bandpo
from bandpo.core.band import band, band_side, inside
from bandpo.core.divergences import get_divergence
from bandpo.core.table import band_table
from bandpo.files import append_line, read_lines

ROWS = RESULTS / "speed.jsonl"
PAGE = ROOT / "docs" / "benchmarks.md"
IMAGES = ROOT / "docs" / "images"
RADIUS = 0.05
NAMES = ("kl", "reverse_kl", "tv", "chi2", "neyman_chi2", "hellinger2", "js", "jeffreys", "alpha:0.5")
TABLED = ("kl", "reverse_kl", "jeffreys")
MAIN = 1_000_000  # tokens of the tables


# --- what is measured ---------------------------------------------------------------------------------------


def bisection(old: Tensor, name: str, trips: int = 50) -> tuple[Tensor, Tensor]:
    """Bounds as one would first write them: halve [0, 1] and [1, 1/p] until every bracket is a rounding wide."""
    f = get_divergence(name).f
    p = old.exp()

    def g(r: Tensor) -> Tensor:
        return p * f(r) + (1 - p) * f((1 - r * p) / (1 - p))

    bounds = []
    for upper in (False, True):
        inner, outer = torch.ones_like(p), 1 / p if upper else torch.zeros_like(p)
        for _ in range(trips):
            middle = (inner + outer) / 2
            fits = g(middle) <= RADIUS
            inner, outer = torch.where(fits, middle, inner), torch.where(fits, outer, middle)
            if bool(((outer - inner).abs() <= 2e-7 * outer.clamp(min=1)).all()):
                break
        bounds.append(inner)
    return bounds[0], bounds[1]


class Inputs:
    """Random tokens of a language model's kind: log-probs exponential with mean 1.5, small changes since."""

    def __init__(self, tokens: int, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (max(1, tokens // 1000), min(tokens, 1000))
        self.old = -torch.empty(shape).exponential_(generator=generator) * 1.5
        self.new = (self.old + 0.1 * torch.randn(shape, generator=generator)).clamp(max=0.0)
        self.advantages = torch.randn(shape, generator=generator)
        self.up = self.advantages > 0
        self.mask = torch.ones(shape, dtype=torch.bool)
        for name, x in list(vars(self).items()):
            setattr(self, name, x.to(device))
        self.new.requires_grad_()


def _loss(x: Inputs, rule: Any, backend: str) -> Tensor:
    x.new.grad = None
    loss: Tensor = bandpo.policy_loss(x.new, x.old, x.advantages, x.mask, rule=rule, backend=backend).loss
    loss.backward()
    return loss


def operation(kind: str, name: str, backend: str, device: str) -> Callable[[Inputs], Any]:
    """The call to time. Bounds are read as log-ratios, which is how they are computed."""
    if kind == "loss":
        named = {"clip": bandpo.Clip(), "adaptive": bandpo.AdaptiveBand(radius=RADIUS)}
        rule = named[name] if name in named else bandpo.Band(radius=RADIUS, divergence=name)
        return lambda x: _loss(x, rule, backend)
    if kind == "bisection":
        return lambda x: bisection(x.old, name)
    if kind == "table":
        table = band_table(RADIUS, name, device)
        tensors = {"table": lambda x: _both(table(x.old))}[kind]
    else:
        tensors = {
            "band": lambda x: _both(band(x.old, RADIUS, name)),
            "band_side": lambda x: band_side(x.old, RADIUS, name, x.up),
            "inside": lambda x: inside(x.new.detach(), x.old, RADIUS, name),
        }[kind]
    if backend == "eager":
        return tensors
    compiled = torch.compile(_positional(tensors), fullgraph=True, dynamic=True)
    return lambda x: compiled(x.old, x.new.detach(), x.up)


def _both(bounds: Any) -> tuple[Tensor, Tensor]:
    return bounds.log_lower, bounds.log_upper


def _positional(call: Callable[[Any], Any]) -> Callable[[Tensor, Tensor, Tensor], Any]:
    def positional(old: Tensor, new: Tensor, up: Tensor) -> Any:
        x = argparse.Namespace(old=old, new=new, up=up)
        return call(x)

    return positional


# Bytes a token that an operation must read and write, in float32.
TRAFFIC = {"band": 12, "band_side": 9, "inside": 9, "table": 12, "bisection": 12, "loss": 17}


def plan(device: str, sizes: list[int]) -> list[tuple[str, str, str, int]]:
    """(operation, divergence, backend, tokens), what matters most first; baselines lead their size."""
    backends = ["eager", "compile"] + (["triton"] if device == "cuda" else [])
    main = MAIN if MAIN in sizes else max(sizes)
    rows = [(kind, name, "eager", main) for name in NAMES for kind in ("bisection", "band")]
    rows += [("loss", name, b, main) for b in backends for name in ("clip", "kl", "adaptive")]
    rows += [("band", name, "compile", main) for name in NAMES]
    rows += [("table", name, b, main) for name in TABLED for b in ("eager", "compile")]
    rows += [("inside", name, "eager", main) for name in NAMES]
    rows += [(kind, "kl", b, main) for kind in ("inside", "band_side") for b in ("eager", "compile")]
    for n in sizes:
        if n != main:
            rows += [("bisection", "kl", "eager", n)]
            rows += [("band", "kl", b, n) for b in ("eager", "compile")] + [("table", "kl", "compile", n)]
            rows += [("loss", name, b, n) for b in backends for name in ("clip", "kl")]
    return list(dict.fromkeys(rows))


# --- measuring ----------------------------------------------------------------------------------------------


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(call: Callable[[], Any], device: str, budget: float) -> tuple[float, int, float]:
    """(median seconds, repeats, seconds of the first call); at least one repeat, at most 30, about `budget` s."""

    def once() -> float:
        _wait(device)
        begin = time.perf_counter()
        call()
        _wait(device)
        return time.perf_counter() - begin

    first = once()
    times = [once()]
    while len(times) < 30 and sum(times) + times[-1] < budget:
        times.append(once())
    return statistics.median(times), len(times), first


def copy_seconds(tokens: int, traffic: int, device: str) -> float:
    """Time to copy as many bytes as are read and written, half and half."""
    source = torch.zeros(tokens * traffic // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return measure(lambda: target.copy_(source), device, 0.1)[0]


def peak_bytes(spec: tuple[str, str, str, int], device: str) -> int:
    """Extra memory of one call, outputs included, beyond its inputs and what a small call has already loaded."""
    kind, name, backend, tokens = spec
    call = operation(kind, name, backend, device)
    small, x = Inputs(2000, device), Inputs(tokens, device)
    call(small)
    call(Inputs(3000, device))
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(x)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # The resident set now against its peak: the inputs are touched, so only the call can raise the peak.
    # getrusage would not do: a child starts with its parent's high-water mark.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    call(x)
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def _memory_row(spec: tuple[str, str, str, int], device: str, threads: int) -> int | None:
    # On the CPU a fresh process each: a high-water mark never falls.
    command = [sys.executable, __file__, "--peak", *map(str, spec), "--device", device, "--threads", str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
        return int(done.stdout.strip().splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        print(f"  memory of {spec}: {error}", file=sys.stderr)
        return None


def _available_bytes(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 4 << 30


def run(
    device: str,
    sizes: list[int],
    max_seconds: float,
    budget: float,
    resume: bool,
    memory: bool,
    rows: Path = ROWS,
    only: str | None = None,
) -> None:
    """Measure the plan, appending a row at a time."""
    here = environment(device)
    began = time.perf_counter()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    done: dict[tuple[str, str, str, int], dict[str, Any]] = {}
    if resume:
        mine = [r for r in read_lines(rows) if all(r.get(k) == v for k, v in here.items())]
        if mine:
            now = mine[-1]["run"]
            done = {_key(r): r for r in mine if r["run"] == now}
            print(f"going on with the run of {now}: {len(done)} rows are there")
    seconds: dict[tuple[str, str, str, int], float] = {k: r["seconds"] for k, r in done.items()}
    copies: dict[tuple[int, int], float] = {}
    calls: dict[tuple[str, str, str], Callable[[Inputs], Any]] = {}
    inputs: tuple[int, Inputs] | None = None
    rows.parent.mkdir(parents=True, exist_ok=True)
    for spec in plan(device, sizes):
        kind, name, backend, tokens = spec
        if spec in done or only not in (None, kind):
            continue
        # Memory comes last, in processes of its own; keep a fifth of the time for it.
        left = (0.8 if memory else 1.0) * max_seconds - (time.perf_counter() - began)
        known = [(n, s) for (k, d, b, n), s in seconds.items() if (k, d, b) == (kind, name, backend)]
        expected = max((2.5 * s * tokens / n for n, s in known), default=1.0)
        if expected > left or tokens * 150 > _available_bytes(device):
            print(f"left out: {kind} {name} {backend} at {tokens:.0e} tokens (time or memory)")
            continue
        if inputs is None or inputs[0] != tokens:
            inputs = (tokens, Inputs(tokens, device))
        x = inputs[1]
        try:
            if (kind, name, backend) not in calls:
                calls[kind, name, backend] = operation(kind, name, backend, device)
            call = calls[kind, name, backend]
            taken, repeats, first = measure(lambda: call(x), device, budget)  # noqa: B023
        except Exception as error:  # one refusal must not cost the other rows
            print(f"failed: {kind} {name} {backend} at {tokens}: {type(error).__name__}: {str(error)[:200]}")
            continue
        seconds[spec] = taken
        traffic = TRAFFIC[kind]
        if (tokens, traffic) not in copies:
            copies[tokens, traffic] = copy_seconds(tokens, traffic, device)
        base, clip = seconds.get(("bisection", name, "eager", tokens)), seconds.get(("loss", "clip", backend, tokens))
        row = {
            "run": now,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "operation": kind,
            "divergence": name,
            "backend": backend,
            "tokens": tokens,
            "seconds": taken,
            "repeats": repeats,
            "first_seconds": first,
            "copy_seconds": copies[tokens, traffic],
            "times_copy": taken / copies[tokens, traffic],
            "faster_than_bisection": base / taken if base and kind not in ("loss", "bisection") else None,
            "times_clip": taken / clip if clip and kind == "loss" else None,
            "peak_bytes": None,
            **here,
        }
        append_line(rows, row)
        figures = f"{1e3 * taken:11.3f} ms {1e9 * taken / tokens:9.2f} ns/token"
        print(f"{kind:10} {name:12} {backend:8} {tokens:>11,} {figures}", flush=True)
    if memory:
        tokens = min(max(sizes), 4_000_000)
        for kind, name in (("band", "kl"), ("inside", "kl"), ("table", "kl"), ("loss", "clip"), ("loss", "kl")):
            for backend in ("eager", "compile"):
                if time.perf_counter() - began > max_seconds:
                    print(f"left out: memory of {kind} {name} {backend} (time)")
                    continue
                spec = ("memory:" + kind, name, backend, tokens)
                if spec in done:
                    continue
                peak = _memory_row((kind, name, backend, tokens), device, here["threads"])
                if peak is not None:
                    append_line(
                        ROWS,
                        {
                            "run": now,
                            "date": datetime.now(UTC).isoformat(timespec="seconds"),
                            "operation": spec[0],
                            "divergence": name,
                            "backend": backend,
                            "tokens": tokens,
                            "seconds": 0.0,
                            "peak_bytes": peak,
                            **here,
                        },
                    )
                    print(f"{spec[0]:13} {name:9} {backend:8} {tokens:>11,} {peak / tokens:9.1f} bytes/token")


def _key(row: dict[str, Any]) -> tuple[str, str, str, int]:
    return row["operation"], row["divergence"], row["backend"], row["tokens"]


# --- reporting ----------------------------------------------------------------------------------------------


def latest_runs(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of the newest run of each device; among the runs of a day's commits the fullest wins over --quick."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        runs.setdefault(row["run"], []).append(row)
    best: dict[str, list[dict[str, Any]]] = {}
    for group in runs.values():
        device = group[0]["device"]
        full = any(r["tokens"] >= MAIN for r in group)
        if device not in best or full or not any(r["tokens"] >= MAIN for r in best[device]):
            best[device] = group
    return best


def _table(header: list[str], lines: list[list[str]]) -> str:
    rows = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(rows + ["| " + " | ".join(line) + " |" for line in lines])


def _number(x: float | None, unit: str = "") -> str:
    return "-" if x is None else f"{x:.3g}{unit}"


def tables(rows: list[dict[str, Any]]) -> str:
    """The tables of one run, in Markdown."""
    first = rows[0]
    timed = {_key(r): r for r in rows if not r["operation"].startswith("memory:")}
    main = MAIN if any(r["tokens"] == MAIN for r in rows) else max(r["tokens"] for r in timed.values())
    out = [
        f"{first['hardware']}, {first['threads']} threads of {first['cores']} cores, PyTorch {first['torch']}, "
        f"Python {first['python']}, commit {first['commit']}, {first['run'][:10]}. Radius {RADIUS}, float32, "
        f"median times; {main:,} tokens unless the table says otherwise.",
        "",
        "Bounds, both sides. In brackets: how many times faster than the bisection of that divergence.",
        "",
    ]
    backends = [b for b in ("eager", "compile") if any(k[2] == b for k in timed)]  # Triton has no bounds of its own

    def cell(kind: str, name: str, backend: str, tokens: int = main) -> str:
        row = timed.get((kind, name, backend, tokens))
        if row is None:
            return "-"
        ratio = row["faster_than_bisection"]
        return _number(1e3 * row["seconds"], " ms") + ("" if ratio is None else f" ({ratio:.3g}x)")

    lines = []
    for name in NAMES:
        line = [f"`{name}`", cell("bisection", name, "eager"), *(cell("band", name, b) for b in backends)]
        line += [cell("table", name, b) for b in ("eager", "compile")] + [cell("inside", name, "eager")]
        lines.append(line)
    header = [
        "divergence",
        "bisection",
        *(f"band, {b}" for b in backends),
        "table, eager",
        "table, compile",
        "inside",
    ]
    out += [_table(header, lines), "", "KL, one call, by operation and backend.", ""]
    lines = []
    for kind in ("band", "band_side", "inside", "table"):
        for backend in backends:
            row = timed.get((kind, "kl", backend, main))
            if row is not None:
                lines.append([kind, backend, _number(1e3 * row["seconds"], " ms"), _number(row["times_copy"], "x")])
    out += [_table(["operation", "backend", "time", "against a copy of its bytes"], lines), ""]
    out += ["Policy loss, forward and backward.", ""]
    lines = []
    for (kind, name, backend, tokens), row in sorted(timed.items(), key=lambda kv: (kv[0][2], kv[0][3], kv[0][1])):
        if kind == "loss":
            rule = {"clip": "fixed clip", "adaptive": "AdaptiveBand, kl"}.get(name, f"Band, {name}")
            times = [_number(row["times_clip"], "x"), _number(row["times_copy"], "x")]
            lines.append([backend, f"{tokens:,}", rule, _number(1e3 * row["seconds"], " ms"), *times])
    header = ["backend", "tokens", "rule", "time", "against the fixed clip", "against a copy of its bytes"]
    out += [_table(header, lines), "", "Time by size, KL.", ""]
    sizes = sorted({k[3] for k in timed})
    columns = [("bisection", "eager"), *(("band", b) for b in backends), ("table", "compile")]
    lines = [[f"{n:,}", *(cell(kind, "kl", b, n) for kind, b in columns)] for n in sizes]
    out += [_table(["tokens", *(f"{k}, {b}" for k, b in columns)], lines), ""]
    memory = [r for r in rows if r["operation"].startswith("memory:")]
    if memory:
        out += ["Peak extra memory of one call, outputs and gradient included.", ""]
        lines = [
            [
                r["operation"][7:],
                r["divergence"],
                r["backend"],
                f"{r['tokens']:,}",
                f"{r['peak_bytes'] / r['tokens']:.1f}",
            ]
            for r in memory
        ]
        out += [_table(["operation", "rule", "backend", "tokens", "bytes per token"], lines), ""]
    return "\n".join(out)


def draw_time(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    from matplotlib import pyplot

    runs = {device: rows for device, rows in runs.items() if len({r["tokens"] for r in rows}) > 2}
    figure, axes = pyplot.subplots(1, len(runs), figsize=(6.4 * len(runs), 4.4), squeeze=False, layout="constrained")
    for axis, rows in zip(axes[0], runs.values(), strict=True):
        curves: dict[str, list[tuple[int, float]]] = {}
        for r in rows:
            kind, name, backend, tokens = _key(r)
            if (
                name in ("kl", "clip")
                and not kind.startswith("memory:")
                and kind in ("bisection", "band", "table", "loss")
            ):
                label = {"loss": "loss, fixed clip" if name == "clip" else "loss, Band"}.get(kind, kind)
                label = label if kind == "bisection" else f"{label}, {backend}"
                curves.setdefault(label, []).append((tokens, r["seconds"]))
                if kind == "band" and backend == "eager":
                    curves.setdefault("copy of the bytes of band", []).append((tokens, r["copy_seconds"]))
        for label, unsorted in curves.items():
            points = sorted(unsorted)
            if len(points) > 1:
                dashed = "--" if "clip" in label or label in ("bisection", "copy of the bytes of band") else "-"
                axis.plot(
                    [n for n, _ in points], [s for _, s in points], dashed, marker="o", markersize=3, label=label
                )
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="seconds")
        axis.set_title(f"{rows[0]['hardware']}, {rows[0]['threads']} threads", fontsize=9)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def draw_error(path: Path) -> None:
    """Relative error of float32 log-bounds against the float64 solve, which the tests hold to 60 digits."""
    from matplotlib import pyplot

    old = -torch.logspace(-9, 1.92, 600)
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for name in NAMES:
        got, want = band(old, RADIUS, name), band(old.double(), torch.tensor(RADIUS).item(), name)
        for axis, side in zip(axes, ("log_lower", "log_upper"), strict=True):
            a, b = getattr(got, side).double(), getattr(want, side)
            shown = torch.isfinite(b) & (b > -80) & (b != -old.double())
            error = ((a - b) / b).abs().clamp(min=1e-9)
            axis.plot(old[shown].neg(), error[shown], ".", markersize=2.5, label=name)
    for axis, title in zip(axes, ("log of the lower bound", "log of the upper bound"), strict=True):
        axis.axhline(2e-6, color="0.4", linestyle="--", linewidth=0.8)
        axis.set(xscale="log", yscale="log", xlabel="-log p", title=title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("relative error, float32 (dashed: 2e-6)")
    axes[1].legend(fontsize=7, markerscale=3)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def report() -> None:
    """Redraw the pictures and rewrite the generated part of docs/benchmarks.md."""
    runs = latest_runs(list(read_lines(ROWS)))
    if not runs:
        print("no rows yet")
        return
    import matplotlib

    matplotlib.use("Agg")
    IMAGES.mkdir(parents=True, exist_ok=True)
    draw_time(runs, IMAGES / "benchmark-time.png")
    draw_error(IMAGES / "benchmark-error.png")
    begin, end = "<!-- generated: begin -->", "<!-- generated: end -->"
    parts = [f"## {'GPU' if device == 'cuda' else 'CPU'}\n{tables(rows)}" for device, rows in sorted(runs.items())]
    if "cuda" not in runs:
        parts.append(
            "## GPU\nNot run: no GPU was available. On a machine with one: `make bench BENCH='--device cuda'`\n"
        )
    page = PAGE.read_text(encoding="utf-8")
    head, tail = page[: page.index(begin)], page[page.index(end) :]
    PAGE.write_text(f"{head}{begin}\n" + "\n".join(parts) + tail, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--max-seconds", type=float, default=330.0, help="stop starting rows after this time")
    parser.add_argument("--quick", action="store_true", help="up to 1e5 tokens, fewer repeats, no memory rows")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--only", choices=("loss",), help="this operation alone, at 1e6 tokens, into loss.jsonl")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--peak", nargs=4, metavar=("OPERATION", "DIVERGENCE", "BACKEND", "TOKENS"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch._dynamo.config.recompile_limit = 256  # one graph a divergence
    if options.peak:
        kind, name, backend, tokens = options.peak
        print(peak_bytes((kind, name, backend, int(tokens)), options.device))
        return
    rows = ROWS
    if not options.report:
        top = 5 if options.quick else 8
        sizes = [10**k for k in range(3, top + 1)]
        budget = 3.0 if options.only else 0.1 if options.quick else 0.4
        if options.only:
            sizes, rows = [MAIN], RESULTS / f"{options.only}.jsonl"
        memory = not (options.quick or options.only)
        run(options.device, sizes, options.max_seconds, budget, options.resume, memory, rows, options.only)
    if not options.only:
        report()


if __name__ == "__main__":
    main()
