"""docs/studies/*.md and docs/images/results.png, made from results/STUDY/metrics.json.

`python tests/docs/study_pages.py` writes again what stands between <!-- NAME --> and <!-- end --> in each page of
STUDIES, and the picture. A study of STUDIES without a page gets one with nothing but its blocks.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, median, stdev
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bandpo.lab.comparison import Comparison, Target, compare
from bandpo.lab.metrics import Calibration, FinishedRun, StudyResult
from bandpo.lab.scores import clip_fraction, end_entropy, final_score, mean_training_reward, success
from bandpo.lab.statistics import Interval, difference_p, holm, mean_interval
from bandpo.lab.tables import Table, point_text
from bandpo.report.drawing import PAPER, color

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "studies"
PICTURE = ROOT / "docs" / "images" / "results.png"


# What a run can be asked for.


class Value(NamedTuple):
    """A number of a run: its heading, its format, and how it is had; None where the run has none."""

    title: str
    form: str
    of: Callable[[FinishedRun], float | None]


def first_above(run: FinishedRun, level: float) -> float:
    """The first rollout whose reward is above a level, or the last one."""
    reward = run.rollouts.reward
    return next((i for i, r in enumerate(reward, 1) if r is not None and r > level), len(reward))


def of_metric(name: str) -> Callable[[FinishedRun], float]:
    return lambda run: final_score(run, name)


def held_out(run: FinishedRun, name: str) -> float | None:
    return getattr(run.evaluation.after, name) if run.evaluation else None


VALUES = {
    "success": Value("held-out {metric}", ".3f", of_metric("mean")),
    "reward": Value("mean reward", ".3f", mean_training_reward),
    "clipped": Value("clipped", ".1%", clip_fraction),
    "end": Value("entropy, end", ".2f", end_entropy),
    "entropy": Value("held-out entropy", ".2f", of_metric("entropy")),
    "letters": Value("entropy [0:6]", ".2f", of_metric("entropy[0:6]")),
    "rest": Value("entropy [6:]", ".2f", of_metric("entropy[6:]")),
    "divergence": Value("divergence", ".4f", lambda run: fmean(x for x in run.updates.divergence if x is not None)),
    "distinct": Value("right answers", ".2f", lambda run: held_out(run, "distinct")),
    "spread": Value("their entropy", ".2f", lambda run: held_out(run, "spread")),
    "pass@64": Value("pass@64", ".3f", of_metric("pass@64")),
    "rollouts": Value("rollouts to reward .65", ".0f", lambda run: first_above(run, 0.65)),
    "best": Value("best reward of a rollout", ".3f", lambda run: max(r or 0.0 for r in run.rollouts.reward)),
}


# What a page has of it.


@dataclass(frozen=True)
class Methods:
    """A row per method, a table per place of the sweep.

    Attributes:
        compared: Values that are shown with their difference to the reference, paired by seed, and p; Holm's
            correction is over the methods of one place.
        shown: Values, as means over seeds with 95% intervals; one of STATISTICS before the name of a value; and
            "target": updates until the reward at which the reference ended.
        sort: Rows by the first of `compared`, and not in the study's order.
    """

    compared: Sequence[str] = ("success", "reward")
    shown: Sequence[str] = ("mean of clipped", "end", "target")
    sort: bool = False


@dataclass(frozen=True)
class Places:
    """A row per place of the sweep, a column per method; with `minus`, differences to the reference and their p."""

    value: str
    minus: bool = False
    form: str = ""


@dataclass(frozen=True)
class Pairs:
    """A row per pair of methods and place: the first's mean reward minus the second's, paired by seed; p of that row
    alone, and by Holm's method over all rows.

    Attributes:
        pairs: Their labels.
        places: Of the sweep: labels of its axis.
        others: Further studies whose seeds are added, at the place "16".
        same: Label in another study -> label here.
    """

    pairs: Sequence[tuple[str, str]]
    places: Sequence[str]
    others: Sequence[str] = ()
    same: Sequence[tuple[str, str]] = ()


Spec = Methods | Places | Pairs

OF_LETTERS = ("success", "reward", "letters")
# Study -> name of a block -> what stands there. Every page has "facts" as well.
STUDIES: dict[str, dict[str, Spec]] = {
    "scratch": {"results": Methods(shown=("mean of clipped", "end", "target", "range of success"))},
    "scratch-confirm": {"results": Methods()},
    "scratch-sweep": {
        "success": Places("success", form=".2f"),
        "reward": Places("reward", minus=True),
        "clipped": Places("mean of clipped"),
    },
    "scratch-width": {
        "results": Methods(shown=("mean of clipped", "end", "target", "sd of success", "range of success")),
        "pairs": Pairs(
            [("BandKL .035", "clip .2"), ("BandKL .05", "clip .36"), ("BandKL .1", "clip .6")], ("16", "32")
        ),
        "pooled": Pairs(
            [
                ("clip .36", "clip .2"),
                ("BandKL .05", "clip .2"),
                ("BandKL .05", "clip .36"),
                ("BandKL .035", "clip .36"),
            ],
            ("16",),
            others=("scratch", "scratch-confirm"),
            same=(
                ("GRPO", "clip .2"),
                ("clip as Band", "clip .36"),
                ("BandKL", "BandKL .05"),
                ("Band as GRPO", "BandKL .035"),
            ),
        ),
    },
    "tail": {"results": Methods(shown=("mean of clipped", "end", "target", "median of rollouts"))},
    "smollm2": {"results": Methods(shown=("mean of clipped", "end", "target", "range of success"))},
    "halves": {
        "results": Methods(compared=OF_LETTERS, shown=("rest",)),
        "pairs": Pairs([("BandKL", "upper half"), ("BandKL", "floor .7"), ("BandKL", "lower half")], ("16", "32")),
    },
    "drift": {
        "results": Methods(compared=("entropy",), shown=("letters", "rest", "reward", "range of entropy"), sort=True)
    },
    "adaptive": {"results": Methods(OF_LETTERS, ("rest", "mean of divergence"))},
    "many": {"results": Methods(("success", "reward", "distinct", "spread", "entropy"), ("pass@64",))},
    "many-again": {"results": Methods((), ("seeds with best", "range of best"))},
    "entropy-target": {"results": Methods(("success", "reward"), ("end",))},
    "smollm2-halves": {"results": Methods(("success", "reward", "end"), ("mean of clipped", "target"))},
    "smollm2-drift": {"results": Methods(("entropy",), ("reward", "divergence", "range of entropy"), sort=True)},
    "word-problems": {"results": Methods(shown=("end", "divergence", "range of success"))},
}


@cache
def study(name: str) -> StudyResult:
    return StudyResult.load(ROOT / "results" / name / "metrics.json")


class Group(NamedTuple):
    """One place of the sweep."""

    point: dict[str, str]
    runs: dict[str, dict[int, FinishedRun]]  # method -> seed -> run

    @property
    def updates(self) -> str:
        """Updates per rollout."""
        return ", ".join(sorted({str(run.updates_per_rollout) for of in self.runs.values() for run in of.values()}))

    @property
    def title(self) -> str:
        return f"{self.updates} updates per rollout" if list(self.point) == ["updates"] else point_text(self.point)


@cache
def groups(name: str) -> list[Group]:
    """The places of a study's sweep, those with fewer updates per rollout first."""
    result = study(name)
    found: list[Group] = []
    for run in result.finished:
        if run.point not in [group.point for group in found]:
            found.append(Group(run.point, {method: {} for method in result.study.methods}))
        next(group for group in found if group.point == run.point).runs[run.method][run.seed] = run
    return sorted(found, key=lambda group: int(group.point.get("updates", 0)))


