"""Mixed precision: the operators that cost most stay float, until what is lost is no more than may be.

Each is quantized alone, with the rounding that it would get, and ranked by what that does to the outputs for each of
its multiply-accumulates, which are what it gains; errors of weights alone say next to nothing. Of that order, as few
stay float as the limit needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.errors import PlanError
from onnxprune.model.cost import cost
from onnxprune.model.io import Graph
from onnxprune.quantize.placement import Placement
from onnxprune.quantize.quantize import Settings, prepared, quantize_graph
from onnxprune.recover.divergence import Reference
from onnxprune.recover.sequential import Calibration, Repaired
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.runtime.walk import Memory

RUNS = 2
"""Runs of samples on which operators are quantized alone: their order needs no more."""

Judge = Callable[[Graph], float]
"""Returns what a quantized graph loses."""

Result = tuple[Graph, Placement, list[Repaired]]


def within(graph: Graph, calibration: Calibration, settings: Settings, judge: Judge, most: float) -> Result:
    """Returns a quantized copy that loses at most ``most``, where its integers are, and what rounding did.

    Args:
        graph: The float graph.
        calibration: Samples to estimate from, and held-out ones.
        settings: How to quantize.
        judge: Says what a quantized graph loses.
        most: What it may lose.

    Raises:
        PlanError: nothing can be quantized within that.
    """
    graph = prepared(graph, settings)
    found = quantize_graph(graph, calibration, settings)
    if judge(found[0]) <= most:
        return found
    order = ranked(graph, calibration, settings, [weight.operator for weight in found[1].weights])
    best: Result | None = None
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        trial = quantize_graph(graph, calibration, replace(settings, costly=frozenset(order[:middle])))
        if judge(trial[0]) <= most:
            best, high = trial, middle
        else:
            low = middle
    if best is None:
        raise PlanError(f"no operator can be quantized within --max-drop {most:g}: allow more, or give more samples")
    return best


def ranked(graph: Graph, calibration: Calibration, settings: Settings, operators: Sequence[str]) -> list[str]:
    """Returns operators, those first that take the outputs furthest from the original's for what they compute."""
    few = replace(calibration, fitted=calibration.fitted[:RUNS], held_out=calibration.held_out[:1])
    options = settings.options or SessionOptions()
    reference = Reference(open_session(graph, options), few.fitted, Memory(settings.memory))
    alone = replace(settings, alone=True, progress=None)
    losses = []
    for number, name in enumerate(operators, 1):
        others = frozenset(operators) - {name}
        trial = quantize_graph(graph, few, replace(alone, costly=alone.costly | others))[0]
        losses.append(reference.divergence(open_session(trial, replace(options, integers=settings.target.here))))
        if settings.progress is not None:
            settings.progress("sensitivity", number / len(operators))
    macs = {node.name: node.macs for node in cost(graph).per_node}
    worth = np.asarray(losses) / [max(macs.get(name, 0), 1) for name in operators]
    return [operators[place] for place in np.argsort(-worth, kind="stable")]
