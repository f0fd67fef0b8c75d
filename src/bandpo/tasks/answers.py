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
    """The contents of the last complete <answer>...</answer>, None if there is none."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if start < 0 else text[start + len("<answer>") : end].strip()


def after_hashes(text: str) -> str | None:
    """What follows '####' in a GSM8K solution, without thousands separators."""
    _, found, rest = text.rpartition("####")
    return rest.strip().replace(",", "") if found else None


_STATED = re.compile(r"(?i:\banswer)\s*(?:is|=|:)\s*:?\s*")


def stated_answer(text: str) -> str | None:
    """The final answer as the text marks it: the last box, else the last tag, else what follows 'the answer is'.

    A text of one line is taken to be the answer itself.
    """
    marked = last_boxed(text) or last_tagged(text)
    if marked is not None:
        return marked
    *_, last = [None, *_STATED.finditer(text)]
    if last is None:
        text = text.strip()
        return text if text and "\n" not in text else None
    return text[last.end() :].partition("\n")[0].strip() or None


# Marks of layout, which two writings of the same answer may or may not have.
_LAYOUT = re.compile(r"\\(?:left|right|big|Big|bigl|bigr|displaystyle|,|!|;|:| |quad)(?![A-Za-z])|[\s$*~]")
_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


def plain(answer: str) -> str:
    r"""An answer without what only concerns its layout: spaces, $, \left, \text{...}, a final full stop."""
    answer = _LAYOUT.sub("", _WORDS.sub(r"\1", answer))
    return answer.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").rstrip(".")


def holds_words(text: str) -> bool:
    """Whether a text has words beside its LaTeX commands and one-letter variables."""
    return re.search(r"[A-Za-z]{2}", re.sub(r"\\[A-Za-z]+", "", text)) is not None
