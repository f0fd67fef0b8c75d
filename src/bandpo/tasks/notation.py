r"""A canonical form for each notation, so that Math-Verify compares what is meant.

Nothing here judges whether two answers are equal. Every rule is applied to the reference and to the completion,
changes the notation and not the meaning, and is listed in `RULES` with an example. Standard library only:
the grading worker loads this file by its path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

MAX_LENGTH = 4000
"""Characters; longer answers, which are never final answers, are only compared as text."""


class Rule(NamedTuple):
    """A rewriting with an example: `rewrite(before) == after`."""

    name: str
    before: str
    after: str
    rewrite: Callable[[str], str]


def _replace(pattern: str, by: str | Callable[[re.Match[str]], str], flags: int = 0) -> Callable[[str], str]:
    compiled = re.compile(pattern, flags)
    return lambda text: compiled.sub(by, text)


# ---------------------------------------------------------------- characters

_NAMED = {
    "−–—‒‐‑﹣": "-",
    "×✕": r"\times ",
    "÷": r"\div ",
    "·⋅∙•": r"\cdot ",
    "∞": r"\infty ",
    "π": r"\pi ",
    "°º": r"^\circ ",
    "≤⩽": r"\le ",
    "≥⩾": r"\ge ",
    "≠": r"\ne ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "±": r"\pm ",
    "ℝ": r"\mathbb{R}",
    "…⋯": r"\ldots ",
    "⟨〈": r"\langle ",
    "⟩〉": r"\rangle ",
    "∣｜": "|",
    "⁄∕／": "/",
    "、": ", ",
    "。": ".",
    "\u00a0\u2002\u2003\u2009\u200a\u202f\u205f\u3000\t\r\n": " ",
    "\u200b\u200c\u200d\u2060\ufeff": "",
}
_FRACTIONS = {"½": "12", "⅓": "13", "⅔": "23", "¼": "14", "¾": "34", "⅕": "15", "⅖": "25", "⅗": "35", "⅘": "45"}
_FRACTIONS |= {"⅙": "16", "⅚": "56", "⅛": "18", "⅜": "38", "⅝": "58", "⅞": "78"}
_CHARACTERS = {character: chr(character - 0xFEE0) for character in range(0xFF01, 0xFF5F)}  # full width
_CHARACTERS |= {ord(character): name for group, name in _NAMED.items() for character in group}
_CHARACTERS |= {ord(sign): rf"\frac{{{digits[0]}}}{{{digits[1]}}}" for sign, digits in _FRACTIONS.items()}
_HIGH = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_LOW = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")


def _characters(text: str) -> str:
    text = re.sub("[⁰¹²³⁴-⁹⁺⁻ⁿ]+", lambda m: f"^{{{m[0].translate(_HIGH)}}}", text)
    text = re.sub("[₀-₉]+", lambda m: f"_{{{m[0].translate(_LOW)}}}", text)
    return text.translate(_CHARACTERS)


# ---------------------------------------------------------------- words and units


def _words(text: str) -> set[str]:
    return set(text.split())


_OPERATORS = _words(
    "arcsin arccos arctan sinh cosh tanh sin cos tan cot sec csc log ln exp lg gcd lcm max min sqrt abs pi inf "
    "infinity"
)
_CONNECT = ("and", "or")
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
# These say which, not how much: without them 3 AM would equal 3 PM.
_NO_UNIT = {*_OPERATORS, *_CONNECT, *_POWERS, "dozen", "am", "pm", "mod", "if", "to", "bc", "ad", "negative", "minus"}
_UNITS = _words(
    "mm cm dm km mg kg ml cl hr min sec ms ns kb mb gb ft in yd mi lb oz mph kmh rad deg hz khz mhz ev kev mev "
    "gev kj kw  kwh mv mol nm atm pa kpa usd eur rs sq per day men cup pen egg box bag cow hen pie toy car boy "
    "girl way cat dog bus  mile hour year week inch foot feet yard cent gram pound liter litre ton watt volt "
    "page book kid coin card tree bird  fish ball time unit"
)


def is_unit(word: str) -> bool:
    """Whether a bare word after a number is a unit, and not a product of variables."""
    word = word.lower()
    return word not in _NO_UNIT and (len(word) >= 5 or bool({word, word.removesuffix("s")} & _UNITS))


def _unit_words(words: str) -> bool:
    found = re.findall(r"[A-Za-z]+", words)
    return not any(word.lower() in _NO_UNIT for word in found)


_UPRIGHT = r"\\(?:text(?:rm|normal|bf|it|up|sf)?|math(?:rm|bf|it|sf)|mbox|hbox)"
_UNIT = rf"(?:{_UPRIGHT}\s*\{{[^{{}}]*\}}(?:\s*\^\s*(?:-?\d|\{{-?\d+\}}))?)"
_BEHIND_NUMBER = r"(?<=[\d}).%])\s*"


def _text_unit(match: re.Match[str]) -> str:
    contents = re.findall(r"\{([^{}]*)\}", re.sub(r"\^\s*\{-?\d+\}", "", match[0]))
    words = " ".join(contents)
    single = words.strip()
    if single in ("e", "i", "") or not re.search("[A-Za-z]", single) or not _unit_words(words):
        return match[0]
    if re.search(r"\d", re.sub(r"\d+$", "", single)) or re.match(r"\\math(?:bf|it)", match[0].strip()):
        return match[0]  # a bold letter is a vector
    return ""


_WORD = r"[A-Za-z]{2,}\.?(?:\^\{?[23]\}?)?"


def _bare_unit(match: re.Match[str]) -> str:
    words = re.findall(r"[A-Za-z]+", match[0])
    attached = match[0][0].isalpha()
    known = {words[0].lower(), words[0].lower().removesuffix("s")} & _UNITS
    return "" if all(map(is_unit, words)) and (known or not attached) else match[0]


def _bare_words(text: str) -> str:
    """Mark a word as text: as a product of letters, 'stop' would equal 'pots'."""
    if not re.search(r"[A-Za-z]{4}", text):
        return text
    parts = [re.fullmatch(r"(\s*)([A-Za-z]{4,})([\s.]*)", part) or part for part in text.split(",")]
    return ",".join(part if isinstance(part, str) else rf"{part[1]}\text{{{part[2]}}}{part[3]}" for part in parts)


def _power_word(match: re.Match[str]) -> str:
    opened, closed = match["open"] or "", match["close"] or ""
    kept = "" if opened and closed else opened.strip() or closed
    return rf"\times 10^{{{_POWERS[match['word'].lower()]}}}{kept}"


_POWER_WORDS = "|".join(_POWERS)


def _fonts(text: str) -> str:
    """Drop purely visual commands; words stay marked as text, uniformly."""

    def content(match: re.Match[str]) -> str:
        inside = match[1]
        return rf"\text{{{inside}}}" if re.search(r"[A-Za-z]{2}|^\s*$", inside) else f"{inside} "

    text = re.sub(r"\{\\(?:rm|bf|it)\s+([^{}]*)\}", r"\\mathrm{\1}", text)
    text = re.sub(_UPRIGHT + r"\s+([A-Za-z0-9])(?![A-Za-z])", r"\1 ", text)
    text = re.sub(r"\\(?:bm|boldsymbol|mathit|mathbf|mathsf|mathnormal|underline)\s*\{([^{}]*)\}", r"\1 ", text)
    return re.sub(rf"{_UPRIGHT}\s*\{{([^{{}}]*)\}}", content, text)


# ---------------------------------------------------------------- numbers


def _thousands(text: str) -> str:
    r"""If every comma can only group digits; a tuple (1,234) keeps its two numbers."""
    grouped = r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])"
    if "," in re.sub(grouped, "", text) or re.search(r"[(\[]|\\\{|\\begin", text):
        return text
    return re.sub(grouped, lambda m: m[0].replace(",", ""), text)


def _mixed(match: re.Match[str]) -> str:
    whole, top, bottom = match.groups()
    proper = len(top) < len(bottom) or (len(top) == len(bottom) and top < bottom)
    return rf"{whole}\frac{{{top}}}{{{bottom}}}" if proper else match[0]


def _repeating(match: re.Match[str]) -> str:
    """0.1(6) is (16 - 1) / 90."""
    whole, start, period = match["whole"] or "0", match["start"], re.sub(r"\D", "", match["period"])
    if len(start) + len(period) > 40:
        return match[0]
    bottom = 10 ** len(start) * (10 ** len(period) - 1)
    top = int(start + period) - int(start or "0") + int(whole[-40:]) * bottom
    return rf"\frac{{{top}}}{{{bottom}}}"


def _scientific(match: re.Match[str]) -> str:
    power = rf"{match[1]} \times 10^{{{match[2].lstrip('+')}}}"
    return power if match[0] == match.string.strip() else f"({power})"


def _exact(match: re.Match[str]) -> str:
    """A decimal as an exact fraction: Math-Verify rounds decimals and compares fractions exactly."""
    whole, places = match[1], match[2]
    if not places.strip("0"):
        return whole or "0"
    return rf"\frac{{{(whole + places).lstrip('0')}}}{{1{'0' * len(places)}}}"


_DECIMAL = r"(?<![\d.])(\d*)\.(\d+)(?![\d.])"


# ---------------------------------------------------------------- brackets and calls


def _closing(text: str, start: int) -> int | None:
    """Index at which the parenthesis that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return None


