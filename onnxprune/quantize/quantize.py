"""The public step: a float graph and samples in, a graph of integers out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.model.io import Graph
from onnxprune.model.linear import Holders, linear_nodes
from onnxprune.model.sizes import infer_shapes
from onnxprune.quantize.calibrate import choose_ranges, read
from onnxprune.quantize.emit import Scales, least_steps, scale_for, weight_scale, with_integers, with_pairs
from onnxprune.quantize.grids import REDUCED, scale_of
from onnxprune.quantize.merge import merged
from onnxprune.quantize.opset import raised
from onnxprune.quantize.placement import Placement, Wanted, place
from onnxprune.quantize.ranges import AUTO
from onnxprune.quantize.rounding import Rounding
from onnxprune.quantize.targets import Target
from onnxprune.recover import sequential as recover
from onnxprune.recover.least_squares import solve
from onnxprune.recover.sequential import Calibration, Repaired
from onnxprune.runtime.session import SessionOptions
from onnxprune.runtime.walk import Progress


@dataclass(frozen=True, slots=True)
class Settings:
    """How to quantize; ``ranges`` names a method of ``ranges.METHODS`` or ``auto``, ``memory`` is in bytes."""

    target: Target
    ranges: str = AUTO
    reduce_range: bool = False
    round: bool = True
    memory: int = 2 << 30
    wanted: Wanted | None = None
    options: SessionOptions | None = None
    progress: Progress | None = None


class _Same:
    """Nothing is gone: every tensor of the original is there as a whole."""

    def take(self, name: str, values: np.ndarray) -> np.ndarray:
        """Returns all of it."""
        return values

    def fewer(self, name: str) -> Mapping[int, int]:
        """Returns that no dimension shrinks."""
        return {}


def quantize_graph(
    graph: Graph, calibration: Calibration, settings: Settings
) -> tuple[Graph, Placement, list[Repaired]]:
    """Returns a quantized copy of a graph, where its Q/DQ stand, and what the rounding of weights did."""
    target = settings.target
    if target.refused is not None:
        raise UsageError(target.refused)
    whole = merged(raised(graph, target.opset))
    shapes = infer_shapes(whole)
    placement = place(whole, shapes, target, settings.wanted)
    readings = read(
        whole, placement, calibration.fitted, settings.memory, settings.options, settings.progress, calibration.seed
    )
    ranges = choose_ranges(readings, placement, target.activations, settings.ranges)
    tensors = {name: scale_of(*found, target.activations) for name, found in ranges.items()}
    grid = REDUCED if settings.reduce_range else target.weights
    weights = {
        weight.result: weight_scale(
            weight, grid, least_steps(weight, scale_for(weight.data, placement, tensors), target)
        )
        for weight in placement.weights
    }
    rounded = with_pairs(whole, placement, tensors)
    found: list[Repaired] = []
    if settings.round:
        roundings = {one.result: Rounding.of(one, weights[one.result]) for one in placement.weights}
        start = on_grid(rounded, roundings)
        repairing = recover.Settings(
            solve, False, settings.memory, settings.options, settings.progress, decisions=roundings
        )
        rounded, found = recover.repair(start, whole, _Same(), calibration, repairing)
    return with_integers(rounded, placement, Scales(tensors, weights), target), placement, found


def on_grid(graph: Graph, roundings: Mapping[str, Rounding]) -> Graph:
    """Returns a copy with the nearest numbers on the grid for weights."""
    result = graph.copy()
    for linear in linear_nodes(result, infer_shapes(result), Holders(result)):
        if linear.result in roundings:
            rounding = roundings[linear.result]
            linear.write(rounding.nearest(rounding.matrix))
    return result
