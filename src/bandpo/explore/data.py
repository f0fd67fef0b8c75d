"""The data of a source, and the exported page with the data of all sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bandpo.explore.page import page
from bandpo.explore.runs import run_data, study_data
from bandpo.explore.sources import Source, find_sources, within
from bandpo.explore.tokens import token_data


def data_of(source: Source, since: str = "") -> dict[str, Any]:
    """What the page shows of a source, ready for JSON.

    Args:
        since: For a run: the version of an earlier answer, to get only what is new.

    Raises:
        ValueError: If it is damaged as a whole, or by now points outside of what was opened.
    """
    for path in source.paths:
        within(path, source.root)
    if source.kind == "tokens":
        return token_data(list(source.paths))
    if source.kind == "study":
        return study_data(source.paths[0], source.name)
    return run_data(source.paths[0], source.name, since, source.root)


def exported_page(paths: Sequence[Path]) -> str:
    """One file with the data of everything below these paths; for a study its metrics.json, not its runs'
    directories.

    Raises:
        ValueError: If a path contains nothing to show.
    """
    if not paths:
        return page()
    sources, problems = find_sources(paths, runs_of_studies=False)
    listed = []
    for source in sources:
        try:
            data = data_of(source)
        except ValueError as error:
            problems.append(str(error))
        else:
            listed.append({"id": source.id, "kind": source.kind, "name": source.name, "data": data})
    return page(listed, problems)
