"""The last step of a recipe, other numbers than floats of 32 bits, and whether it was worth it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import onnx
import onnx_graphsurgeon as gs

from onnxprune.commands.inputs import Inputs
from onnxprune.commands.masks import named_masks
from onnxprune.commands.stopwatch import Stopwatch
from onnxprune.commands.task import Task
from onnxprune.errors import CalibrationError, PlanError
from onnxprune.model.io import Graph
from onnxprune.model.shapes import node_name
from onnxprune.model.sizes import infer_shapes
from onnxprune.plan.select import admitted
from onnxprune.quantize.block_rounding import OnSamples
from onnxprune.quantize.float16 import to_float16
from onnxprune.quantize.mixed import within
from onnxprune.quantize.peaks import peaks_of
from onnxprune.quantize.quantize import Settings, needs_seven_bits, quantize_graph
from onnxprune.quantize.targets import target_of
from onnxprune.quantize.weight_only import WeightOnly, weight_only
from onnxprune.recover.recover import calibration
from onnxprune.report.schema import Fusion, LeftNode, Quantization, Ratios
from onnxprune.runtime.fusion import on_integers
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.slim import Recipe
from onnxprune.validate.compare import compare

SEVEN_BITS = (
    "weights have 7 bits: this machine adds products of 8-bit numbers in 16 bits, where they overflow; "
    "--no-reduce-range keeps 8 for machines with VNNI"
)
HALF_SCALES_UNKNOWN = (
    "ONNX Runtime's CPU provider has no integer kernels with scales of float16: leave out --fp16, or choose "
    "--target tensorrt"
)
CONVOLUTION = "ONNX Runtime has no convolution that reads integers as weights alone: give --int8 for those"
BITS = {"int4": 4, "int8": 8}
"""Widths of weights that alone are integers, by the word of the command line."""

Metrics = Mapping[str, float | None]

HALF_SCALES = 19
"""The opset from which on Q/DQ have scales of float16."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """A graph with other numbers; ``forms`` is empty where nothing was asked for and the graph is as it was.

    ``results`` are those of the operators whose weights are integers, ``fake`` says that they are for another runtime:
    here they are computed as floats, and not timed.
    """

    graph: Graph
    target: str
    forms: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    eligible: int = 0
    left: tuple[LeftNode, ...] = ()
    notes: tuple[str, ...] = ()
    fake: bool = False

    def report(self, model: onnx.ModelProto, options: SessionOptions) -> Quantization:
        """Returns what the report says; which operators the runtime really computes from integers too."""
        if not self.forms:
            return Quantization()
        fused = None if self.fake or not self.results else len(on_integers(model, self.results, options))
        fusion = Fusion(fused, None if fused is None else len(self.results))
        return Quantization(
            self.target, len(self.results), self.eligible, self.left, fusion, form=" and ".join(self.forms)
        )


def quantized_of(graph: Graph, task: Task, watch: Stopwatch) -> Quantized:
    """Returns a graph with the numbers that a recipe asks for.

    Args:
        graph: What is left after all that goes has gone.
        task: What is asked for, and what to estimate from.
        watch: Whose progress callback hears of it.

    Raises:
        PlanError: no operator can be quantized.
        CalibrationError: there are no samples to take ranges from.
        UnsupportedOpError: the graph cannot be raised to the opset that is needed.
    """
    recipe = task.recipe
    found = Quantized(graph, recipe.target)
    if recipe.int8:
        found = _with_int8(found, task, watch)
    if recipe.weights is not None:
        found = _with_weights(found, task, watch)
    if recipe.fp16:
        half, left = to_float16(found.graph, peaks=_peaks(found.graph, task, watch))
        rows = tuple(LeftNode(one.node, one.reason) for one in left)
        makers = {tensor.name: node for node in half.nodes for tensor in node.outputs}
        results = tuple(_made_as(name, makers) for name in found.results)
        found = replace(found, graph=half, forms=(*found.forms, "fp16"), results=results, left=(*found.left, *rows))
        if recipe.int8 and recipe.target == "ort-cpu":
            found = replace(found, notes=(*found.notes, HALF_SCALES_UNKNOWN))
    here = target_of(recipe.target).here or (recipe.target == "ort-cuda" and recipe.ep == "cuda")
    return replace(found, fake=bool(found.forms) and not here)


def _with_int8(found: Quantized, task: Task, watch: Stopwatch) -> Quantized:
    recipe, inputs, runs = task.recipe, task.inputs, task.runs
    target = target_of(recipe.target)
    if runs is None and inputs.verdict is not None:
        runs = calibration(inputs.verdict, found.graph, infer_shapes(found.graph, inputs.sizes), recipe.seed)
    if runs is None:
        raise CalibrationError("there are no samples to take ranges from: give --data")
    reduced, notes = recipe.reduce_range, found.notes
    if reduced is None:
        reduced = needs_seven_bits(target)
        notes = (*notes, SEVEN_BITS) if reduced else notes
    wanted = _wanted(found.graph, recipe, inputs)
    settings = Settings(
        target, recipe.calibration, reduced, memory=int(recipe.max_memory),
        wanted=None if wanted is None else (lambda node, tensor: wanted(tensor)),
        options=SessionOptions(recipe.ep, recipe.threads), progress=watch.progress,
        opset=HALF_SCALES if recipe.fp16 else 0,
    )  # fmt: skip
    if recipe.max_drop is None:
        graph, placement, _ = quantize_graph(found.graph, runs, settings)
    else:
        graph, placement, _ = within(found.graph, runs, settings, _judge(found.graph, task), recipe.max_drop)
    makers = {tensor.name: node for node in graph.nodes for tensor in node.outputs}
    return replace(
        found,
        graph=graph,
        forms=(*found.forms, "int8"),
        results=tuple(_made_as(weight.result, makers) for weight in placement.weights),
        eligible=placement.eligible,
        left=tuple(LeftNode(one.node, one.reason) for one in placement.left),
        notes=notes,
    )


def _made_as(result: str, makers: Mapping[str, gs.Node]) -> str:
    """Returns the name under which an operator writes its result: behind Q and DQ or Cast, others get the old one."""
    node = makers[result]
    if node.op == "Cast":
        return str(node.inputs[0].name)
    return str(makers[node.inputs[0].name].inputs[0].name) if node.op == "DequantizeLinear" else result


def _judge(original: Graph, task: Task) -> Callable[[Graph], float]:
    """Returns what says how much of the metric a quantized graph loses on held-out samples."""
    recipe, inputs = task.recipe, task.inputs
    samples = inputs.verdict if inputs.given is None else inputs.given.split()[1]
    if samples is None:
        raise CalibrationError("there are no samples to measure a drop on: give --data")
    options = SessionOptions(recipe.ep, recipe.threads)
    base = open_session(original, options)

    def lost(graph: Graph) -> float:
        session = open_session(graph, replace(options, integers=target_of(recipe.target).here))
        found = compare(base, session, samples, metric=recipe.metric)
        points = drop(found.before, found.after)
        if points is None:
            raise CalibrationError("no metric says anything on these samples: name one with --metric")
        return points

    return lost


def drop(before: Metrics, after: Metrics) -> float | None:
    """Returns by how much the first metric fell, or rose where it is an error; ``None`` where there is none."""
    name = next(iter(after), "")
    old, new = before.get(name), after.get(name)
    if old is None and name in ("agreement", "cosine"):
        old = 1.0  # the original agrees with itself
    if old is None or new is None:
        return None
    return new - old if name == "mse" else old - new


def fallen(recipe: Recipe, before: Metrics, after: Metrics) -> tuple[str, ...]:
    """Returns a sentence where the verdict finds more lost than was allowed."""
    points = None if recipe.max_drop is None else drop(before, after)
    if points is None or recipe.max_drop is None or points <= recipe.max_drop:
        return ()
    return (
        f"--max-drop was not met: the metric lost {points:.4f} on the samples of the verdict where {recipe.max_drop:g} "
        "may be lost; it held on the samples that decided: give more of them, or allow less",
    )


def _peaks(graph: Graph, task: Task, watch: Stopwatch) -> dict[str, float]:
    """Returns how far tensors reach on the samples that are given, if any."""
    if task.runs is None:
        return {}
    options = SessionOptions(task.recipe.ep, task.recipe.threads)
    return peaks_of(graph, infer_shapes(graph, task.inputs.sizes), task.runs.fitted, options, watch.progress)


def _with_weights(found: Quantized, task: Task, watch: Stopwatch) -> Quantized:
    recipe, inputs = task.recipe, task.inputs
    word, samples = str(recipe.weights), _samples(task, watch)
    shapes = infer_shapes(found.graph, inputs.sizes)
    things = named_masks(found.graph, shapes)
    admits = _wanted(found.graph, recipe, inputs)
    names = {name for tensor, thing in things.items() if admits is None or admits(tensor) for name in thing.names}
    graph, done = weight_only(
        found.graph, BITS[word], recipe.group_size, shapes,
        wanted=lambda node, op: node in names and op != "Conv", samples=samples,
    )  # fmt: skip
    if not done.quantized:
        why = next((one.reason for one in done.left), "it has no matrix products with stored weights")
        instead = "leave --weights out" if recipe.fp16 else "give --int8 or --fp16 instead"
        raise PlanError(f"no weight can become {word} ({why}): {instead}")
    results = {node_name(node): node.outputs[0].name for node in graph.nodes}
    convolutions = {node_name(node) for node in graph.nodes if node.op == "Conv"} & names
    left = tuple(LeftNode(one.node, CONVOLUTION if one.node in convolutions else one.reason) for one in done.left)
    return replace(
        found,
        graph=graph,
        forms=(*found.forms, f"{word} weights"),
        results=tuple(results[name] for name in done.quantized if name in results),
        eligible=len(done.quantized) + len(left),
        left=left,
        notes=(*found.notes, _rounded_how(done, samples)),
    )


def _samples(task: Task, watch: Stopwatch) -> OnSamples | None:
    """Returns what weights are rounded on, if there are samples to judge that by."""
    recipe, given = task.recipe, task.inputs.given
    if task.runs is None or given is None or given.split()[0] is given:
        return None
    options = SessionOptions(recipe.ep, recipe.threads)
    return OnSamples(task.runs, int(recipe.max_memory), options, watch.progress)


def _rounded_how(done: WeightOnly, samples: OnSamples | None) -> str:
    if samples is None:
        return "weights were rounded by themselves: with --data, samples say how later ones make up for earlier ones"
    fitted, every = len(done.fitted), len(done.quantized)
    return f"samples chose how {fitted} of {every} weights were rounded, where held-out ones gain from it"


def _wanted(graph: Graph, recipe: Recipe, inputs: Inputs) -> Callable[[str], bool] | None:
    """Returns which weights selectors admit; ``None`` for all."""
    if not recipe.include and not recipe.exclude:
        return None
    things = named_masks(graph, infer_shapes(graph, inputs.sizes))
    found = admitted(things, recipe.include, recipe.exclude)
    return {name for tensor in found for name in things[tensor].names}.__contains__  # also what operators read


def failings(ratios: Ratios, found: Quantization) -> tuple[str, ...]:
    """Returns why a quantized file is not better than the original, and what would help; nothing where it is."""
    if found.target is None:
        return ()
    reasons = []
    if ratios.bytes is not None and ratios.bytes >= 1:
        reasons.append(
            f"the {found.form} file is not smaller, its weights are few beside what it adds: keep the original"
        )
    latency = ratios.latency
    if latency.median is not None and (latency.median >= 1 or (latency.high is not None and latency.high >= 1)):
        reasons.append(
            f"the {found.form} model is not measurably faster here: its operators are too small, or stay float "
            "(see 'left' in the report); keep the original, prune it first, or time it on the machine that it is for"
        )
    return tuple(reasons)