@cache
def comparisons(name: str) -> list[Comparison]:
    return compare(study(name))


def number(value: float, form: str) -> str:
    """As the pages write it: no zero before the point."""
    text = f"{value:{form}}"
    return text if form.endswith("%") else text.replace("0.", ".", 1) if abs(value) < 1 else text


def interval(of: Interval, form: str) -> str:
    mean, *ends = (None if end is None else number(end, form) for end in astuple(of))
    return str(mean) if None in ends else f"{mean} [{', '.join(ends)}]"


def chance(p: float | None) -> str:
    return "-" if p is None else "<.001" if p < 0.001 else "1" if p >= 0.9995 else number(p, ".3f")


def numbers(value: Value, runs: dict[int, FinishedRun]) -> dict[int, float]:
    found = {seed: value.of(run) for seed, run in runs.items()}
    return {seed: x for seed, x in found.items() if x is not None}


class Difference(NamedTuple):
    """Of two methods, paired by seed."""

    interval: Interval
    p: float | None
    seeds: int


def difference(value: Value, runs: dict[int, FinishedRun], others: dict[int, FinishedRun]) -> Difference:
    ours, theirs = numbers(value, runs), numbers(value, others)
    a, b = ([side[seed] for seed in sorted(ours.keys() & theirs.keys())] for side in (ours, theirs))
    return Difference(mean_interval([x - y for x, y in zip(a, b, strict=True)]), difference_p(a, b), len(a))


