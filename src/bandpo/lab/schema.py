"""The page on metrics.json, from its dataclasses: python -m bandpo.lab.schema > docs/metrics_json.md"""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

from bandpo.lab import metrics

# Title of a section -> dataclass. `RunResult` and `TrainingRecord` stand for a run in the file.
CLASSES = (
    metrics.StudyResult,
    metrics.Environment,
    metrics.Calibration,
    metrics.RunResult,
    metrics.TrainingRecord,
    metrics.FinishedRun,
    metrics.Rollouts,
    metrics.Updates,
    metrics.BeforeAfter,
    metrics.HeldOut,
)
HEAD = f"""# metrics.json

All data behind the tables and figures of a study ([lab.md](lab.md)). It is rewritten atomically
after each run: format {metrics.FORMAT}, one line per run. Numbers are rounded to 4 significant digits, counts are
exact. What a method does not report is null (TRL's own losses have no divergence, for example). Files of format 1
still load (`bandpo.lab.metrics.upgrade`).

```python
from pathlib import Path
from bandpo.lab.metrics import StudyResult

result = StudyResult.load(Path("results/scratch/metrics.json"))
result.finished[0].updates.clip_fraction_high  # the keys of the file are the field names
```

`Series` is a list with one number or null per entry, `Settings` a mapping as in a recipe. This page is written by
`python -m bandpo.lab.schema`.
"""


def page() -> str:
    """docs/metrics_json.md."""
    return "\n".join([HEAD, *map(_section, CLASSES)])


def _section(described: type) -> str:
    summary, meanings = described_in(described)
    inherited = {field.name for base in described.__bases__ if base is not object for field in fields(base)}
    listed = [field for field in fields(described) if field.name not in inherited]
    missing = [field.name for field in listed if field.name not in meanings]
    if missing:
        raise ValueError(f"{described.__name__} does not describe {', '.join(missing)}")
    bases = ", ".join(base.__name__ for base in described.__bases__ if base is not object)
    extends = f" Also has the fields of {bases}." if bases else ""
    rows = [
        f"| `{field.name}` | `{field.type}` | {meanings[field.name]} |".replace(" | None`", " or null`")
        for field in listed
    ]
    return "\n".join(
        [f"## {described.__name__}", f"{' '.join(summary.split())}{extends}", "", "| key | type | meaning |",
         "|---|---|---|", *rows, ""]
    )  # fmt: skip


def described_in(described: type) -> tuple[str, dict[str, str]]:
    """The summary of a class and the meaning of each field, from its docstring.

    A line below 'Attributes:' is field and meaning; a deeper one continues the line above.
    """
    summary, _, attributes = (inspect.getdoc(described) or "").partition("\n\nAttributes:\n")
    joined = re.sub(r"\n {8,}", " ", attributes)
    return summary, dict(re.findall(r"^ {4}(\w+): (.*)$", joined, flags=re.MULTILINE))


if __name__ == "__main__":
    print(page(), end="")
