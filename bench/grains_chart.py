"""The plot of ``grains.py``: accuracy over the ratio of latencies, one panel a network, one curve a grain."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = {"channels": "#1f6fb4", "layers": "#c8501e"}
MARKS = {"channels": "o", "layers": "s"}
INK, GRID = "#333333", "#dddddd"
COLUMNS = 3


@dataclass(frozen=True)
class Curve:
    """What a grain leaves of a network: pairs of the latency ratio and the accuracy in percent."""

    network: str
    grain: str
    whole: float
    points: tuple[tuple[float, float], ...]


def chart(curves: Sequence[Curve], threads: int, provider: str) -> str:
    """Returns the plot as SVG; it needs matplotlib, which is part of the extra ``report``."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    networks = list(dict.fromkeys(curve.network for curve in curves))
    columns = min(COLUMNS, len(networks))
    rows = -(-len(networks) // columns)
    style = {"svg.hashsalt": "onnxprune", "svg.fonttype": "none", "font.size": 10.0, "font.family": "sans-serif"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(3.6 * columns, 3.0 * rows + 0.4), layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, network in zip(panels, networks, strict=False):
            draw(panel, network, [curve for curve in curves if curve.network == network])
        for panel in panels[len(networks) :]:
            panel.set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        figure.supxlabel(f"latency, result / original ({provider}, batch 1, threads: {threads}); left is faster")
        figure.supylabel("top-1 accuracy in percent")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return buffer.getvalue()


def draw(panel, network: str, curves: Sequence[Curve]) -> None:
    """Draws the curves of a network, from the original on."""
    for curve in curves:
        ratios, accuracies = zip((1.0, curve.whole), *curve.points, strict=True)
        panel.plot(ratios, accuracies, color=COLOURS[curve.grain], marker=MARKS[curve.grain], label=curve.grain)
    panel.plot([1.0], [curves[0].whole], color=INK, marker="D", linestyle="none", label="original")
    panel.set_title(network, color=INK)
    panel.grid(color=GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
