"""Drawing: a picture is described once as panels, and drawn as a PNG file and as SVG in a page (needs `report`).

In a page the colors are CSS variables, so that a picture follows light, dark and print; each series also has its own
dash pattern.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bandpo.files import write_atomic

# After Okabe-Ito, each at least 3:1 against the page; (on white, on dark).
SERIES = (
    ("#0072b2", "#56b4e9"),
    ("#c85200", "#ff9a57"),
    ("#007a5a", "#2fc9a0"),
    ("#aa4499", "#e59bd0"),
    ("#806600", "#e6c300"),
    ("#444444", "#c4c4c4"),
    ("#a3123f", "#ff8fa3"),
    ("#6a3d9a", "#b9a3ff"),
)
# Dash lengths in points, drawn and empty. Their count shares no factor with that of SERIES, so that a pair
# repeats only after all combinations.
DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (6, 2),
    (2, 1.6),
    (7, 2, 1.5, 2),
    (4, 1.5, 1.5, 1.5, 1.5, 1.5),
    (10, 3),
    (1, 2.2),
    (3.5, 1.2),
    (9, 1.5, 3, 1.5),
)
INK, GRID, MUTED = ("#1a1a1a", "#ececec"), ("#d9d9d9", "#3d3d3d"), ("#6b6b6b", "#9d9d9d")
PANEL = (4.6, 3.3)  # inches
MOST_POINTS = 60  # of a curve; longer ones are averaged


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        label: In the legend; curves with the same label are one series.
        x: Shape (N,).
        y: Shape (N,); values that are not finite leave a gap.
        low: Lower edge of a band around it, shape (N,), or None.
        high: Upper edge, or None.
        style: Index of the series, which determines color and dashes; None draws a gray reference.
        bars: Draw low and high as error bars instead.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    style: int | None = 0
    bars: bool = False


@dataclass(frozen=True)
class Area:
    """A filled region between two curves over x."""

    label: str
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    style: int | None = 0


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `ticks` names the positions 0, 1, ... of x if those are categories."""

    title: str
    x_label: str
    lines: Sequence[Line] = ()
    areas: Sequence[Area] = ()
    points: Sequence[tuple[float, float]] = ()
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False
    percent: bool = False
    x_limits: tuple[float, float] | None = None
    y_limits: tuple[float | None, float | None] = (None, None)
    ticks: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """Panels that share a legend.

    Attributes:
        name: Name of the PNG file, without extension.
        title: Heading.
        caption: What is drawn and how.
        alt: What it shows, for readers who cannot see it.
    """

    name: str
    title: str
    panels: Sequence[Panel]
    caption: str = ""
    alt: str = ""

    @property
    def legend(self) -> dict[str, tuple[int | None, bool]]:
        """Label -> (style, whether it is an area), in the order of first appearance."""
        entries: dict[str, tuple[int | None, bool]] = {}
        for panel in self.panels:
            for line in panel.lines:
                entries.setdefault(line.label, (line.style, False))
            for area in panel.areas:
                entries.setdefault(area.label, (area.style, True))
        entries.pop("", None)
        return entries


@dataclass(frozen=True)
class Palette:
    ink: str
    grid: str
    muted: str
    series: tuple[str, ...]


PAPER = Palette(INK[0], GRID[0], MUTED[0], tuple(light for light, _ in SERIES))
# Placeholders that `svg` turns into CSS variables; colors that matplotlib itself does not use.
_STAND_INS = {
    "#010203": "currentColor",
    "#010204": "var(--grid)",
    "#010205": "var(--muted)",
    **{f"#0103{i:02x}": f"var(--s{i})" for i in range(len(SERIES))},
}
_PAGE = Palette("#010203", "#010204", "#010205", tuple(f"#0103{i:02x}" for i in range(len(SERIES))))


def color(style: int | None, palette: Palette = PAPER) -> str:
    return palette.muted if style is None else palette.series[style % len(palette.series)]


def dashes(style: int | None) -> tuple[float, ...]:
    return (1, 2) if style is None else DASHES[style % len(DASHES)]