def _braced(pattern: str, opening: str, closing: str) -> Callable[[str], str]:
    """Rewrite PATTERN( ... ) with its balanced parentheses as opening ... closing."""
    compiled = re.compile(pattern + r"\s*\(")

    def rewrite(text: str) -> str:
        position = 0
        while match := compiled.search(text, position):
            end = _closing(text, match.end() - 1)
            if end is not None:
                text = text[: match.start()] + opening + text[match.end() : end] + closing + text[end + 1 :]
            position = match.start() + len(opening) if end is not None else match.end()
        return text

    return rewrite


# ---------------------------------------------------------------- sets


_RELATIONS = {r"\lt": "<", r"\gt": ">", r"\leq": r"\le", r"\geq": r"\ge", r"\leqslant": r"\le", r"\geqslant": r"\ge"}
_RELATIONS |= {"<=": r"\le", ">=": r"\ge", r"\neq": r"\ne", "!=": r"\ne"}
_MEMBER = r"(?:\s*\\in\s*(?:\\mathbb\s*\{?\s*R\s*\}?|R))?"


def _set_builder(match: re.Match[str]) -> str:
    variable, condition = match["variable"], match["condition"]
    real = rf"(?<![A-Za-z\\]){variable}\s*\\in\s*(?:\\mathbb\s*\{{?\s*R\s*\}}?|R\b)"
    condition = re.sub(rf"{real}\s*,|,\s*{real}", "", condition).strip()
    holds = re.search(rf"(?<![A-Za-z\\]){variable}(?![A-Za-z])", condition) and re.search(
        r"[<>]|\\[lg]e\b|\\ne\b", condition
    )
    return condition if holds else match[0]


