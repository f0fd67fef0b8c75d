"""Where in a text the final answer stands. Nothing here judges mathematics."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*")


def last_boxed(text: str) -> str | None:
    r"""The contents of the last \boxed{...} (or \boxed x) in a text, None if there is none or it never closes."""
    *_, last = [None, *_BOX.finditer(text)]
    if last is None:
        return None
    start = last.end()
    if text[start : start + 1] != "{":
        return text[start:].split(maxsplit=1)[0].rstrip("$.") if text[start:].strip() else None
    depth = 0
    for i in range(start, len(text)):
        if text[i] in "{}" and not (text[i - 1] == "\\" and text[i - 2] != "\\"):
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return text[start + 1 : i].strip()
    return None


def last_tagged(text: str) -> str | None:
    """The contents of the last <answer>...</answer>, None if there is none."""
    _, found, rest = text.rpartition("<answer>")
    if not found or "</answer>" not in rest:
        return None
    return rest.partition("</answer>")[0].strip()


def after_hashes(text: str) -> str | None:
    """What follows '####' in a GSM8K solution, without thousands separators."""
    _, found, rest = text.rpartition("####")
    return rest.strip().replace(",", "") if found else None
