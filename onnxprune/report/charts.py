"""The latency chart of the HTML page, drawn by matplotlib as SVG that takes its colours from the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

# Colours that stand for the variables of the page's style sheet, so that one drawing serves light and dark.
_BEFORE, _AFTER, _INK, _GRID = "#010101", "#020202", "#030303", "#040404"
_PAGE_COLOURS = {_BEFORE: "var(--before)", _AFTER: "var(--after)", _INK: "currentColor", _GRID: "var(--line)"}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "onnxprune",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 12.0,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GRID,
    "xtick.color": _INK,
    "ytick.color": _INK,
}
_TAIL = 99.0
_BINS = 40


def latency_svg(samples: Mapping[str, Sequence[float]]) -> str | None:
    """Histogram and box of the times under ``before`` and ``after``; None where there are fewer than two times.

    Args:
        samples: times in milliseconds by side; the slowest hundredth is cut off, so that one hiccup of the machine
            does not squeeze the rest into one bar.
    """
    times = {name: _finite(samples.get(name, ())) for name in ("before", "after")}
    times = {name: values for name, values in times.items() if values.size > 1}
    if not times:
        return None

    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hints about fonts: the page brings its own
        figure = Figure(figsize=(5.4, 3.1), layout="constrained")
        FigureCanvasSVG(figure)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 0.55 * len(times)])
        _draw_histograms(upper, times)
        _draw_boxes(lower, times)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _for_page(buffer.getvalue())


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[np.isfinite(array)]


def _draw_histograms(axes: Axes, times: Mapping[str, NDArray[np.float64]]) -> None:
    low = min(float(values.min()) for values in times.values())
    high = max(float(np.percentile(values, _TAIL)) for values in times.values())
    margin = 0.04 * (high - low) or 0.05 * high or 1.0
    edges = np.linspace(low - margin, high + margin, _BINS + 1)
    for name, values in times.items():
        counts, _ = np.histogram(values, edges)
        share = 100.0 * counts / values.size
        axes.stairs(share, edges, fill=True, color=_colour(name), alpha=0.35)
        axes.stairs(share, edges, color=_colour(name), linewidth=1.4)
        axes.axvline(float(np.median(values)), color=_colour(name), linestyle="--", linewidth=1.2)
    axes.set_xlim(edges[0], edges[-1])
    axes.yaxis.set_major_formatter("{x:g} %")
    axes.tick_params(axis="x", length=0)
    axes.locator_params(axis="y", nbins=4)
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_boxes(axes: Axes, times: Mapping[str, NDArray[np.float64]]) -> None:
    names = list(times)
    drawn = axes.boxplot(
        [times[name] for name in names],
        orientation="horizontal",
        whis=(5, 95),
        showfliers=False,
        widths=0.55,
        tick_labels=names,
        patch_artist=True,
        medianprops={"color": _INK, "linewidth": 1.6},
    )
    for position, name in enumerate(names):
        drawn["boxes"][position].set(facecolor=_colour(name), edgecolor=_colour(name))
        for kind in ("whiskers", "caps"):
            for line in drawn[kind][2 * position : 2 * position + 2]:
                line.set(color=_colour(name), linewidth=1.4)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("milliseconds for one run")
    axes.locator_params(axis="x", nbins=6)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _colour(name: str) -> str:
    return _BEFORE if name == "before" else _AFTER


def _for_page(document: str) -> str:
    """The ``<svg>`` element alone, scaled by the page, in the page's colours and font."""
    svg = document[document.index("<svg") :].strip()
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'^<svg[^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-(?:size|family): [^;\"]*;? ?|font: [^;\"]*;? ?", "", svg)
    svg = re.sub(r'xlink:href="', 'href="', svg)
    for sentinel, colour in _PAGE_COLOURS.items():
        svg = svg.replace(sentinel, colour)
    return svg