_JOINT = r"\s*,?\s*(?:\\text\s*\{\s*(and|or)\s*\}|(?<![A-Za-z\\])(and|or)(?![A-Za-z]))\s*"


def _joined_inequalities(text: str) -> str:
    """The word between two inequalities in one variable decides between union and intersection."""
    parts = re.split(_JOINT, text)
    letters = set(re.findall(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", " ".join(parts[::3])))
    relation = r"[<>]|\\(?:[lg]eq?|neq?)(?![A-Za-z])"
    if len(letters) != 1 or not all(re.search(relation, part) for part in parts[::3]):
        return text
    signs = [r"\lor" if "or" in pair else r"\land" for pair in zip(parts[1::3], parts[2::3], strict=True)]
    return parts[0] + "".join(f" {sign} {part}" for sign, part in zip(signs, parts[3::3], strict=True))


def _imaginary(text: str) -> str:
    r"""i as \sqrt{-1}, which SymPy can compute with, unless it is an index: x_i, \sum_{i=1}."""
    if re.search(r"_\s*\{?[^{}]*(?<![A-Za-z\\])i(?![A-Za-z])|\\(?:sum|prod|in\b)|\bi\s*=", text):
        return text
    return re.sub(r"(?<![A-Za-z\\])i(?![A-Za-z(])", r"\\sqrt{-1}", text)


RULES: tuple[Rule, ...] = (
    Rule("characters", "√½×１５−x²", r"√\frac{1}{2}\times 15-x^{2}", _characters),
    Rule(
        "root sign",
        "√(x+1) and 2√5",
        r"\sqrt(x+1) and 2\sqrt{5}",
        _replace(r"√\s*(\d+|[A-Za-z]|(?=[(\\{]))", lambda m: rf"\sqrt{{{m[1]}}}" if m[1] else r"\sqrt"),
    ),
    Rule("math marks", r"\($5$\)", "5", _replace(r"\\?\$|(?<!\\)\\[()\[\]]", "")),
    Rule(
        "doubled backslash",
        r"\\frac12",
        r"\frac12",
        _replace(
            r"^(?!.*(?:matrix|array|cases|aligned))(?:.*\\\\[A-Za-z].*)$",
            lambda m: re.sub(r"\\\\(?=[A-Za-z])", r"\\", m[0]),
        ),
    ),
    Rule("currency", "£5", "5", _replace("[€£¥￥₹](?=\\s*[\\d.])|(?<=\\d)\\s*[€£¥￥₹]", "")),
    Rule(
        "layout",
        r"\left( 1,2\right)",
        "( 1,2)",
        _replace(
            r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|large|Large|huge|small|normalsize)(?![A-Za-z])\.?|(?<!\\)\\!\s*",
            "",
        ),
    ),
    Rule("narrow space", r"1\,000", "1000", _replace(r"(?<=\d)(?:\\[,;: ]|~|\{,\}|\{ \})(?=\d{3}(?!\d))", "")),
    Rule("comma in braces", "1{,}000", "1,000", _replace(r"\{\s*,\s*\}", ",")),
    Rule("spaces", r"5\, 6~7", "5  6 7", _replace(r"(?<!\\)\\(?:[,;: >]|$|q?quad(?![A-Za-z]))|~", " ")),
    Rule(
        "color",
        r"\color{red}6",
        "6",
        _replace(r"\\color\s*(?:\{[^{}]*\}|\[[^\]]*\])|\\(?:textcolor|colorbox)\s*\{[^{}]*\}(?=\s*\{)", ""),
    ),
    Rule("fractions", r"\dfrac12", r"\frac12", _replace(r"\\[dtc]frac(?![A-Za-z])", r"\\frac")),
    Rule(
        "relations",
        r"x\leqslant 5",
        r"x\le  5",
        _replace(r"\\(?:leqslant|geqslant|leq|geq|neq|lt|gt)(?![A-Za-z])|<=|>=|!=", lambda m: _RELATIONS[m[0]] + " "),
    ),
    Rule(
        "spaced digits",
        "12 000",
        "12000",
        _replace(r"(?<![\d.,/}])(?<!\d )\d{1,3}(?: \d{3})+(?![\d/])(?! \d)", lambda m: m[0].replace(" ", "")),
    ),
    Rule("thousands", "1,234,567", "1234567", _thousands),
    Rule(
        "words for powers of ten",
        r"5\text{ million dollars}",
        r"5\times 10^{6}\text{ dollars}",
        _replace(
            rf"(?<=[\d}}])\s*(?P<open>\\text\{{\s*)?(?P<word>{_POWER_WORDS})\b(?P<close>\s*\}})?",
            _power_word,
            re.IGNORECASE,
        ),
    ),
    Rule(
        "text around a number",
        r"\text{5 apples}",
        "5 apples",
        _replace(r"^\s*\\text\s*\{\s*(-?\d[^{}]*)\}\s*$", r"\1"),
    ),
    Rule(
        "all real numbers",
        r"\text{all real numbers}",
        r"(-\infty, \infty)",
        _replace(
            r"^\s*(?:\\text\s*\{)?\s*(?:(?:the )?set of )?(?:all )?(?:the )?real numbers\s*\}?\.?\s*$",
            r"(-\\infty, \\infty)",
            re.IGNORECASE,
        ),
    ),
    Rule("dozen", "2 dozen", r"2\times 12", _replace(r"(?<=\d)\s*dozens?\b", r"\\times 12")),
    Rule(
        "Chinese powers of ten",
        "3万元",
        r"3\times 10^{4}元",
        _replace("(?<=\\d)\\s*([万亿])", lambda m: r"\times 10^{4}" if m[1] == "万" else r"\times 10^{8}"),
    ),
    Rule("Chinese and, or", "5或6", "5 or 6", _replace("[和或与及]", lambda m: " or " if m[0] == "或" else " and ")),
    Rule(
        "Chinese units",
        "5厘米",
        "5",
        _replace(
            "(?<=[\\d}])\\s*"
            "(?P<wrapped>\\\\(?:text|mathrm)\\s*\\{)?\\s*(?!\\s|[十百](?!分点))(?!千(?![克米瓦]))[\u4e00-\u9fff]+"
            "(?(wrapped)\\s*\\})(?=\\s*(?:$|[,;.]))",
            "",
        ),
    ),
    Rule(
        "percent",
        "20 percent",
        r"20\%",
        _replace(r"\s*\\text\s*\{\s*(?:percent|pct|%|\\%)\s*\}|(?<=\d)\s*(?:percent|pct)\b|(?<!\\)%", r"\\%"),
    ),
    Rule(
        "units as text",
        r"\frac{5\text{ m}}{2}",
        r"\frac{5}{2}",
        _replace(rf"{_BEHIND_NUMBER}{_UNIT}(?:\s*(?:/|\\cdot|\\times)?\s*{_UNIT})*(?!\s*[\dA-Za-z\\])", _text_unit),
    ),
    Rule(
        "units",
        "18 dollars per day",
        "18",
        _replace(rf"{_BEHIND_NUMBER}{_WORD}(?:(?:\s*/\s*|\s+){_WORD})*\s*$", _bare_unit),
    ),
    Rule(
        "degrees",
        r"90^{\circ}",
        "90",
        _replace(
            r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))\s*(?:[CF](?![A-Za-z])|\\(?:mathrm|text)\s*\{\s*[CF]\s*\})?|\\degree(?![A-Za-z])",
            "",
        ),
    ),
    Rule(
        "ordinals",
        r"7^{\text{th}}",
        "7",
        _replace(r"(?<=\d)\s*\^\s*\{\s*(?:\\(?:text|mathrm)\s*\{\s*)?(?:st|nd|rd|th)\s*\}(?:\s*\})?", ""),
    ),
    Rule("empty set", r"\varnothing", r"\emptyset", _replace(r"\\varnothing(?![A-Za-z])", r"\\emptyset")),
    Rule("fonts", r"\mathrm{e}^{2}+\mathbf{x}", "e ^{2}+x ", _fonts),
    Rule("joined inequalities", "x < 1 or x > 3", r"x < 1 \lor x > 3", _joined_inequalities),
    Rule(
        "and, or",
        r"1, 2, \text{ and } 3",
        "1, 2, 3",
        _replace(
            r"\s*,?\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*(?!\s*[<>=])", ", "
        ),
    ),
    Rule(
        "vectors",
        r"\langle 1,2\rangle",
        "( 1,2)",
        _replace(
            r"\\langle(?![A-Za-z])([^<>|]*?)\\rangle(?![A-Za-z])|^\s*<([^<>]*,[^<>]*)>\s*$",
            lambda m: f"({m[1] if m[1] is not None else m[2]})",
        ),
    ),
    Rule(
        "repeating decimal",
        r"0.1\overline{6}",
        r"\frac{15}{90}",
        _replace(
            r"(?<![\d.])(?P<whole>\d*)\.(?P<start>\d*)"
            r"(?P<period>\\(?:overline|bar|dot)\s*\{?\d+\}?(?:\d*\\dot\s*\{?\d\}?)?|\(\d+\)(?!\s*[\d(^]))",
            _repeating,
        ),
    ),
    Rule(
        "repeating dots",
        r"0.333\ldots",
        r"\frac{3}{9}",
        _replace(
            r"(?<![\d.])(?P<whole>\d*)\.(?P<start>\d*?)(?P<period>\d{1,6}?)(?P=period){2,}(?:\.\.\.|\\[lc]?dots(?![A-Za-z]))",
            _repeating,
        ),
    ),
    Rule(
        "ellipsis",
        r"1,2,\ldots,9",
        r"1,2,\text{etc},9",
        _replace(r"\\[lc]?dots(?:[cbmio](?![A-Za-z]))?(?![A-Za-z])|\.\.\.", r"\\text{etc}"),
    ),
    Rule("Python power", "x**-2", "x^-2", _replace(r"\*\*", "^")),
    Rule("Python root", "2*sqrt((x+1)/2)", r"2*\sqrt{(x+1)/2}", _braced(r"\\?\bsqrt", r"\sqrt{", "}")),
    Rule("Python absolute value", "abs(x)", "|x|", _braced(r"(?<!\\)\babs", "|", "|")),
    Rule("Python exponential", "exp(2*x)", "e^{2*x}", _braced(r"\\?\bexp", "e^{", "}")),
    Rule("power in parentheses", "x^((1+2)/3)", "x^{(1+2)/3}", _braced(r"\^", "^{", "}")),
    Rule(
        "functions",
        "sin(pi/2)",
        r"\sin(pi/2)",
        _replace(
            r"(?<![A-Za-z\\])(arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln)(?=\s*[\d(^_\\]|\s+[a-z]\b)",
            r"\\\1",
        ),
    ),
    Rule(
        "function of parentheses in braces",
        r"\sin^{2}{(3x)}/5",
        r"\sin^{2}(3x)/5",
        _replace(
            r"(\\(?:arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln)(?:\s*\^\s*\{[^{}]*\})?)"
            r"\s*\{\s*(\((?:[^(){}]|\{[^{}]*\}|\((?:[^()])*\))*\))\s*\}",
            r"\1\2",
        ),
    ),
    Rule(
        "pi, infinity",
        "2*pi",
        r"2*\pi ",
        _replace(r"(?<![A-Za-z\\])(?:(pi)|infinity|inf|oo)(?![A-Za-z])", lambda m: r"\pi " if m[1] else r"\infty "),
    ),
    Rule(
        "e-notation",
        "6.02e23",
        r"6.02 \times 10^{23}",
        _replace(r"(?<![A-Za-z\\\d.}])(\d+\.?\d*|\.\d+)[eE]([+-]?\d+)(?![A-Za-z\d.])", _scientific),
    ),
    Rule("times", "2*x", r"2\cdot x", _replace(r"\*", r"\\cdot ")),
    Rule("powers of several digits", "x^-10", "x^{-10}", _replace(r"\^\s*([-+]?(?:\d+\.\d+|\d+))", r"^{\1}")),
    Rule(
        "mixed number",
        "1 1/4",
        r"1\frac{1}{4}",
        _replace(r"(?<![\d.^_{/}])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d/.^])", _mixed),
    ),
    Rule(
        "set-builder",
        r"\{x \mid x > 2\}",
        "x > 2",
        _replace(
            rf"^\s*(?:[A-Za-z]\s*=\s*)?\\?\{{\s*(?P<variable>[A-Za-z]){_MEMBER}\s*(?:\\mid|\\vert|\\colon|\||:)(?P<condition>(?:[^{{}}|:]|\{{[^{{}}]*\}})*?)\\?\}}\s*$",
            _set_builder,
        ),
    ),
    Rule("imaginary unit", "3+2i", r"3+2\sqrt{-1}", _imaginary),
    Rule("bare words", "stop, even", r"\text{stop}, \text{even}", _bare_words),
    Rule("end of sentence", "= 5.", "5", _replace(r"^\s*(?:=|\\approx(?![A-Za-z]))\s*|[\s.,;:]+$", "")),
)


