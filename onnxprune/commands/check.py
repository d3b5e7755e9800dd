"""Will a file be fast and accepted on a target, and are its zeros where they should be."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune import arguments
from onnxprune.commands.stopwatch import Stopwatch
from onnxprune.data.random import choose_shapes
from onnxprune.errors import ModelError, UsageError
from onnxprune.model.cost import cost
from onnxprune.model.inline import without_functions
from onnxprune.model.integer import with_real_weights
from onnxprune.model.io import read
from onnxprune.model.linear import Holders
from onnxprune.model.shapes import Shapes, node_name
from onnxprune.model.sizes import infer_shapes
from onnxprune.model.weights import Weight, weights_of
from onnxprune.ops.forms import Product, TransposedConvolution
from onnxprune.plan.masks import MIXING, MaskDemand, eligible_weights
from onnxprune.quantize.lint import lint
from onnxprune.quantize.targets import target_of
from onnxprune.report.build import counted_at, describe_side, environment_of
from onnxprune.report.schema import FindingRow, Report, SparseTensor, Sparsity
from onnxprune.runtime.session import SessionOptions
from onnxprune.score.masks import PerGroup, arranged
from onnxprune.slim import Progress


def check(
    model: object,
    *,
    nm: str | None = None,
    nm_min_channels: int = 1,
    target: str | None = None,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    external_root: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Returns a report that says which rules of a target a model breaks, and where its weights keep to N:M.

    Rules of Q/DQ and of integer operators stand under ``findings``, zeros under ``sparsity``: N of every M consecutive
    weights along the input channels may differ from zero, for each output channel, kernel position and group; zero is
    the zero point where weights are quantized.

    Args:
        model: A path, a ``ModelProto`` or a graphsurgeon graph.
        nm: The pattern, such as ``2:4``.
        nm_min_channels: Operators with fewer input or output channels need not keep to it.
        target: What the model is to run on: ort-cpu, ort-cuda, tensorrt or generic.
        input_shape: Concrete shapes of inputs with free dimensions.
        external_root: Folder into which links to weight files may lead.
        progress: Called with the stage and the fraction of it that is done.

    Raises:
        UsageError: nothing is asked for, or it is not N:M, there is no such target, or ``input_shape`` does not fit
            the model.
        ModelError: the model is invalid.
    """
    if nm is None and target is None:
        raise UsageError("nothing is asked for: give --nm N:M, such as --nm 2:4, or --target, such as --target ort-cpu")
    pattern = None if nm is None else PerGroup(*arguments.kept_of(nm, "--nm"))
    least = arguments.count(nm_min_channels, "--nm-min-channels")
    chosen = None if target is None else target_of(target)
    overrides = arguments.shapes(input_shape, "--input-shape")
    root = arguments.optional(arguments.path, external_root, "--external-root")
    watch = Stopwatch(progress)
    with watch.stage("load"):
        graph, proto = read(model, external_root=root)
        if proto.functions:
            graph = without_functions(graph)
    with watch.stage("check"):
        try:
            sizes = choose_shapes(proto, overrides)
        except ModelError:
            sizes = None
        shapes = infer_shapes(graph, sizes)
        sparsity = Sparsity()
        if pattern is not None:
            demand = MaskDemand(pattern, nm_min_channels=least)
            sparsity = held_against(*with_real_weights(graph, shapes), demand, pattern)
        found = () if chosen is None else lint(graph, shapes, chosen)
    asked = {} if pattern is None else {"nm": str(pattern), "nm_min_channels": least}
    lacking = pattern is not None and all(row.reason is not None for row in sparsity.tensors)
    path = Path(model) if isinstance(model, str | os.PathLike) else None
    return Report(
        command="check",
        options={**asked, **({} if chosen is None else {"target": chosen.name})},
        environment=environment_of(SessionOptions(), 0),
        before=describe_side(proto, cost(graph, shapes=shapes), path, sparse=graph.sparse),
        input_shapes=counted_at(graph, shapes.shapes),
        sparsity=sparsity,
        findings=tuple(FindingRow(**asdict(one)) for one in found),
        warnings=(_nothing(str(pattern)),) if lacking else (),
        seconds=watch.total(),
    )


def held_against(graph: gs.Graph, shapes: Shapes, demand: MaskDemand, pattern: PerGroup) -> Sparsity:
    """Returns a row for every operator with stored weights, in graph order."""
    eligible, others = eligible_weights(graph, shapes, demand)
    held = {one.result for users in eligible.values() for one in users}
    reasons = {one.node: one.reason for one in others}
    found = {one.result: one for one in weights_of(graph, shapes)}
    holders, rows = Holders(graph), []
    for node in graph.nodes:
        weight = found.get(node.outputs[0].name) if node.outputs else None
        if weight is not None:
            rows.append(_row(weight, pattern, None if weight.result in held else reasons[weight.operator]))
        elif node.op in MIXING:
            rows += _unread(node, holders)
    counted = [(row.fraction, size) for row, size in rows if row.fraction is not None and row.reason is None]
    total = sum(size for _, size in counted)
    zeros = sum(fraction * size for fraction, size in counted)
    return Sparsity(str(pattern), zeros / total if total else None, tuple(row for row, _ in rows))


def _row(weight: Weight, pattern: PerGroup, reason: str | None) -> tuple[SparseTensor, int]:
    """Returns the row of an operator, and the number of its weights."""
    filled = arranged(weight.matrix(), weight.spread) != 0
    groups, rows, columns = filled.shape
    count = violations = None
    if rows // weight.spread % pattern.size == 0:
        kept = filled.reshape(groups, rows // pattern.size, pattern.size, columns).sum(axis=2)
        count, violations = kept.size, int(np.count_nonzero(kept > pattern.kept))
    row = SparseTensor(
        weight.source.name,
        1 - np.count_nonzero(filled) / filled.size,
        str(pattern) if violations == 0 else None,
        weight.operator,
        _summed_axis(weight),
        count,
        violations,
        reason,
    )
    return row, int(filled.size)


def _summed_axis(weight: Weight) -> int:
    """Returns the axis of the stored tensor that holds the input channels."""
    form = weight.form
    first = isinstance(form, TransposedConvolution) or (isinstance(form, Product) and not form.transposed)
    return weight.source.order[0 if first else 1]


def _unread(node: gs.Node, holders: Holders) -> Iterator[tuple[SparseTensor, int]]:
    """Yields a row for every stored matrix of an operator whose weights are not looked into."""
    for tensor in node.inputs:
        held = holders.get(tensor)
        if held is not None and len(held.shape) > 1:
            reason = f"weights of {node.op} in this form are not looked into"
            yield SparseTensor(tensor.name, node=node_name(node), reason=reason), 0


def _nothing(pattern: str) -> str:
    return f"no operator has weights that {pattern} could be asked of: see the reasons"
