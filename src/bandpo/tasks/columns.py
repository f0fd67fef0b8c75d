"""From a row of a data set to a problem: the columns of question and answer, and their accepted forms."""

from __future__ import annotations

import json
import math
import numbers
import re
from collections.abc import Callable
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from bandpo.tasks.base import Message, Problem
from bandpo.tasks.reading import Row, is_rows
from bandpo.words import nearest

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Columns:
    """The columns of a problem, and how to read them.

    Attributes:
        question, answer, solution: Names of the columns, with dots into nested ones (`reward_model.ground_truth`,
            `answers.0`); two may be the same.
        read_question, read_answer, read_solution: From a cell's text to its value, None if it is missing.
        choices: The column of choices; the question then ends with them, one lettered line each, and the answer is
            a letter.
    """

    question: str = "question"
    answer: str = "answer"
    solution: str | None = "solution"
    read_question: Callable[[str], str | None] = str.strip
    read_answer: Callable[[str], str | None] = str.strip
    read_solution: Callable[[str], str | None] = str.strip
    choices: str | None = None

    def problem(self, row: Row) -> Problem:
        """The problem in a row.

        The question is a string or a list of chat messages {role, content} that ends with the user's: that one is
        the question, those before it are its context. The answer is a string or a number, or a list with one of them;
        with choices it is a label, the text of one of them, or its index from 0.

        Raises:
            ValueError: If the row has no such question or answer. The message does not name the row.
        """
        context, text = _conversation(_filled(row, self.question), self.question)
        question = self.read_question(text)
        if not question:
            raise ValueError(f"no question in {self.question!r}: {excerpt(text)}")
        cell = _one(_filled(row, self.answer), self.answer)
        answer = self.read_answer(cell)
        if not answer:
            raise ValueError(f"no answer in {self.answer!r}: {excerpt(cell)}")
        if self.choices is not None:
            choices = _choices(_filled(row, self.choices), self.choices)
            question = "\n".join([question, *(f"{label}. {text}" for label, text in choices.items())])
            answer = _chosen(answer, choices, self.answer)
        return Problem(question, answer, self._solution(row), context=context)

    def _solution(self, row: Row) -> str | None:
        cell = None if self.solution is None else _cell(row, self.solution)
        while isinstance(cell, list) and cell:  # any of several solutions will do
            cell = cell[0]
        return (self.read_solution(cell) or None) if isinstance(cell, str) else None


_ABSENT = object()


def _cell(row: Row, key: str) -> Any:
    """The value of a column, which may be nested; _ABSENT if there is none."""
    value: Any = row
    for part in (key,) if key in row else key.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _ABSENT
        if hasattr(value, "tolist"):  # numpy's arrays and numbers, in rows from pandas
            value = value.tolist()
    return value


def _filled(row: Row, key: str) -> Any:
    cell = _cell(row, key)
    if cell is _ABSENT:
        keys = _keys(row)
        raise ValueError(f"no {key!r}{nearest(key, keys)}; its keys are {', '.join(map(repr, keys)) or 'none'}")
    if cell is None or cell == [] or (isinstance(cell, str) and not cell.strip()):
        raise ValueError(f"{key!r} is empty")
    return cell


def _keys(row: Row) -> list[str]:
    nested = ([f"{key}.{k}" for k in _keys(v)] if isinstance(v, dict) and v else [key] for key, v in row.items())
    return [key for keys in nested for key in keys]


def _one(cell: Any, key: str) -> str:
    """The answer in a cell as text: an integer stored as a float loses its '.0'.

    A list of several is an error: only the user knows whether all of them are needed or one is enough.
    """
    if isinstance(cell, list):
        several = list(dict.fromkeys(_one(item, key) for item in cell))
        if len(several) != 1:
            raise ValueError(
                f"{len(several)} answers in {key!r}, {', '.join(map(repr, several[:3]))}"
                f"{', ...' if several[3:] else ''}; allowed: one (the key {f'{key}.0'!r} takes the first)"
            )
        return several[0]
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if isinstance(cell, float) and math.isnan(cell):
        raise ValueError(f"{key!r} is empty")
    if not isinstance(cell, str | numbers.Number):
        raise ValueError(f"a {type(cell).__name__} in {key!r}; allowed: a string or a number: {excerpt(cell)}")
    return str(cell).strip()