def normalize(text: str) -> str:
    """`text` in canonical notation; unchanged if it is longer than MAX_LENGTH."""
    if len(text) > MAX_LENGTH:
        return text.strip()
    for rule in RULES:
        text = rule.rewrite(text)
    return text.strip()


_LETTERS = re.compile(r"\\text\s*\{([^{}]*)\}")


def canonical(text: str) -> str:
    """A normalized answer for comparison as text: no layout, and words in lower case."""
    text = _LETTERS.sub(r" \1 ", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    words = re.search(r"[A-Za-z]{2}", re.sub(r"\\[A-Za-z]+", "", text))
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text).strip(".").replace('"', "")
    return text.casefold() if words else text


def exact(text: str) -> str:
    """Every decimal as an exact fraction."""
    return re.sub(_DECIMAL, _exact, text)


def decimals(text: str) -> list[str]:
    """The decimals of at least 6 places and 6 significant digits, which may be an exact number rounded."""
    found = re.findall(r"(?<![\d.])\d*\.\d{6,}(?![\d.])", text)
    return [one for one in found if len(one.replace(".", "").lstrip("0")) >= 6]


def is_readable(text: str) -> bool:
    """Whether Math-Verify may read a text; it would add numbers that are merely adjacent."""
    words = r"(?<![A-Za-z\\{])(?:[A-Za-z]{2,}\s+[A-Za-z]{3,}|[A-Za-z]{3,}\s+[A-Za-z]{2,})"
    if re.search(words, _LETTERS.sub("", text)):
        return False  # prose, not a product of its letters
    bare = re.sub(r"\\(?:frac|binom|log_|sqrt)\s*(?:\d+|\{[^{}]*\})?\s*\d*", "f", text)
    return 0 < len(text) <= MAX_LENGTH and not re.search(r"\d\s+[\d.]", bare) and not re.search(r"\d\.\d*\.\d", bare)