def corrected(found: Iterable[Difference]) -> list[Difference]:
    rows = list(found)
    p = holm([1.0 if row.p is None else row.p for row in rows])
    return [row._replace(p=q) for row, q in zip(rows, p, strict=True)]


# The blocks.


def mean(name: str, runs: dict[int, FinishedRun], form: str = "") -> str:
    found = list(numbers(VALUES[name], runs).values())
    return interval(mean_interval(found), form or VALUES[name].form) if found else ""


def until(target: Target) -> str:
    """'97 (4 of 5)': updates, and in how many runs."""
    updates = target.medians["updates"]
    return f"{'never' if updates is None else f'{updates:.0f}'} ({target.reached} of {target.runs})"


# What `Methods.shown` may say before the name of a value: heading, and the cell.
STATISTICS: dict[str, tuple[str, Callable[[list[float], str], str]]] = {
    "mean of": ("{}", lambda found, form: number(fmean(found), form)),
    "sd of": ("{}, standard deviation", lambda found, form: number(stdev(found), form)),
    "range of": (
        "{}, lowest to highest",
        lambda found, form: f"{number(min(found), form)} to {number(max(found), form)}",
    ),
    "median of": ("{}, median", lambda found, form: f"{median(found):g}"),
    "seeds with": ("seeds with a reward", lambda found, form: f"{sum(x > 0 for x in found)} of {len(found)}"),
}


def shown_column(study_name: str, name: str, group: Group, form: str = "") -> tuple[str, dict[str, str]]:
    """A heading, and method -> cell."""
    if name == "target":
        found = next(c for c in comparisons(study_name) if c.point == group.point)
        title = f"updates to {found.reference}'s final reward"
        return title, {r.method: until(r.target) for r in found.results if r.target is not None}
    if name in VALUES:
        return VALUES[name].title, {m: mean(name, runs, form) for m, runs in group.runs.items()}
    statistic = next(words for words in STATISTICS if name.startswith(words))
    value = VALUES[name.removeprefix(statistic).strip()]
    heading, cell = STATISTICS[statistic]
    found = {m: list(numbers(value, runs).values()) for m, runs in group.runs.items()}
    return heading.format(value.title), {m: cell(of, value.form) if of else "" for m, of in found.items()}


def methods_tables(name: str, spec: Methods) -> Iterator[str]:
    """Lines of Markdown."""
    result = study(name)
    reference = result.study.reference
    for group in groups(name):
        header, rows = ["method"], {method: [method] for method in group.runs}
        for of in spec.compared:
            value, others = VALUES[of], [method for method in rows if method != reference]
            found = corrected(difference(value, group.runs[m], group.runs[reference]) for m in others)
            against = dict(zip(others, found, strict=True))
            header += [value.title.format(metric=f"mean@{samples(result)}"), f"minus {reference}", "p"]
            for method, row in rows.items():
                row.append(mean(of, group.runs[method]))
                d = against.get(method)
                row += ["", ""] if d is None else [interval(d.interval, "+" + value.form), chance(d.p)]
        for of in spec.shown:
            heading, cells = shown_column(name, of, group)
            header.append(heading.format(metric=f"mean@{samples(result)}"))
            for method, row in rows.items():
                row.append(cells[method])
        order = list(rows)
        if spec.sort:
            first = VALUES[spec.compared[0]]
            order.sort(key=lambda m: fmean(numbers(first, group.runs[m]).values()))
        yield from [f"{group.title}:", ""] if group.point else []
        yield from Table.of_text(header, [rows[method] for method in order]).markdown()
        yield ""


def places_table(name: str, spec: Places) -> Iterator[str]:
    reference = study(name).study.reference
    methods = [m for m in study(name).study.methods if not (spec.minus and m == reference)]
    rows = []
    for group in groups(name):
        if spec.minus:
            value = VALUES[spec.value]
            found = corrected(difference(value, group.runs[m], group.runs[reference]) for m in methods)
            cells = [f"{interval(d.interval, '+' + value.form)}, {chance(d.p)}" for d in found]
        else:
            cells = list(shown_column(name, spec.value, group, spec.form)[1].values())
        rows.append([group.updates, *cells])
    yield from Table.of_text(["updates per rollout", *methods], rows).markdown()


