"""Sections shared by the reports of runs and of studies (needs the `report` extra)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from bandpo.core.rules import ClipRule
from bandpo.evaluation.store import SAMPLES, read_grades
from bandpo.files import read_lines
from bandpo.lab.metrics import Environment
from bandpo.lab.tables import Table
from bandpo.report import pictures, why
from bandpo.report.curves import Points, RunRecord
from bandpo.report.html import Block, Drawing, Sample, Samples, Section, Text, TokenRow, Tokens
from bandpo.report.ledger_tables import LEDGER_TITLE, ledger_blocks
from bandpo.runs.run_dir import RunDirectory, rewards_of
from bandpo.training.batches import TokenBatch, read_batches

SAMPLES_PER_ROLLOUT = 8
SHOWN_TOKENS = 80  # of one completion

T = TypeVar("T")


def shared_sections(
    records: Sequence[RunRecord], rules: Mapping[str, ClipRule], labels: Sequence[str], prefix: str
) -> list[Section]:
    """What the rules do, to recorded tokens and to any; and completions.

    Args:
        records: Runs at one point of the sweep; tokens and completions are those of each label's first seed.
        rules: Label -> rule, if it has one.
        labels: All labels in the order in which curves are drawn: a method looks the same in all pictures.
        prefix: Of the names of sections and pictures.
    """
    first = list({record.label: record for record in reversed(records)}.values())[::-1]
    batches = {
        record.label: recorded
        for record in first
        if record.path and (recorded := read_batches(RunDirectory(record.path).batches))
    }
    compared = why.with_rivals(rules)
    styles = {label: i for i, label in enumerate(dict.fromkeys([*labels, *compared]))}
    sections = []
    if batches:
        known = {name: rule for name, rule in compared.items() if rule.needs <= why.RECORDED}
        blocks = _why_blocks(batches, known, styles, prefix)
        sections.append(Section(f"{prefix}tokens", "Which tokens, and why", [*blocks, *_left_out(compared, known)]))
        own = {record.label: record.rule or rules.get(record.label) for record in first}
        sections.append(Section(f"{prefix}ledger", LEDGER_TITLE, ledger_blocks(batches, known, own)))
    points = _points_of([batch for recorded in batches.values() for batch in recorded])
    known = {name: rule for name, rule in compared.items() if not rule.needs}
    drawn = [pictures.bounds_picture(known, styles), pictures.regions_picture(known, points)]
    drawings: list[Block] = [Drawing(replace(p, name=f"{prefix}{p.name}")) for p in drawn]
    sections.append(Section(f"{prefix}rules", "The rules", [*drawings, *_left_out(compared, known)]))
    samples = [block for record in first for block in sample_blocks(record, count=max(2, 12 // len(first)))]
    if samples:
        sections.append(Section(f"{prefix}samples", "Completions", samples))
    return sections


def _left_out(rules: Mapping[str, ClipRule], known: Mapping[str, ClipRule]) -> list[Block]:
    """A sentence on the rules that are not shown."""
    needs = [f"{name} (needs {', '.join(sorted(rule.needs))})" for name, rule in rules.items() if name not in known]
    return [Text(f"Not shown, because they need more than the old probability: {'; '.join(needs)}.")] if needs else []


def _points_of(batches: Sequence[TokenBatch], most: int = 250) -> Points:
    """(old probability, ratio) of some recorded tokens, evenly spaced."""
    if not batches:
        return []
    old = np.concatenate([batch.old_logps[batch.mask] for batch in batches]).astype(np.float64)
    new = np.concatenate([batch.logps[batch.mask] for batch in batches]).astype(np.float64)
    pairs = np.stack([np.exp(old), np.exp(new - old)], -1).tolist()
    return [(p, ratio) for p, ratio in _spread(pairs, most)]


def _why_blocks(
    batches: Mapping[str, Sequence[TokenBatch]], rules: Mapping[str, ClipRule], styles: Mapping[str, int], prefix: str
) -> list[Block]:
    pooled = [batch for recorded in batches.values() for batch in recorded]
    steps = sorted({batch.step for batch in pooled})
    counts = why.count_clipped(rules, pooled)
    several = len(batches) > 1
    gains = {
        label: (why.probability_gain(recorded), why.probability_gain(recorded, positive=False))
        for label, recorded in batches.items()
    }
    entropies = {
        label if several else f"update {batch.step}": why.entropy_by_position(batch)
        for label, recorded in batches.items()
        for batch in (recorded[-1:] if several else recorded)
    }
    drawn = [
        pictures.clipped_picture(counts, styles),
        pictures.gains_picture(gains, styles),
        pictures.entropy_picture(entropies, styles),
    ]
    drawings = [Drawing(replace(p, name=f"{prefix}{p.name}")) for p in drawn]
    if not counts.tokens.any():
        return [Text("No recorded token had an advantage: the rewards of each group were all equal."), drawings[2]]
    blocks: list[Block] = [
        Text(
            f"From the tokens recorded at updates {', '.join(map(str, steps))}, each the last of its rollout "
            f"({', '.join(batches)}; one seed)."
        ),
        drawings[0],
        _clip_table(counts),
        drawings[1],
        _gain_table({label: pair[0] for label, pair in gains.items()}),
        drawings[2],
    ]
    for label, recorded in batches.items():
        where = f"{label}, " if several else ""
        for row in why.telling_rows(rules, recorded[-1], 1 if several else 3):
            blocks.append(tokens_block(rules, recorded[-1], row, where))
    return blocks


def _clip_table(counts: why.ClipCounts) -> Table:
    labels = why.bin_labels(counts.edges)
    shares = counts.clipped.sum(2)
    totals = counts.tokens.sum(1)
    return Table.of_text(
        ["tokens clipped, by old probability", *labels, "all"],
        [
            ["tokens with an advantage", *(f"{n:,}" for n in totals), f"{totals.sum():,}"],
            *(
                [name, *(f"{n:,}" for n in shares[i]), f"{shares[i].sum() / max(1, totals.sum()):.2%}"]
                for i, name in enumerate(counts.rules)
            ),
        ],
        "Both signs of the advantage combined.",
    )


def _gain_table(gains: Mapping[str, why.Gains]) -> Table:
    labels = why.bin_labels(next(iter(gains.values())).edges)
    rows = [
        [
            label,
            *("-" if not n else f"{gain:+.4f} ({n:,})" for gain, n in zip(of_run.mean, of_run.tokens, strict=True)),
        ]
        for label, of_run in gains.items()
    ]
    return Table.of_text(
        ["gain of tokens with A > 0, by old probability", *labels],
        rows,
        "Mean of p - old p since the rollout (number of tokens), under the rule that the run was trained with.",
    )


def tokens_block(rules: Mapping[str, ClipRule], batch: TokenBatch, row: int, where: str = "") -> Tokens:
    """One completion under every rule; of a long one, the part on which the rules disagree most."""
    verdicts = why.side_by_side(rules, batch, row)
    disputed = np.array([0 < sum(v.clipped) < len(v.clipped) for v in verdicts], dtype=int)
    start = 0
    if len(verdicts) > SHOWN_TOKENS:
        start = int(np.convolve(disputed, np.ones(SHOWN_TOKENS, int), mode="valid").argmax())
    shown = verdicts[start : start + SHOWN_TOKENS]
    advantages = batch.advantages[row][batch.mask[row]]
    advantage = float(advantages.mean()) if len(advantages) else 0.0
    cut = f", tokens {start + 1} to {start + len(shown)} of {len(verdicts)}" if len(shown) < len(verdicts) else ""
    return Tokens(
        f"{where}update {batch.step}, completion {row + 1}, advantage {advantage:+.2f}: "
        f"the rules disagree on {disputed.sum()} of {len(verdicts)} tokens{cut}",
        list(rules),
        ["old p", "p", "ratio", "entropy"],
        [
            TokenRow(
                v.text,
                [f"{v.old_p:.3g}", f"{v.p:.3g}", f"{v.p / v.old_p:.3f}" if v.old_p else "-", f"{v.entropy:.2f}"],
                v.clipped,
            )
            for v in shown
        ],
    )


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of them, evenly spaced, including the first and the last."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).astype(int))]


def sample_blocks(record: RunRecord, count: int) -> list[Block]:
    """Completions of `count` held-out problems before and after training, and of half as many rollouts."""
    if record.path is None:
        return []
    run = RunDirectory(record.path)
    blocks: list[Block] = []
    for when in ("before", "after"):
        samples = []
        for grade in islice(read_grades(run.evaluation(when) / SAMPLES), count):
            for completion, reward in list(zip(grade.completions, grade.rewards, strict=True))[:2]:
                facts = f"reward {reward:g}, answer {grade.problem.answer}"
                samples.append(Sample(grade.problem.question, completion.text, facts))
        if samples:
            blocks.append(Samples(f"{record.label}: held-out problems {when} training", samples))
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in read_lines(run.samples):
        rows.setdefault(row["step"], []).append(row)
    for step in _spread(list(rows), max(1, count // 2)):
        samples = []
        for row in _spread(rows[step], SAMPLES_PER_ROLLOUT):  # neighbors answer the same prompt
            rewards = ", ".join(f"{name} {value:g}" for name, value in rewards_of(row).items())
            facts = f"{rewards}, advantage {row['advantage']:+.2f}"
            samples.append(Sample(row["prompt"], row["completion"], facts))
        blocks.append(Samples(f"{record.label}: rollout before update {step}", samples))
    return blocks


def describe(environment: Environment) -> str:
    """Commit, versions and hardware in a sentence, of a run or of a study."""
    packages = ", ".join(f"{name} {version}" for name, version in environment.packages.items())
    count = "" if environment.cores is None else f"{environment.cores} cores"
    processor = " ".join(filter(None, [environment.processor, count]))
    threads = f"CPU threads: {environment.threads}" if environment.workers is None else ""
    hardware = ", ".join(filter(None, [*environment.gpus, processor, threads]))
    return (
        f"Commit {environment.commit or 'unknown'}; Python {environment.python}; {packages}; {hardware}; "
        f"{environment.platform}."
    )