def _choices(cell: Any, key: str) -> dict[str, str]:
    """Label -> text of {label: [...], text: [...]}, of a list of {label, text}, or of a list of texts (A, B, ...)."""
    if isinstance(cell, dict):  # numpy's arrays, in rows from pandas
        cell = {part: list(cell.get(part, ())) for part in ("label", "text")}
        labels, texts = cell["label"], cell["text"]
    elif is_rows(cell) and all("label" in choice and "text" in choice for choice in cell):
        labels, texts = [choice["label"] for choice in cell], [choice["text"] for choice in cell]
    elif isinstance(cell, list) and not is_rows(cell) and len(cell) <= len(ascii_uppercase):
        labels, texts = list(ascii_uppercase[: len(cell)]), cell
    else:
        raise ValueError(
            f"no choices in {key!r}; allowed: {{label: [...], text: [...]}}, a list of {{label, text}}, or up to "
            f"{len(ascii_uppercase)} strings: {excerpt(cell)}"
        )
    choices = {str(label).strip(): str(text).strip() for label, text in zip(labels, texts, strict=False)}
    if len(labels) != len(texts) or len(choices) < max(2, len(labels)) or not all(choices.values()):
        raise ValueError(f"choices in {key!r}; allowed: two or more, each with a label and a text: {excerpt(cell)}")
    return choices


def _chosen(answer: str, choices: dict[str, str], key: str) -> str:
    """The label of the right choice, given by label, by text, or by index from 0."""
    if answer in choices:
        return answer
    labels = [label for label, text in choices.items() if text == answer]
    if len(labels) == 1:
        return labels[0]
    if not labels and answer.isdecimal() and int(answer) < len(choices):
        return list(choices)[int(answer)]
    raise ValueError(f"answer {answer!r} in {key!r} is not one of the choices {', '.join(choices)}")


# Messages stored as text in a table without nested columns.
_WRITTEN = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content)['"]\s*:""")


def _conversation(cell: Any, key: str) -> tuple[tuple[Message, ...], str]:
    """The messages before the question, and the text of the question."""
    if isinstance(cell, str) and _WRITTEN.match(cell):
        try:
            cell = json.loads(cell)
        except json.JSONDecodeError as error:
            raise ValueError(f"chat messages as text in {key!r} that are not JSON: {excerpt(cell)}") from error
    if not isinstance(cell, list):
        return (), _one(cell, key)
    if not is_rows(cell) or any("role" not in m or "content" not in m for m in cell):
        raise ValueError(f"a list in {key!r} that is not of messages, each with role and content: {excerpt(cell)}")
    messages = [Message(m["role"], _content(m["content"], key)) for m in cell]
    for role, _ in messages:
        if role not in ROLES:
            raise ValueError(
                f"a message of role {role!r} in {key!r}{nearest(role, ROLES)}; allowed: {', '.join(ROLES)}"
            )
    *context, last = messages
    if last.role != "user" or not last.content.strip():
        raise ValueError(f"{key!r} ends with the message of role {last.role!r}; allowed: a non-empty user message")
    return tuple(context), last.content


def _content(content: Any, key: str) -> str:
    if is_rows(content) and all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ValueError(f"a message in {key!r} whose content is not text: {excerpt(content)}")
    return content


def excerpt(cell: Any) -> str:
    """A cell, shortened for a message."""
    text = repr(cell)
    return text if len(text) <= 80 else f"{text[:38]} ... {text[-38:]}"