def pairs_table(name: str, spec: Pairs) -> Iterator[str]:
    runs = {group.updates: dict(group.runs) for group in groups(name)}
    for other in spec.others:
        more = groups(other)[0].runs
        for label, here in spec.same:
            if label in more:
                runs["16"][here] = runs["16"][here] | more[label]
    keys = [(at, a, b) for at in spec.places for a, b in spec.pairs]
    found = [difference(VALUES["reward"], runs[at][a], runs[at][b]) for at, a, b in keys]
    rows = [
        [f"{a} minus {b}", at, str(d.seeds), interval(d.interval, "+.3f"), chance(d.p), chance(after.p)]
        for (at, a, b), d, after in zip(keys, found, corrected(found), strict=True)
    ]
    header = ["mean reward", "updates per rollout", "seeds", "difference", "p", "p (Holm)"]
    yield from Table.of_text(header, rows).markdown()


def samples(result: StudyResult) -> int:
    return next(run.evaluation.after.samples for run in result.finished if run.evaluation)


def before_training(result: StudyResult) -> str:
    """The held-out problems before training, a mean over seeds."""
    before = list({run.seed: run.evaluation.before for run in result.finished if run.evaluation}.values())
    parts = [f"mean@{before[0].samples} {number(fmean(map(success, before)), '.3f')}"]
    if before[0].greedy:
        parts.append(f"greedy answer right in {fmean(fmean(one.greedy) for one in before):.0%}")
    if before[0].distinct is not None:
        parts.append(
            f"{number(fmean(one.distinct for one in before), '.2f')} different right answers among "
            f"{before[0].samples} samples, their entropy {number(fmean(one.spread for one in before), '.2f')} nats"
        )
    parts.append(f"entropy {number(fmean(one.entropy for one in before), '.2f')} nats per token")
    parts += [f"{number(fmean(one.parts[part] for one in before), '.2f')} in [{part}]" for part in before[0].parts]
    return ", ".join(parts)


def control_text(label: str, found: Calibration) -> str:
    keys = " = ".join(f"`{key}`" for key in found.keys)
    return (
        f"{label}: {keys} = {found.value:.4g}, at which pilot runs had `{found.metric}` = {found.reached:.4f}; "
        f"{found.matches} had {found.target:.4f}"
    )


def facts_table(name: str) -> Iterator[str]:
    result = study(name)
    runs, machine = result.finished, result.environment
    seeds = sorted({run.seed for run in runs})
    length = {(len(r.rollouts.step), r.updates_per_rollout) for r in runs}
    updates, rollouts, per = (
        ", ".join(dict.fromkeys(str(n) for n in of))
        for of in zip(*((r * u, r, u) for r, u in sorted(length)), strict=True)
    )
    controls = [control_text(label, found) for label, found in result.calibration.items()]
    places = f" x {len(groups(name))} places of the sweep" if len(groups(name)) > 1 else ""
    rows = [
        [
            "runs",
            f"{len(result.study.methods)} methods{places} x {len(seeds)} seeds ({seeds[0]} to {seeds[-1]}): "
            f"{len(runs)} of {len(result.runs)} finished",
        ],
        [
            "budget of a run",
            f"{updates} updates in {rollouts} rollouts ({per} updates per rollout); median wall time "
            f"{median(r.seconds for r in runs):.0f} s",
        ],
        ["commit", ", ".join(sorted({(run.commit or machine.commit)[:7] for run in runs}))],
        [
            "hardware",
            f"{machine.cores} cores of an {machine.processor}, {', '.join(machine.gpus) or 'no GPU'}; "
            f"{machine.workers} at a time, {machine.threads} thread each",
        ],
        ["software", ", ".join(f"{p} {machine.packages[p]}" for p in ("torch", "trl", "transformers"))],
        ["recipe", f"`{result.study.recipe}`"],
        ["before training", before_training(result)],
        *([["matched controls", "<br>".join(controls)]] if controls else []),
        ["tables of this page", f"`python tests/docs/study_pages.py`, from `results/{name}/metrics.json`"],
        ["more tables and pictures", f"`bandpo report results/{name}/metrics.json --output DIR`"],
    ]
    yield from [f"| study | {name} |", "|---|---|", *Table.of_text(["", ""], rows).markdown()[2:]]


def block(name: str, spec: Spec | None) -> str:
    """What stands between the marks."""
    match spec:
        case None:
            lines = facts_table(name)
        case Methods():
            lines = methods_tables(name, spec)
        case Places():
            lines = places_table(name, spec)
        case Pairs():
            lines = pairs_table(name, spec)
    return "\n".join(lines).strip()


def marked(mark: str, text: str) -> str:
    return f"<!-- {mark} -->\n\n{text}\n\n<!-- end -->"