def _pyplot(palette: Palette) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {
            "figure.dpi": 150,
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "text.parse_math": False,  # a label is text, even if it contains $
            "svg.fonttype": "none",
            "svg.hashsalt": "bandpo",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": palette.grid,
            "grid.linewidth": 0.6,
            "legend.frameon": False,
            "text.color": palette.ink,
            "axes.labelcolor": palette.ink,
            "axes.titlecolor": palette.ink,
            "axes.edgecolor": palette.muted,
            "xtick.color": palette.muted,
            "ytick.color": palette.muted,
            "xtick.labelcolor": palette.ink,
            "ytick.labelcolor": palette.ink,
        }
    )
    return pyplot


def draw(axis: Any, panel: Panel, palette: Palette) -> None:
    """Draw a panel, without a legend."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

    for area in panel.areas:
        shade = color(area.style, palette)
        axis.fill_between(area.x, area.low, area.high, color=shade, alpha=0.22, linewidth=0)
    if panel.points:
        axis.plot(
            *zip(*panel.points, strict=True), linestyle="", marker=".", markersize=2.2, color=palette.ink, alpha=0.55
        )
    reach = _reach(panel)
    for line in panel.lines:
        shade, y = color(line.style, palette), np.asarray(line.y, np.float64)
        thin = 0.18 if len(panel.lines) < 5 else 0.08  # bands of many lines would hide each other
        if line.low is not None and line.high is not None:
            if line.bars:
                low, high = np.asarray(line.low, np.float64), np.asarray(line.high, np.float64)
                axis.errorbar(line.x, y, [y - low, high - y], fmt="none", ecolor=shade, elinewidth=1.4, capsize=4)
            else:
                low, high = (np.clip(np.asarray(side, np.float64), *reach) for side in (line.low, line.high))
                axis.fill_between(line.x, low, high, color=shade, alpha=thin, linewidth=0)
        (drawn,) = axis.plot(
            line.x,
            np.where(np.isfinite(y), y, np.nan),
            color=shade,
            linewidth=1.0 if line.style is None else 1.7,
            marker="o" if line.style is not None and (panel.ticks or len(line.x) < 3) else None,
            markersize=3.5,
        )
        if pattern := dashes(line.style):
            drawn.set_dashes(pattern)
    for log, scale, ticks in ((panel.log_x, axis.set_xscale, axis.xaxis), (panel.log_y, axis.set_yscale, axis.yaxis)):
        if log:
            scale("log")
            ticks.set_major_locator(LogLocator(numticks=7))
            ticks.set_minor_locator(NullLocator())  # each tick costs a millisecond
            ticks.set_major_formatter(FuncFormatter(_plain))
    if panel.percent:
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol="%"))
    if panel.ticks:
        axis.xaxis.set_major_locator(FixedLocator(range(len(panel.ticks))))
        axis.set_xticklabels(panel.ticks, rotation=35, ha="right", rotation_mode="anchor")
    elif not panel.log_x:
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if panel.ticks:
        axis.set_xlim(-0.5, len(panel.ticks) - 0.5)
    if panel.x_limits is not None:
        axis.set_xlim(*panel.x_limits)
    bottom, top = panel.y_limits
    axis.set_ylim(bottom, top, auto=None)
    axis.set_title(panel.title, loc="left", fontsize=10.5)
    axis.set_xlabel(panel.x_label, fontsize=9.5)
    axis.set_ylabel(panel.y_label, fontsize=9.5)
    axis.tick_params(labelsize=9)


def _reach(panel: Panel) -> tuple[float, float]:
    """As far as shaded intervals are drawn: the range of the lines and as much again on either side.

    Intervals of two or three seeds can be ten times wider than what the panel is about.
    """
    values = np.concatenate([np.asarray(line.y, np.float64) for line in panel.lines] or [np.empty(0)])
    values = values[np.isfinite(values) & ((values > 0) | (not panel.log_y))]
    if values.size == 0 or values.min() == values.max():
        return -np.inf, np.inf
    low, high = np.log((values.min(), values.max())) if panel.log_y else (values.min(), values.max())
    ends = low - (high - low), high + (high - low)
    return tuple(np.exp(ends)) if panel.log_y else ends


def _plain(value: float, _: Any = None) -> str:
    return f"{value:g}" if 1e-4 <= abs(value) < 1e5 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _place(panel: Panel) -> tuple[float, float, float, float]:
    """(left, bottom, width, height) of the axes in shares of the panel.

    Margins are fixed, so that panels align; long category names need more room.
    """
    left = 0.165 if panel.y_label else 0.13
    bottom = 0.15 + (0.0115 * max(map(len, panel.ticks)) if panel.ticks else 0)
    return left, bottom, 0.98 - left, 0.9 - bottom


def svg(panel: Panel, name: str) -> str:
    """The panel as an <svg> element, text as text, colors as CSS variables; `name` makes its ids unique."""
    pyplot = _pyplot(_PAGE)
    figure = pyplot.figure(figsize=PANEL)
    draw(figure.add_axes(_place(panel)), panel, _PAGE)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>", r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
    wanted = {a or b for a, b in re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]*)\"", text)}
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in wanted else "", text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    for stand_in, variable in _STAND_INS.items():
        text = text.replace(stand_in, variable)
    return re.sub(r"\n\s*", "\n", text)


def swatch(style: int | None, area: bool = False) -> str:
    """A legend's sample of a series, as an <svg> element."""
    shade = "var(--muted)" if style is None else f"var(--s{style % len(SERIES)})"
    if area:
        inside = f'<rect x="1" y="1" width="32" height="10" fill="{shade}" fill-opacity=".3"/>'
    else:
        pattern = " ".join(f"{1.7 * length:g}" for length in dashes(style))
        inside = f'<path d="M1 6H33" stroke="{shade}" stroke-width="2.4" stroke-dasharray="{pattern}"/>'
    return f'<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true">{inside}</svg>'


