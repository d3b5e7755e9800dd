"""The public step: a float graph and samples in, a graph of integers out."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from onnxprune import arguments
from onnxprune.arguments import optional
from onnxprune.data.preprocess import InputForm, Preprocess, parse_preprocess
from onnxprune.data.samples import DataSource, load_samples
from onnxprune.errors import PlanError, UsageError
from onnxprune.model.inline import without_functions
from onnxprune.model.io import Graph, load, to_proto
from onnxprune.model.linear import Holders, linear_nodes
from onnxprune.model.sizes import infer_shapes
from onnxprune.quantize.calibrate import Readings, choose_ranges, read
from onnxprune.quantize.emit import Scales, weight_scales, with_integers, with_pairs
from onnxprune.quantize.equalize import Grids, Samples, equalized
from onnxprune.quantize.functions import functions_of
from onnxprune.quantize.grids import REDUCED, scale_of
from onnxprune.quantize.merge import merged
from onnxprune.quantize.opset import raised
from onnxprune.quantize.placement import Placement, Wanted, place
from onnxprune.quantize.ranges import AUTO, method_of
from onnxprune.quantize.rounding import Rounding
from onnxprune.quantize.scalars import folded
from onnxprune.quantize.targets import Role, Target, target_of
from onnxprune.quantize.unfold import unfolded
from onnxprune.recover import sequential as recover
from onnxprune.recover.differences import Unchanged
from onnxprune.recover.least_squares import solve
from onnxprune.recover.recover import calibration as runs_of
from onnxprune.recover.sequential import Calibration, Repaired
from onnxprune.runtime.arithmetic import saturates
from onnxprune.runtime.session import SessionOptions, input_specs
from onnxprune.runtime.walk import Progress


@dataclass(frozen=True, slots=True)
class Settings:
    """How to quantize; ``ranges`` names a method of ``ranges.METHODS`` or ``auto``, ``memory`` is in bytes.

    ``costly`` operators stay float for what they would cost; those that do make up for the others, but not ``alone``.
    ``opset`` is the least that is wanted for other reasons than the target's.
    """

    target: Target
    ranges: str = AUTO
    reduce_range: bool = False
    round: bool = True
    memory: int = 2 << 30
    wanted: Wanted | None = None
    costly: frozenset[str] = frozenset()
    alone: bool = False
    options: SessionOptions | None = None
    progress: Progress | None = None
    opset: int = 0


def quantize(
    model: object,
    data: DataSource,
    target: str = "ort-cpu",
    *,
    calibration: str = AUTO,
    reduce_range: bool | None = None,
    preprocess: object = None,
    samples: int = 1024,
    seed: int = 0,
    max_memory: int | str = "2GB",
    external_root: str | os.PathLike[str] | None = None,
) -> Graph:
    """Returns a copy of a model that a target computes in 8-bit integers where it has kernels for them.

    Args:
        model: A path, a ``ModelProto`` or a graph.
        data: Calibration samples, in any form that ``slim`` takes; the last fifth judges how weights are rounded.
        target: ``ort-cpu``, ``tensorrt`` or ``generic``.
        calibration: How ranges are chosen: ``minmax``, ``percentile``, ``entropy``, ``mse`` or ``auto``.
        reduce_range: Weights of 7 bits; by default where this machine needs them, for ``ort-cpu``.
        preprocess: What is done to the samples, as for ``slim``.
        samples: Largest number of samples to use.
        seed: Seed of the rows of samples that are read.
        max_memory: Bytes that may be used for what the model computes; the rest goes to files.
        external_root: A folder into which links to weights files may lead.

    Raises:
        UsageError: the target takes no quantized activations, or an option is unknown.
        PlanError: no operator can be quantized.
        CalibrationError: the samples do not fit.
        UnsupportedOpError: the model cannot be raised to the opset that Q/DQ need.
    """
    whole = without_functions(load(model, external_root=external_root))
    proto = to_proto(whole)
    form = InputForm(optional(parse_preprocess, preprocess, "--preprocess") or Preprocess())
    seed = arguments.whole(seed, "--seed")
    found = load_samples(data, input_specs(proto), limit=samples, seed=seed, form=form)
    runs = runs_of(found, whole, infer_shapes(whole), seed)
    chosen = target_of(arguments.word(target, "--target"))
    reduced = needs_seven_bits(chosen) if reduce_range is None else arguments.flag(reduce_range, "--reduce-range")
    settings = Settings(chosen, method_of(calibration), reduced, memory=arguments.size(max_memory, "--max-memory"))
    result, _, _ = quantize_graph(whole, runs, settings)
    return result


def needs_seven_bits(target: Target) -> bool:
    """Returns whether weights of 8 bits would overflow where the target runs, which is this machine."""
    return target.here and saturates()


def quantize_graph(
    graph: Graph, calibration: Calibration, settings: Settings
) -> tuple[Graph, Placement, list[Repaired]]:
    """Returns a quantized copy of a graph, where its Q/DQ stand, and what the rounding of weights did."""
    target = settings.target
    if target.refused is not None:
        raise UsageError(target.refused)
    whole, placement = placed(prepared(graph, settings), target, settings.wanted, settings.costly)
    if not placement.weights:
        reasons = dict.fromkeys(one.reason for one in placement.left)
        why = next(iter(reasons), "it has no operator with stored weights")
        raise PlanError(f"nothing can be quantized for {target.name}, {why}: choose another --target, or --fp16")
    grid = REDUCED if settings.reduce_range else target.weights
    readings = _read(whole, placement, calibration, settings)
    grids = Grids(target.activations, grid, settings.round)
    samples = Samples(calibration.fitted, settings.options, calibration.seed)
    equal, gains = equalized(whole, placement, readings, grids, samples)
    if gains:
        whole, placement = equal, place(equal, infer_shapes(equal), target, settings.wanted, settings.costly)
        readings = _read(whole, placement, calibration, settings)
    functions = functions_of(whole, placement) if settings.ranges == AUTO else {}
    seen = {name: function.results for name, function in functions.items()}
    ranges = choose_ranges(readings, placement, target.activations, settings.ranges, seen)
    tensors = {name: scale_of(*found, target.activations) for name, found in ranges.items()}
    weights = weight_scales(placement, tensors, grid, target)
    rounded = with_pairs(whole, placement, tensors)
    found: list[Repaired] = []
    if settings.round:
        roundings = {one.result: Rounding.of(one, weights[one.result]) for one in placement.weights}
        start = on_grid(rounded, roundings)
        repairing = recover.Settings(
            solve, False, settings.memory, settings.options, settings.progress, decisions=roundings,
            only=frozenset(roundings) if settings.alone else None,
        )  # fmt: skip
        rounded, found = recover.repair(start, whole, Unchanged(), calibration, repairing)
    return with_integers(rounded, placement, Scales(tensors, weights), target), placement, found


def _read(graph: Graph, placement: Placement, calibration: Calibration, settings: Settings) -> Readings:
    """Returns what the samples say about what will be rounded."""
    return read(
        graph, placement, calibration.fitted, settings.memory, settings.options, settings.progress, calibration.seed
    )


def prepared(graph: Graph, settings: Settings) -> Graph:
    """Returns an equal graph of the opset that Q/DQ need, with as few operators as there can be."""
    return merged(raised(graph, max(settings.target.opset, settings.opset)))


def placed(
    graph: Graph, target: Target, wanted: Wanted | None, costly: Collection[str] = ()
) -> tuple[Graph, Placement]:
    """Returns an equal graph, functions spelled out where that brings them into integers, and where its Q/DQ stand."""
    if not any(rule.role is Role.CLIP for rule in target.rules.values()):
        return graph, place(graph, infer_shapes(graph), target, wanted, costly)
    graph = folded(graph)
    whole, spelled = unfolded(graph)
    placement = place(whole, infer_shapes(whole), target, wanted, costly)
    while spelled and (in_integers := spelled & {*placement.whole, *placement.scaled}) != spelled:
        whole, spelled = unfolded(graph, in_integers)
        placement = place(whole, infer_shapes(whole), target, wanted, costly)
    return whole, placement


def on_grid(graph: Graph, roundings: Mapping[str, Rounding]) -> Graph:
    """Returns a copy with the nearest numbers on the grid for weights."""
    result = graph.copy()
    for linear in linear_nodes(result, infer_shapes(result), Holders(result)):
        if linear.result in roundings:
            rounding = roundings[linear.result]
            linear.write(rounding.nearest(rounding.matrix))
    return result
