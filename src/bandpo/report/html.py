"""A report as one self-contained HTML file, and the same tables in Markdown.

No scripts, fonts or requests: a content security policy forbids them all, so that untrusted completions cannot
execute.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from bandpo.lab.tables import Table
from bandpo.report import drawing
from bandpo.report.drawing import Picture

TEMPLATES = resources.files("bandpo") / "report"
LONGEST_TEXT = 3000  # characters of a completion that a page shows


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Code:
    """Commands or settings, collapsed if they are long."""

    text: str
    summary: str = ""


@dataclass(frozen=True)
class Sample:
    """A completion and facts about it."""

    prompt: str
    completion: str
    facts: str


@dataclass(frozen=True)
class Samples:
    """Completions, expandable."""

    summary: str
    samples: Sequence[Sample]


@dataclass(frozen=True)
class TokenRow:
    """One token: its text, its numbers as text, and for each rule whether it is clipped."""

    text: str
    numbers: Sequence[str]
    clipped: Sequence[bool]


@dataclass(frozen=True)
class Tokens:
    """One completion's tokens under every rule."""

    summary: str
    rules: Sequence[str]
    columns: Sequence[str]
    tokens: Sequence[TokenRow]


@dataclass(frozen=True)
class Drawing:
    """A picture in the page."""

    picture: Picture

    @property
    def panels(self) -> list[tuple[str, str]]:
        """(title, <svg> element) of each panel."""
        name = self.picture.name
        return [(panel.title, drawing.svg(panel, f"{name}{i}")) for i, panel in enumerate(self.picture.panels)]

    @property
    def legend(self) -> list[tuple[str, str]]:
        """(<svg> sample, label) of each series."""
        found = self.picture.legend
        return [] if len(found) < 2 else [(drawing.swatch(*how), label) for label, how in found.items()]


Block = Table | Text | Code | Samples | Tokens | Drawing


@dataclass(frozen=True)
class Section:
    """A heading and its blocks."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: str
    description: str
    sections: Sequence[Section]

    @property
    def pictures(self) -> list[Picture]:
        return [block.picture for section in self.sections for block in section.blocks if isinstance(block, Drawing)]

    def html(self) -> str:
        """The page, complete."""
        from jinja2 import Environment
        from markupsafe import Markup

        environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        environment.filters["visible"] = visible
        environment.filters["token"] = visible_token
        environment.filters["kind"] = lambda block: type(block).__name__
        environment.filters["drawn"] = Markup  # only for the output of drawing.py
        template = environment.from_string((TEMPLATES / "report.html.jinja").read_text(encoding="utf-8"))
        return template.render(page=self, style=Markup(style()))

    def markdown(self) -> str:
        """Tables, pictures by file name, commands; without what is collapsed in the page."""
        lines = [f"# {self.title}", "", *([self.description, ""] if self.description else [])]
        for section in self.sections:
            blocks = [found for block in section.blocks if (found := _in_markdown(block))]
            if blocks:
                lines += [f"## {section.title}", ""]
                for block in blocks:
                    lines += [*block, ""]
        return "\n".join(lines)


def _in_markdown(block: Block) -> list[str]:
    match block:
        case Table():
            above = [f"### {block.title}", ""] if block.title else []
            return [*above, *block.markdown(), *(["", block.notes] if block.notes else [])]
        case Text():
            return [block.text]
        case Code(summary=""):
            return ["```", block.text, "```"]
        case Drawing():
            return [f"![{block.picture.title}]({block.picture.name}.png)"]
    return []


def style() -> str:
    """The style sheet of all pages; it uses the colors of the pictures, light and dark."""
    from jinja2 import Environment

    environment = Environment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((TEMPLATES / "style.css.jinja").read_text(encoding="utf-8"))
    light, dark = (_variables(which) for which in (0, 1))
    return template.render(light=light, dark=dark)


def _variables(which: int) -> dict[str, str]:
    return {
        "grid": drawing.GRID[which],
        "muted": drawing.MUTED[which],
        "ink": drawing.INK[which],
        **{f"s{i}": shades[which] for i, shades in enumerate(drawing.SERIES)},
    }


def visible(text: str, longest: int = LONGEST_TEXT) -> str:
    """Text without invisible characters: control, direction and unpaired characters show as their code."""
    shown = text if len(text) <= longest else f"{text[:longest]}… ({len(text) - longest:,} more characters)"
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co") else f"\\u{ord(c):04x}"
        for c in shown
    )


def visible_token(text: str) -> str:
    """A token's text with visible white space: ␣ for a space, ⏎ a newline, ⇥ a tab, others as their code."""
    marks = {"\n": "⏎", "\t": "⇥", " ": "␣"}
    shown = "".join(marks.get(c) or (f"\\u{ord(c):04x}" if c.isspace() else c) for c in text)
    return visible(shown) or "(empty)"