def save(picture: Picture, path: Path, columns: int = 2) -> None:
    """Draw all panels and the legend into one PNG or SVG file."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    pyplot = _pyplot(PAPER)
    columns = min(columns, len(picture.panels))
    rows = -(-len(picture.panels) // columns)
    legend = picture.legend if len(picture.legend) > 1 else {}
    entry = 0.7 + 0.075 * max(map(len, legend), default=0)  # inches that the longest one takes
    across = max(1, min(len(legend), int(PANEL[0] * columns / entry)))
    below = 0.22 * -(-len(legend) // across) + 0.1 if legend else 0.0
    size = PANEL[0] * columns, PANEL[1] * rows + below
    figure = pyplot.figure(figsize=size)
    for i, panel in enumerate(picture.panels):
        row, column = divmod(i, columns)
        left, bottom, width, height = _place(panel)
        corner = PANEL[0] * (column + left) / size[0], (PANEL[1] * (rows - 1 - row + bottom) + below) / size[1]
        axis = figure.add_axes((*corner, PANEL[0] * width / size[0], PANEL[1] * height / size[1]))
        draw(axis, panel, PAPER)
    handles: list[Any] = []
    for label, (style, area) in legend.items():
        if area:
            handles.append(Patch(color=color(style), alpha=0.3, label=label))
        else:
            handles.append(Line2D([], [], color=color(style), linewidth=1.7, label=label))
            if pattern := dashes(style):
                handles[-1].set_dashes(pattern)
    if handles:
        figure.legend(handles=handles, loc="lower center", ncols=across, fontsize=9, handlelength=3.6)
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format=path.suffix.removeprefix("."), metadata={"Date": None} if path.suffix == ".svg" else None
    )
    pyplot.close(figure)
    write_atomic(path, buffer.getvalue())


def averaged(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: means over equally many neighbors."""
    width = -(-len(points) // most) if points else 1
    return [
        (float(np.mean([x for x, _ in part])), float(np.mean([y for _, y in part])))
        for part in (points[i : i + width] for i in range(0, len(points), width))
    ]
