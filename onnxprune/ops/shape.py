"""Shape computation: operators that read or make sizes."""

import numpy as np

from onnxprune.channels.facts import Facts, free
from onnxprune.channels.registry import Array, NodeView, channel_rule, value_rule


@channel_rule("Shape", "Size")
def shape(node: NodeView) -> Facts:
    """Reads lengths, not channels; where the lengths go is followed element by element."""
    for dim in range(node.data.rank):
        yield free(node.data.axis(dim))


@channel_rule("Constant")
def constant(node: NodeView) -> Facts:
    """A stored tensor; those who read it say what its axes mean."""
    for dim in range(node.result.rank):
        yield free(node.result.axis(dim))


@value_rule("Shape", moves=True)
def shape_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """The sizes from ``start`` to ``end``."""
    return [inputs[0][node.attribute("start", 0) : node.attribute("end")]]


@value_rule("Size")
def size_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """The number of elements."""
    return [np.asarray(np.prod(inputs[0], dtype=np.int64))]


@value_rule("ConstantOfShape")
def constant_of_shape_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """Equal elements; zero by default."""
    from onnxprune.model.io import read_values

    stored = node.attribute("value")
    fill = np.zeros(1, np.float32) if stored is None else read_values(stored)
    return [np.full(tuple(inputs[0].tolist()), fill.ravel()[0], fill.dtype)]


@value_rule("Range")
def range_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """Numbers in steps."""
    start, limit, delta = (value.ravel()[0] for value in inputs)
    return [np.asarray(np.arange(start, limit, delta), inputs[0].dtype)]
