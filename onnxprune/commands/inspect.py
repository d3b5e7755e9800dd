"""What is in a model, what can go, and what is frozen and why; needs no runtime that can run the model."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from onnxprune import arguments
from onnxprune.channels.explain import links
from onnxprune.channels.groups import Channels, analyze
from onnxprune.commands.depth import Depth
from onnxprune.commands.slim import uncounted
from onnxprune.commands.stopwatch import Stopwatch
from onnxprune.data.random import choose_shapes
from onnxprune.errors import ModelError
from onnxprune.model.cost import Cost, cost
from onnxprune.model.inline import without_functions
from onnxprune.model.io import read
from onnxprune.model.shapes import Shape
from onnxprune.model.sizes import infer_shapes
from onnxprune.plan.plan import why_nothing
from onnxprune.plan.select import matching
from onnxprune.report.build import (
    counted_at,
    describe_side,
    environment_of,
    frozen_rows,
    group_rows,
    node_rows,
    worth_telling,
)
from onnxprune.report.schema import Report
from onnxprune.runtime.session import SessionOptions
from onnxprune.slim import Progress


def inspect(
    model: object,
    *,
    group: Sequence[str] | str = (),
    input_shape: Mapping[str, Sequence[int]] | None = None,
    external_root: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Returns a report with the cost of a model, its channel groups and blocks, and why the frozen ones are.

    Args:
        model: A path, a ``ModelProto`` or a graphsurgeon graph.
        group: Selectors of groups, frozen ones too, that the report names under ``selected``.
        input_shape: Concrete shapes of inputs with free dimensions.
        external_root: Folder into which links to weight files may lead.
        progress: Called with the stage and the fraction of it that is done.

    Raises:
        ModelError: the model is invalid.
        UsageError: ``input_shape`` does not fit it.
        SelectorError: a selector matches nothing.
    """
    watch = Stopwatch(progress)
    wanted = arguments.patterns(group, "--group")
    overrides = arguments.shapes(input_shape, "--input-shape")
    root = arguments.optional(arguments.path, external_root, "--external-root")
    with watch.stage("load"):
        graph, proto = read(model, external_root=root)
        if proto.functions:
            graph = without_functions(graph)
    with watch.stage("analyze"):
        sizes = _first_sizes(proto, overrides)
        channels = analyze(graph, sizes if overrides else None)
        blocks = channels.blocks
        selected = _selected(channels, wanted)
        total, counted = _cost(graph, sizes)
    path = Path(model) if isinstance(model, str | os.PathLike) else None
    return Report(
        command="inspect",
        options={"group": list(wanted), "input_shape": {name: list(shape) for name, shape in overrides.items()}},
        environment=environment_of(SessionOptions(), 0),
        before=describe_side(proto, total, path, sparse=graph.sparse),
        input_shapes=counted_at(graph, counted),
        groups=group_rows(channels, {}, links(channels), selected),
        blocks=Depth(blocks).rows(),
        selected=selected,
        frozen=frozen_rows(channels),
        nodes=node_rows((total, total), ({}, {})),
        warnings=uncounted(total) + (() if channels.prunable else (why_nothing(channels),)),
        seconds=watch.total(),
    )


def _first_sizes(proto: onnx.ModelProto, overrides: Mapping[str, Shape]) -> dict[str, Shape] | None:
    """Returns the sizes that ``slim`` would try first, ``None`` where they cannot be told."""
    try:
        return choose_shapes(proto, overrides)
    except ModelError:
        return None


def _selected(channels: Channels, wanted: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the selected groups: kernel axes and single numbers only where there is nothing else."""
    chosen = matching(channels, wanted)
    telling = [group for group in chosen if worth_telling(group)]
    return tuple(group.name for group in telling or chosen)


def _cost(graph: gs.Graph, sizes: Mapping[str, Shape] | None) -> tuple[Cost, dict[str, Shape]]:
    """Returns the cost and the input sizes that it holds for; where some do not suit the graph, others are taken."""
    shapes = infer_shapes(graph, sizes)
    total = cost(graph, shapes=shapes)
    if total.uncounted and sizes is not None:
        other = infer_shapes(graph)
        found = cost(graph, shapes=other)
        if found.uncounted < total.uncounted:
            shapes, total = other, found
    return total, {tensor.name: shapes.shapes[tensor.name] for tensor in graph.inputs if tensor.name in shapes.shapes}
