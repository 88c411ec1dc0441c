"""Draw the charts of the report as inline SVG that takes its colours, light or dark, from the page."""

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Placeholders: each is replaced by a colour of the page's style sheet.
_INK, _MAIN, _OTHER, _GRID = "#010203", "#112233", "#445566", "#778899"
_COLOURS = {_INK: "currentColor", _MAIN: "var(--main)", _OTHER: "var(--other)", _GRID: "var(--line)"}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_MAX_NUMBERED = 12  # adapters of a heat map whose cells show their numbers


def bars(values: Sequence[tuple[str, int]], label: str, width: float = 11.0) -> str:
    """Draw horizontal bars, the first on top, each with its number. ``width``: inches."""
    names, counts = [_short(name) for name, _ in values][::-1], [count for _, count in values][::-1]
    with _chart((width, 0.55 + 0.27 * len(values)), label) as (axes, drawn):
        positions = np.arange(len(names))
        drawn_bars = axes.barh(positions, counts, color=_MAIN, height=0.72)
        axes.set_yticks(positions, names)
        axes.bar_label(drawn_bars, labels=[f"{count:,}" for count in counts], padding=3, fontsize=8)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12 if width > 6 else 0.25, y=0.02)
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.xaxis.set_major_locator(MaxNLocator(int(width / 1.2), integer=True))
    return drawn[0]


def histogram(values: np.ndarray, label: str, parts: Sequence[tuple[str, np.ndarray]] = (), log: bool = False) -> str:
    """Draw a histogram of values [n]; ``parts``: named masks [n] of the values, stacked."""
    edges = _edges(values, log)
    groups = [(name, values[mask]) for name, mask in parts] or [("", values)]
    with _chart((3.75, 2.3), label) as (axes, drawn):
        axes.hist([group for _, group in groups], edges, stacked=True, color=[_MAIN, _OTHER][: len(groups)])
        axes.set_xlabel(label)
        axes.set_ylabel("records")
        axes.grid(axis="x", visible=False)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(FuncFormatter(_thousands))
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
            axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, index: ""))
        if len(groups) > 1:
            axes.legend([name for name, _ in groups])
    return drawn[0]


def steps(times: np.ndarray, rates: np.ndarray, label: str, unit: str) -> str:
    """Draw a rate over time: ``rates`` [n] between ``times`` [n + 1], in seconds from the start."""
    scale, name = (60, "minutes") if times[-1] < 7200 else (3600, "hours")
    with _chart((5.4, 2.3), label) as (axes, drawn):
        axes.stairs(rates, times / scale, color=_MAIN, linewidth=1.3)
        axes.stairs(rates, times / scale, fill=True, color=_MAIN, alpha=0.15)
        axes.set_xlabel(f"{name} since the first start")
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(_thousands))
    return drawn[0]


def heat(names: Sequence[str], counts: np.ndarray, label: str) -> str:
    """Draw a symmetric matrix [n x n] of counts as a heat map."""
    size = len(names)
    side = 2.4 + (0.5 if size <= _MAX_NUMBERED else 0.3) * size
    colour = matplotlib.colors.to_rgb(_MAIN)
    shades = LinearSegmentedColormap.from_list("shades", [(*colour, 0.0), (*colour, 1.0)])
    shown = np.ma.masked_equal(counts, 0)
    with _chart((side, side - 0.6), label) as (axes, drawn):
        axes.pcolormesh(np.sqrt(shown), cmap=shades, vmin=0, vmax=max(1.0, float(np.sqrt(counts.max()))))
        positions = np.arange(size) + 0.5
        axes.set_xticks(
            positions, [_short(name, 28) for name in names], rotation=60, ha="right", rotation_mode="anchor"
        )
        axes.set_yticks(positions, [_short(name, 28) for name in names])
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.grid(visible=False)
        if size <= _MAX_NUMBERED:
            for row, column in zip(*np.nonzero(counts), strict=True):
                axes.text(
                    column + 0.5, row + 0.5, _thousands(counts[row, column]), ha="center", va="center", fontsize=7
                )
    return drawn[0]


@contextmanager
def _chart(size: tuple[float, float], label: str) -> Iterator[tuple[Any, list[str]]]:
    """Yield axes to draw on, and a list that holds the SVG after the block."""
    drawn: list[str] = []
    with plt.rc_context(_STYLE | {"svg.hashsalt": label}):
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        try:
            yield axes, drawn
            drawn.append(_svg(figure, label))
        finally:
            plt.close(figure)


def _svg(figure: Any, label: str) -> str:
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for placeholder, colour in _COLOURS.items():
        svg = svg.replace(placeholder, colour)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: inherit", svg)
    # The page holds several charts: each gets ids of its own.
    prefix = re.sub(r"\W+", "-", label)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def _edges(values: np.ndarray, log: bool) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if log:
        return np.unique(np.geomspace(max(1.0, low), max(2.0, high + 1), 30).round(1))
    if np.issubdtype(values.dtype, np.integer) and high - low < 40:
        return np.arange(low - 0.5, high + 1.0)
    return np.linspace(low, high if high > low else low + 1, 31)


def _short(name: str, max_length: int = 48) -> str:
    return name if len(name) <= max_length else f"{name[: max_length - 1]}…"


def _thousands(value: float, index: int = 0) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.3g} M"
    return f"{value:,.0f}" if value >= 10 or value == round(value) else f"{value:.2g}"