_BOUND = r"((?:[^<>=,A-Za-z\\]|\\(?:frac|sqrt|pi|infty|cdot)(?![A-Za-z]))+)"
_SIGN = r"(<|>|\\(?:le|ge|ne)(?![A-Za-z]))"
_CHAIN = re.compile(rf"^\s*{_BOUND}{_SIGN}\s*([A-Za-z])\s*{_SIGN}{_BOUND}$")
_ONE_SIDED = re.compile(rf"^\s*([A-Za-z])\s*{_SIGN}{_BOUND}$")
_TURNED = re.compile(rf"^\s*{_BOUND}{_SIGN}\s*([A-Za-z])\s*$")
_TURN = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}


def _half_line(sign: str, bound: str) -> str:
    if sign == r"\ne":
        return rf"(-\infty, {bound}) \cup ({bound}, \infty)"
    if sign in (">", r"\ge"):
        return rf"{'(' if sign == '>' else '['}{bound}, \infty)"
    return rf"(-\infty, {bound}{')' if sign == '<' else ']'}"


def _interval(inequality: str) -> tuple[str, str] | None:
    """A variable and its interval, for an inequality between it and numbers."""
    if match := _CHAIN.match(inequality):
        low, left, variable, right, high = match.groups()
        if left in (">", r"\ge") and right in (">", r"\ge"):
            low, left, right, high = high, _TURN[right], _TURN[left], low
        if left in ("<", r"\le") and right in ("<", r"\le"):
            return variable, f"{'(' if left == '<' else '['}{low}, {high}{')' if right == '<' else ']'}"
        return None
    if match := _ONE_SIDED.match(inequality):
        return match[1], _half_line(match[2], match[3])
    if match := _TURNED.match(inequality):
        return match[3], _half_line(_TURN[match[2]], match[1])
    return None


