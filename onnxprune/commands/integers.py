"""The int8 step of a recipe, and whether it was worth it."""

from dataclasses import dataclass

import onnx

from onnxprune.commands.inputs import Inputs
from onnxprune.commands.masks import named_masks
from onnxprune.commands.stopwatch import Stopwatch
from onnxprune.errors import CalibrationError
from onnxprune.model.io import Graph
from onnxprune.model.sizes import infer_shapes
from onnxprune.plan.select import admitted
from onnxprune.quantize.placement import Placement, Wanted
from onnxprune.quantize.quantize import Settings, needs_seven_bits, quantize_graph
from onnxprune.quantize.targets import target_of
from onnxprune.recover.recover import calibration
from onnxprune.recover.sequential import Calibration
from onnxprune.report.schema import Fusion, LeftNode, Quantization, Ratios
from onnxprune.runtime.fusion import on_integers
from onnxprune.runtime.session import SessionOptions
from onnxprune.slim import Recipe

SEVEN_BITS = (
    "weights have 7 bits: this machine adds products of 8-bit numbers in 16 bits, where they overflow; "
    "--no-reduce-range keeps 8 for machines with VNNI"
)


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
        return self.placement is not None and not target_of(str(self.target)).here

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
        raise CalibrationError("there are no samples to take ranges from: give --data")
    reduced = recipe.reduce_range
    notes = []
    if reduced is None:
        reduced = needs_seven_bits(target)
        notes += [SEVEN_BITS] if reduced else []
    settings = Settings(
        target, recipe.calibration, reduced, memory=int(recipe.max_memory), wanted=_wanted(graph, recipe, inputs),
        options=options, progress=watch.progress,
    )  # fmt: skip
    result, placement, _ = quantize_graph(graph, runs, settings)
    return Integers(result, placement, target.name, tuple(notes))


def _wanted(graph: Graph, recipe: Recipe, inputs: Inputs) -> Wanted | None:
    """Returns which operators selectors admit; ``None`` for all."""
    if not recipe.include and not recipe.exclude:
        return None
    things = named_masks(graph, infer_shapes(graph, inputs.sizes))
    names = admitted(things, recipe.include, recipe.exclude)
    return lambda node, tensor: tensor in names


def failings(ratios: Ratios, found: Quantization) -> tuple[str, ...]:
    """Returns why a quantized file is not better than the original, and what would help; nothing where it is."""
    if found.target is None:
        return ()
    reasons = []
    if ratios.bytes is not None and ratios.bytes >= 1:
        reasons.append("the quantized file is not smaller, its weights are few beside what Q/DQ add: keep it float")
    latency = ratios.latency
    if latency.median is not None and (latency.median >= 1 or (latency.high is not None and latency.high >= 1)):
        reasons.append(
            "the quantized model is not measurably faster here: its operators are too small, or stay float "
            "(see 'left' in the report); leave it float, prune it first, or time it on the machine that it is for"
        )
    return tuple(reasons)
