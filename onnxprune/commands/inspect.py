"""What is in a model, what can go, and what is frozen and why; needs no runtime that can run the model."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxprune.channels.explain import links
from onnxprune.channels.groups import analyze
from onnxprune.commands.slim import uncounted
from onnxprune.commands.stopwatch import Stopwatch
from onnxprune.data.random import choose_shapes
from onnxprune.errors import ModelError
from onnxprune.model.cost import cost
from onnxprune.model.io import read
from onnxprune.plan.plan import why_nothing
from onnxprune.report.build import describe_side, environment_of, group_rows, node_rows
from onnxprune.report.schema import Report
from onnxprune.runtime.session import SessionOptions
from onnxprune.slim import Progress


def inspect(
    model: object,
    *,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    external_root: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Returns a report with the cost of a model, its channel groups, and why the frozen ones are.

    Args:
        model: A path, a ``ModelProto`` or a graphsurgeon graph.
        input_shape: Concrete shapes of inputs with free dimensions.
        external_root: Folder into which links to weight files may lead.
        progress: Called with the stage and the fraction of it that is done.

    Raises:
        ModelError: the model is invalid.
        UsageError: ``input_shape`` does not fit it.
    """
    watch = Stopwatch(progress)
    with watch.stage("load"):
        graph, proto = read(model, external_root=external_root)
    overrides = {name: tuple(int(size) for size in shape) for name, shape in (input_shape or {}).items()}
    try:
        sizes = choose_shapes(proto, overrides) if overrides else None
    except ModelError:
        sizes = None
    with watch.stage("analyze"):
        channels = analyze(graph, sizes)
        total = cost(graph, sizes)
    path = Path(model) if isinstance(model, str | os.PathLike) else None
    return Report(
        command="inspect",
        options={"input_shape": {name: list(shape) for name, shape in overrides.items()}},
        environment=environment_of(SessionOptions(), 0),
        before=describe_side(proto, total, path),
        groups=group_rows(channels, {}, links(channels)),
        nodes=node_rows((total, total), ({}, {})),
        warnings=uncounted(total) + (() if channels.prunable else (why_nothing(channels),)),
        seconds=watch.total(),
    )