_BELOW = re.compile(r"\(-\\infty, ([^,]+)([)\]])$")
_ABOVE = re.compile(r"([(\[])([^,]+), \\infty\)$")


def _condition(text: str) -> tuple[str, str] | None:
    """A variable and its set, for inequalities between it and numbers, joined or alone."""
    for joints, sign in ((r"\\cup|\\lor|\\vee", r"\cup"), (r"\\cap|\\land|\\wedge", r"\cap")):
        if len(parts := re.split(joints, text)) > 1:
            found = [one for one in map(_condition, parts) if one]
            if len(found) < len(parts) or len({variable for variable, _ in found}) > 1:
                return None
            sets = [one for _, one in found]
            if sign == r"\cap":
                ends = sorted(sets, key=lambda one: _ABOVE.match(one) is None)
                if len(ends) == 2 and (low := _ABOVE.match(ends[0])) and (high := _BELOW.match(ends[1])):
                    return found[0][0], f"{low[1]}{low[2]}, {high[1]}{high[2]}"
                sets = [f"({one})" for one in sets]
            return found[0][0], f" {sign} ".join(sets)
    return _interval(text)


def _as_intervals(text: str) -> Iterator[str]:
    r"""x < -1 or x > 3 as x \in (-\infty, -1) \cup (3, \infty).

    A comma joins like 'and', except in x < a, x > b, which is rarely written for the part in between.
    """
    parts = text.split(",")
    if all(map(_interval, parts)):
        outward = len(parts) == 2 and all(map(re.search, (r"[A-Za-z]\s*(?:<|\\le)", r"[A-Za-z]\s*(?:>|\\ge)"), parts))
        text = (r" \lor " if outward else r" \land ").join(parts)
    if found := _condition(text):
        yield rf"{found[0]} \in {found[1]}"


