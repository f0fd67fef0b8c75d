"""Finds the final answer in a text. Nothing here judges mathematics.

Standard library only: the grading worker loads this file by its path.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_TAIL = 4000
"""Number of characters of a text that are searched for its answer."""
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{|[-\d(\\+$]|[A-Za-z](?![A-Za-z]))")


class _Box(NamedTuple):
    start: int
    end: int
    content: str | None  # None if it never closes


def _box(text: str, match: re.Match[str]) -> _Box:
    start = match.end()
    if text[start : start + 1] != "{":
        word = re.match(r"\S*", text[start:])
        content = word[0].rstrip("$.") if word else ""
        return _Box(match.start(), start + len(content), content or None)
    depth = 0
    for i in range(start, len(text)):
        if text[i] in "{}" and not (text[i - 1] == "\\" and text[i - 2] != "\\"):
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return _Box(match.start(), i + 1, text[start + 1 : i].strip())
    return _Box(match.start(), len(text), None)


def last_boxed(text: str) -> str | None:
    r"""The contents of the last \boxed{...} (or \boxed x) in a text, None if there is none or it never closes."""
    *_, last = [None, *_BOX.finditer(text)]
    return None if last is None else _box(text, last).content


# Between two boxes of one answer: \boxed{1}, \boxed{2} \text{ and } \boxed{3}
_BETWEEN = re.compile(
    r"(?:[\s,;$&]|\\[()\[\],;:! ]|\\q?quad|\\text\s*\{[^{}]*\b(?:and|or)\b[^{}]*\}|\b(?:and|or)\b)*"
)
_MOST_BOXES = 50


def boxed_answer(text: str) -> str | None:
    """The last box, together with directly preceding ones joined to it by a comma, 'and' or 'or'."""
    matches = [*_BOX.finditer(text)][-_MOST_BOXES:]
    if not matches:
        return None
    last = _box(text, matches[-1])
    if last.content is None:
        return None
    contents, start = [last.content], last.start
    for match in reversed(matches[:-1]):
        box = _box(text, match)
        between = text[box.end : start]
        if box.content is None or not between.strip(" $") or not _BETWEEN.fullmatch(between):
            break
        if box.content not in contents:
            contents.insert(0, box.content)
        start = box.start
    return ", ".join(contents)


_OPEN_TAG, _CLOSE_TAG = re.compile(r"<answer>", re.IGNORECASE), re.compile(r"</answer>", re.IGNORECASE)


def last_tagged(text: str) -> str | None:
    """The contents of the last complete <answer>...</answer>, None if there is none."""
    *_, end = [None, *_CLOSE_TAG.finditer(text)]
    if end is None:
        return None
    *_, start = [None, *_OPEN_TAG.finditer(text, 0, end.start())]
    return None if start is None else text[start.end() : end.start()].strip()


def _tagged(text: str) -> str | None:
    """The last complete tag, or what follows one that never closes."""
    *_, start = [None, *_OPEN_TAG.finditer(text)]
    if start is None or _CLOSE_TAG.search(text, start.end()):
        return last_tagged(text)
    return text[start.end() :].strip()


def after_hashes(text: str) -> str | None:
    """What follows '####' in a GSM8K solution, without thousands separators."""
    _, found, rest = text.rpartition("####")
    return rest.strip().replace(",", "") if found else None


_STATED = re.compile(
    r"(?:(?i:\banswers?\b)(?:[*_:]{0,4}\s+(?:to|of|for|in)\b[^.\n]{0,80}?)?[*_\s]*(?:(?i:is|are)\b|[=:]){1,2}(?:\s*:)?"
    "|答案\\s*(?:应该)?(?:是|为|选|[:：=]){1,2}[:：]?|故选[:：]?|答[:：]"
    r"|^####(?!#))[*_]*\s*",
    re.MULTILINE,
)
_THOUGHT_OPENS, _THOUGHT_ENDS = (
    re.compile(r"<think(?:ing)?>", re.IGNORECASE),
    re.compile(r"</think(?:ing)?>", re.IGNORECASE),
)
_SPECIAL = re.compile(r"<\|(?:im_end|im_start|endoftext|eot_id|end_of_text|end)\|>|</s>|<eos>|<end_of_turn>")
_NEXT_QUESTION = re.compile(
    r"^[ \t]*(?:#+[ \t]*|\*\*)?(?:(?:Question|Problem|Exercise|Example|Q|Human|User|Instruction|Input)\b"
    r"[ \t]*\d*[ \t]*\**[:.]"
    "|(?:问题|题目|例)\\s*\\d*\\s*[:：])",
    re.MULTILINE,
)


def spoken(text: str) -> str:
    """The model's reply: without its thoughts, and without turns or questions that it makes up afterwards.

    An unfinished thought is an empty reply.
    """
    *_, end = [None, *_THOUGHT_ENDS.finditer(text)]
    if end is not None:
        text = text[end.end() :]
    if opened := _THOUGHT_OPENS.search(text):
        text = text[: opened.start()]
    text = text.lstrip()
    if (special := _SPECIAL.search(text)) and text[: special.start()].strip():
        text = text[: special.start()]
    marks = [mark.start() for kind in (_BOX, _OPEN_TAG, _STATED) if (mark := kind.search(text))]
    if marks and (question := _NEXT_QUESTION.search(text, min(marks))):
        return text[: question.start()].rstrip()
    if (question := _NEXT_QUESTION.search(text)) and not (marks and min(marks) < question.start()):
        before = text[: question.start()].strip()
        if "\n" not in before and re.search(r"\d", before):  # a line that is the answer
            return before
    return text


def _marked(text: str) -> str | None:
    """The contents of the last box, else of the last tag, else what a phrase states; None if there is none."""
    if _BOX.search(text):
        return boxed_answer(text) or ""
    tagged = _tagged(text)
    if tagged is not None:
        return tagged
    *_, last = [None, *_STATED.finditer(text)]
    return None if last is None else _line(text[last.end() :])


def _line(text: str) -> str:
    """The first line of a text, or its displayed formula if it starts with one; environments are kept whole."""
    if display := re.match(r"\$\$.+?\$\$|\\\[.+?\\\]", text[:5000], re.DOTALL):
        return display[0]
    end = text.find("\n")
    while 0 <= end < _TAIL and not _balanced(text[:end]):
        end = text.find("\n", end + 1)
    return (text if end < 0 else text[:end]).strip()


def _balanced(text: str) -> bool:
    return text.count("\\begin{") <= text.count("\\end{") and (text.count("$$") % 2 == 0)


def stated_answer(text: str) -> str | None:
    """The final answer as the text marks it: the last box, else the last tag, else what follows 'the answer is'.

    A one-line text counts as the answer itself. A box that never closes is not an answer.
    """
    text = spoken(text)
    marked = _marked(text)
    if marked is None and "\n" not in text.strip():
        return text.strip() or None
    return marked or None


_LAST_NUMBER = re.compile(r"((?:(?<![\w)\]}])[-−])?)(\d{1,3}(?:,\d{3})+(?!\d)|\d+)((?:\.\d+)?)")


def last_integer(text: str, whole: bool = False) -> str | None:
    """The last number of a text in canonical form if it is an integer, else None.

    Args:
        whole: Whether the number must be all of the text.
    """
    if whole:
        match = _LAST_NUMBER.fullmatch(text.strip())
    else:
        *_, match = [None, *_LAST_NUMBER.finditer(text)]
    if match is None or match[3].strip(".0"):
        return None
    # As text, because Python refuses to convert thousands of digits to an integer.
    digits = match[2].replace(",", "").lstrip("0")
    return ("-" if match[1] else "") + digits if digits else "0"


# Layout marks, in which two spellings of the same answer may differ.
_LAYOUT = re.compile(
    r"\\(?:left|right|big|Big|bigl|bigr|displaystyle|,|!|;|:| |quad)(?![A-Za-z])|[\s$~]|\*\*(?!\w)|\A\*\*"
)
_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_BETWEEN_DIGITS = re.compile(r"(?<=\d)(?:\s|~|\\[,;: ]|\\quad)+(?=\d)(?!\d{3}(?!\d))")


def plain(answer: str) -> str:
    r"""An answer without its layout: spaces, $, \left, \text{...}, a final full stop."""
    answer = _BETWEEN_DIGITS.sub("\0", _WORDS.sub(r"\1", answer))
    answer = _LAYOUT.sub("", answer).replace("\0", " ")
    return answer.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").rstrip(".")


def holds_words(text: str) -> bool:
    """Whether a text has words besides its LaTeX commands and one-letter variables."""
    return re.search(r"[A-Za-z]{2}", re.sub(r"\\[A-Za-z]+", "", text)) is not None


# ---------------------------------------------------------------- expressions in prose

_MATH, _GLUE, _JOIN, _WORD, _STOP = "math", "glue", "join", "word", "stop"
_MATH_WORDS = re.compile(
    "pi|inf|infinity|sqrt|abs|exp|sin|cos|tan|cot|sec|csc|log|ln|arcsin|arccos|arctan|sinh|cosh|tanh|percent|hundred|"
    "thousand|million|billion|trillion|dozen|mod"
)
_TOKENS = re.compile(
    r"(?P<math>\$\$.+?\$\$|\$[^$\n]+\$|\\\(.+?\\\)|\\\[.+?\\\]|\\begin\{(\w+\*?)\}.*?\\end\{\2\}"
    r"|\\(?:text\w*|mbox|mathrm|mathbf|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+|\\[%$&#{}|,!;: ]"
    r"|\d+(?:,\d{3})*(?:\.\d+)?|\.\d+"
    "|[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞√∞π∅ℝ]|[α-ωΑ-Ω])"
    r"|(?P<word>(?!sqrt|frac)[A-Za-z]{3,}\{[^{}]*\}|[A-Za-z]+)|(?P<join>[或和与、]|&)|(?P<cjk>[\u4e00-\u9fff]+)"
    r"|(?P<stop>[.!?。！？](?=\s|$|[*\"'”)])|\n)|(?P<space>[ \t\r*`_\"“”]+(?![\w(\\])|[ \t\r`\"“”]+)|(?P<glue>.)",
    re.DOTALL,
)
_CURRENCY = re.compile(r"\\?\$(?=\d[\d,]*(?:\.\d+)?(?:[.,;:!?)]?\s+(?:[A-Za-z]{2}|\$)|[.,;:!?]?\s*$))", re.MULTILINE)
_LABEL = re.compile(r"(?:\([A-J]\)|[A-J][).:])\s+\S")  # a choice with its text
_REASONS = {
    "because",
    "since",
    "as",
    "for",
    "where",
    "when",
    "if",
    "so",
    "with",
    "from",
    "which",
}  # an explanation follows
_VERBS = {"is", "are", "was", "were"}


class _Token(NamedTuple):
    kind: str
    start: int
    end: int


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    for match in _TOKENS.finditer(text):
        kind, word = match.lastgroup or "math", match[0]
        if kind == "space":
            continue
        if kind == "word":
            attached = bool(found) and found[-1].end == match.start() and found[-1].kind in (_MATH, _GLUE)
            kind = _word_kind(word, attached and text[match.start() - 1] not in ",;:()", text[match.end() :][:2])
        elif kind == "cjk":
            kind = _MATH if word[0] in "万亿" else _WORD
        elif kind not in (_JOIN, _STOP, _GLUE):
            kind = _MATH
        found.append(_Token(kind, match.start(), match.end()))
    return found


def _word_kind(word: str, attached: bool, following: str) -> str:
    lower = word.lower()
    if lower in ("and", "or"):
        return _JOIN
    if attached and len(word) <= 3 and lower not in ("th", "st", "nd", "rd"):
        return _MATH
    if _MATH_WORDS.fullmatch(lower) or word in ("AM", "PM") or (following[:1] == "(" and len(word) <= 2):
        return _MATH
    if len(word) > 1:
        return _WORD
    article = word in ("I", "a", "A") and re.match(r"\s[A-Za-z]", following)
    return _WORD if article else _MATH


def _runs(text: str, tokens: list[_Token]) -> list[tuple[int, int]]:
    """The spans of mathematics, as first and last token."""
    runs: list[tuple[int, int]] = []
    i = 0
    while i < len(tokens):
        if tokens[i].kind not in (_MATH, _GLUE):
            i += 1
            continue
        last = i
        while last + 1 < len(tokens) and tokens[last + 1].kind in (_MATH, _GLUE, _JOIN):
            last += 1
        following = last + 1
        while i <= last and text[tokens[i].start : tokens[i].end] in ",;:=>)*":
            i += 1
        while last >= i and (
            tokens[last].kind == _JOIN or text[tokens[last].start : tokens[last].end] in ",;:=-+<>/^~("
        ):
            last -= 1
        if any(token.kind == _MATH for token in tokens[i : last + 1]):
            runs.append((i, last))
        i = following
    return runs


def _compound(tokens: list[_Token], runs: list[tuple[int, int]], text: str) -> bool:
    """Whether a quantity continues after its unit: 2 hours 30 minutes, 18 dollars and 5 cents."""
    if len(runs) < 2 or runs[1][0] - runs[0][1] > 3:
        return False
    between = tokens[runs[0][1] + 1 : runs[1][0]]
    words = [text[token.start : token.end].lower() for token in between if token.kind == _WORD]
    plain = all(token.kind in (_WORD, _JOIN) for token in between)
    behind = tokens[runs[1][1] + 1 : runs[1][1] + 2]
    return (
        plain
        and len(words) == 1
        and words[0] not in _REASONS | _VERBS
        and any(token.kind == _WORD for token in behind)
    )


def _cut(text: str, tokens: list[_Token], run: tuple[int, int]) -> str:
    return text[tokens[run[0]].start : tokens[run[1]].end]


def expression(text: str) -> str:
    """The mathematics of a statement: what it starts with, else the last of its first sentence, else all of it.

    '18 dollars per day: 9 eggs' gives 18, 'the point (3, -4)' gives (3, -4), 'Evelyn' gives Evelyn.
    """
    text = _CURRENCY.sub("", text[:_TAIL].strip().strip("*_` "))
    if _LABEL.match(text):
        return text
    tokens = _tokens(text)
    stops = [i for i, token in enumerate(tokens) if token.kind == _STOP]
    runs = _runs(text, tokens)
    if not runs:
        return text
    if runs[0][0] == 0:
        return text if _compound(tokens, runs, text) else _cut(text, tokens, runs[0])
    reasons = [
        i
        for i, token in enumerate(tokens)
        if token.kind == _WORD and i > runs[0][0] and text[token.start : token.end].lower() in _REASONS
    ]
    first = min([i for i in (*stops, *reasons) if i > 0], default=len(tokens))
    return _last(text, tokens, [run for run in runs if run[0] < first]) or text


def _last(text: str, tokens: list[_Token], runs: list[tuple[int, int]]) -> str | None:
    """The last run, preferably one with more than letters."""
    found = [_cut(text, tokens, run) for run in runs]
    full = [one for one in found if re.search(r"[\d\\$=<>]", one)]
    return next(reversed(full or found), None)


def last_expression(text: str) -> str | None:
    """The last mathematics anywhere in a text."""
    text = _CURRENCY.sub("", text[-_TAIL:])
    tokens = _tokens(text)
    return _last(text, tokens, _runs(text, tokens))


def final_answer(completion: str) -> str | None:
    """The answer that a completion gives, without the words around it; None if there is none."""
    text = spoken(completion)
    if _BOX.search(text):
        content = boxed_answer(text)
        *_, phrase = [None, *_STATED.finditer(content or "")]
        return content if phrase is None or content is None else expression(_line(content[phrase.end() :]))
    marked = _marked(text)
    if marked is not None:
        return expression(marked) if marked else None
    text = text.strip()
    if not text:
        return None
    if "\n" not in text and _LABEL.match(text):
        return text
    return last_expression(text) or (text if "\n" not in text else None)