def rendered(name: str, page: str) -> str:
    """The page with its blocks as they should be.

    Raises:
        ValueError: If it does not have each of its blocks once.
    """
    for mark, spec in {"facts": None, **STUDIES[name]}.items():
        pattern = re.compile(rf"<!-- {mark} -->\n.*?<!-- end -->", re.S)
        if len(pattern.findall(page)) != 1:
            raise ValueError(f"{name}.md should have one block <!-- {mark} --> ... <!-- end -->")
        new = marked(mark, block(name, spec))
        page = pattern.sub(lambda _, new=new: new, page)
    return page


def empty(name: str) -> str:
    """A page with nothing but its blocks."""
    marks = "\n\n".join(marked(mark, "") for mark in STUDIES[name])
    command = f"```sh\nbandpo compare {name} --output DIR\n```"
    return f"# {name}\n\n{command}\n\n{marked('facts', '')}\n\n## Results\n{marks}\n"


# The picture of docs/results.md.

# Study -> the fixed clip that the others are compared with in the picture.
PICTURED = {
    "scratch": "GRPO",
    "scratch-confirm": "GRPO",
    "scratch-sweep": "Clip-Higher",
    "scratch-width": "clip .2",
    "tail": "GRPO",
    "smollm2": "GRPO",
    "smollm2-halves": "Clip-Higher",
    "word-problems": "Clip-Higher",
    "halves": "GRPO",
    "many": "GRPO",
}
SHOWN = {"BandKL": "Band", "BandKL .05": "Band", "lower half": "its lower half", "upper half": "its upper half"}
SHOWN["NoClip"] = "no clip"
SERIES = {"Band": (0, "o"), "its lower half": (1, "v"), "its upper half": (2, "^"), "no clip": (3, "x")}
MARGINS = (0.05, 0.07)  # beyond the outermost means; an interval may be longer


def pictured() -> dict[str, dict[str, Interval]]:
    """Row of the picture -> what is shown -> difference to the fixed clip in mean reward."""
    rows = []
    for name, reference in PICTURED.items():
        for group in groups(name):
            found = {
                SHOWN[m]: difference(VALUES["reward"], runs, group.runs[reference])
                for m, runs in group.runs.items()
                if m in SHOWN
            }
            seeds = next(iter(found.values())).seeds
            row = f"{name}, {group.updates} updates, {seeds} seeds"
            rows.append((int(group.updates), row, {m: found[m].interval for m in SERIES if m in found}))
    return {row: found for _, row, found in sorted(rows, key=lambda entry: entry[0])}


def picture_data() -> str:
    """What the picture shows, as it is kept in the file."""
    rounded = {
        row: {m: [round(x, 4) for x in astuple(i)] for m, i in found.items()} for row, found in pictured().items()
    }
    return json.dumps(rounded)


def draw() -> None:
    rows = pictured()
    figure = Figure(figsize=(7.6, 0.36 * len(rows) + 1.2), layout="constrained")
    axis = figure.add_subplot()
    axis.spines[["top", "right"]].set_visible(False)
    axis.axvline(0, color=PAPER.muted, linewidth=1)
    titles = list(rows)
    means = [i.mean for found in rows.values() for i in found.values()]
    left, right = min(means) - MARGINS[0], max(means) + MARGINS[1]
    for y, (title, found) in enumerate(rows.items()):
        if y and title.split(", ")[1] != titles[y - 1].split(", ")[1]:
            axis.axhline(y - 0.5, color=PAPER.muted, linewidth=0.6, linestyle=":")
        for place, label in enumerate(found):
            at = y + 0.19 * (place - (len(found) - 1) / 2)
            style, marker = SERIES[label]
            bar = [max(found[label].low, left), min(found[label].high, right)]
            axis.plot(bar, [at, at], color=color(style), linewidth=1.5)
            axis.plot([found[label].mean], [at], marker=marker, color=color(style), markersize=5, linestyle="")
    axis.set(
        xlim=(left, right),
        ylim=(len(rows) - 0.5, -0.5),
        xlabel="mean reward minus that of the fixed clip, 95% over seeds",
    )
    axis.set_yticks(range(len(rows)), titles)
    axis.tick_params(labelsize=9)
    handles = [
        Line2D([], [], color=color(style), marker=marker, linewidth=1.5, label=label)
        for label, (style, marker) in SERIES.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=9.5, frameon=False)
    metadata = {"Description": picture_data(), "Software": None}
    figure.savefig(PICTURE, dpi=100, metadata=metadata, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    for study_name in STUDIES:
        file = PAGES / f"{study_name}.md"
        text = file.read_text(encoding="utf-8") if file.exists() else empty(study_name)
        file.write_text(rendered(study_name, text), encoding="utf-8")
        sys.stdout.write(f"{file.relative_to(ROOT)}\n")
    draw()
    sys.stdout.write(f"{PICTURE.relative_to(ROOT)}\n")