def _decimal_comma(text: str) -> Iterator[str]:
    """1,5 as 1.5: only if it is the whole answer."""
    if re.fullmatch(r"-?\d+,\d+", text):
        yield text.replace(",", ".")


def _percent(text: str) -> Iterator[str]:
    r"""12.5\% as 0.125 and as 12.5: the percent sign is optional."""
    if re.fullmatch(r"[^%]*\\%\s*", text):
        number = text.replace(r"\%", "").strip()
        yield rf"\frac{{{number}}}{{100}}"
        yield number


READINGS: tuple[Callable[[str], Iterator[str]], ...] = (_as_intervals, _decimal_comma, _percent)


def readings(text: str) -> list[str]:
    """Possible readings of an answer in canonical notation, most likely first."""
    first = normalize(text)
    return [first, *(one for other in READINGS for one in other(first))]


def base(text: str) -> str | None:
    """The base of a number that names it, 8 for 52_8."""
    match = re.fullmatch(r"\s*\d[\dA-F]*\s*_\s*\{?\s*(\d+)\s*\}?\s*", text)
    return match[1] if match else None


_ASSIGNMENTS = re.compile(r"\s*([A-Za-z](?:_\{?\w+\}?)?)\s*=([^=,;<>]+)")


def values_in_order(text: str) -> tuple[list[str], str] | None:
    """The names and the values, as a tuple, of 'x = 2, y = 1'; None if it is not of this form."""
    parts = [_ASSIGNMENTS.fullmatch(part) for part in re.split("[,;]", text)]
    if len(parts) < 2 or not all(parts):
        return None
    names = [part[1] for part in parts if part]
    if len(set(names)) != len(names):
        return None
    return names, "(" + ", ".join(part[2].strip() for part in parts if part) + ")"


_LABEL = r"(?:\\(?:textbf|text|mathbf|mathrm|textrm|bf)\s*\{?\s*)?"
_CHOICE = re.compile(rf"^\s*{_LABEL}(?:\(\s*([A-J])\s*\)|([A-J])\s*[).:])[\s}}]*(?P<rest>.*)$", re.DOTALL)
_LETTER = re.compile(rf"^\s*\$?{_LABEL}\(?\s*([A-J])\s*\)?[\s}}.$]*$")


def choice(text: str) -> str | None:
    """The letter of a choice, alone or with its text: (E) 12, B. cats, C: x > 2."""
    if match := _LETTER.match(text):
        return match[1]
    match = _CHOICE.match(text)
    if match is None or re.match(r"\s*(?:,|and\b|or\b|=)", match["rest"]):
        return None
    return None if re.search(r"\([A-J]\)|\b[A-J]\s*[).:]\s", match["rest"]) else match[1] or match[2]
