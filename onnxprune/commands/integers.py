"""The int8 step of a recipe, and whether it was worth it."""

from dataclasses import dataclass

import onnx

from onnxprune.commands.inputs import Inputs
from onnxprune.commands.stopwatch import Stopwatch
from onnxprune.errors import PlanError
from onnxprune.model.io import Graph
from onnxprune.model.sizes import infer_shapes
from onnxprune.quantize.placement import Placement
from onnxprune.quantize.quantize import Settings, quantize_graph
from onnxprune.quantize.targets import target_of
from onnxprune.recover.recover import calibration
from onnxprune.recover.sequential import Calibration
from onnxprune.report.schema import Fusion, LeftNode, Quantization, Ratios
from onnxprune.runtime.arithmetic import saturates
from onnxprune.runtime.fusion import on_integers
from onnxprune.runtime.session import SessionOptions
from onnxprune.slim import Recipe

SEVEN_BITS = (
    "weights have 7 bits: this machine adds products of 8-bit numbers in 16 bits, where they overflow; "
    "--no-reduce-range keeps 8 for machines with VNNI"
)
RUNS_HERE = {"ort-cpu": "cpu"}
"""Targets whose files run here as they will run there, by the execution provider."""


@dataclass(frozen=True, slots=True)
class Integers:
    """A quantized graph, and where its integers are; ``graph`` is as it was where nothing was asked for."""

    graph: Graph
    placement: Placement | None = None
    target: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def fake(self) -> bool:
        """Whether the integers are for another runtime, so that here they are computed as floats and not timed."""
        return self.placement is not None and self.target not in RUNS_HERE

    def report(self, model: onnx.ModelProto, options: SessionOptions) -> Quantization:
        """Returns what the report says about them; which of them the runtime really computes in integers too."""
        if self.placement is None:
            return Quantization()
        names = {weight.result for weight in self.placement.weights}
        fused = None if self.fake else len(on_integers(model, names, options))
        left = tuple(LeftNode(one.node, one.reason) for one in self.placement.left)
        return Quantization(
            self.target, len(names), self.placement.eligible, left, Fusion(fused, None if fused is None else len(names))
        )


def integers_of(graph: Graph, recipe: Recipe, inputs: Inputs, runs: Calibration | None, watch: Stopwatch) -> Integers:
    """Returns a graph with the integers that a recipe asks for.

    Args:
        graph: What is left after all that goes has gone.
        recipe: A checked recipe.
        inputs: What the models are run on; random samples where no others are given.
        runs: Samples to estimate from, if any were given.
        watch: Whose progress callback hears of it.

    Raises:
        PlanError: no operator can be quantized.
    """
    if not recipe.int8:
        return Integers(graph)
    target = target_of(recipe.target)
    options = SessionOptions(recipe.ep, recipe.threads)
    if runs is None and inputs.verdict is not None:
        runs = calibration(inputs.verdict, graph, infer_shapes(graph, inputs.sizes), recipe.seed)
    if runs is None:
        raise PlanError("there are no samples to take ranges from: give --data")
    reduced = recipe.reduce_range
    notes = []
    if reduced is None:
        reduced = target.name == "ort-cpu" and saturates()
        notes += [SEVEN_BITS] if reduced else []
    settings = Settings(
        target, recipe.calibration, reduced, memory=int(recipe.max_memory), options=options, progress=watch.progress
    )
    result, placement, _ = quantize_graph(graph, runs, settings)
    if not placement.weights:
        reasons = dict.fromkeys(one.reason for one in placement.left)
        why = next(iter(reasons), "it has no operator with stored weights")
        raise PlanError(f"nothing can be quantized for {target.name} ({why}): choose another --target")
    return Integers(result, placement, target.name, tuple(notes))


def failings(ratios: Ratios, found: Quantization) -> tuple[str, ...]:
    """Returns why a quantized file is not better than the original, and what would help; nothing where it is."""
    if found.target is None:
        return ()
    reasons = []
    if ratios.bytes is not None and ratios.bytes >= 1:
        reasons.append(
            "the quantized file is not smaller, its weights are few beside what Q/DQ add: leave it float, or give --fp16"
        )
    latency = ratios.latency
    if latency.median is not None and (latency.median >= 1 or (latency.high is not None and latency.high >= 1)):
        reasons.append(
            "the quantized model is not measurably faster here: its operators are too small, or stay float "
            "(see 'left' in the report); leave it float, prune it first, or time it on the machine that it is for"
        )
    return tuple(reasons)
