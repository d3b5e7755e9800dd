"""What stands behind a product decides whether ONNX Runtime fuses the integers in front of it.

Two of its habits are in the way, both before it looks at the integers. It joins MatMul and Add to a Gemm, and then
wants a bias of one number for every output. And a Relu or Clip behind a product is taken for one that a rounded result
makes needless, which no product with a result of floats has a kernel for. Other operators compute the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from onnxprune.model.shapes import Shapes

Fresh = Callable[[str], str]


def keep_from_joining(product: gs.Node, kept: Collection[str], shapes: Shapes) -> None:
    """Makes a MatMul of rank 2 a Gemm, where what is added to its result is not one number for every output.

    Args:
        product: A MatMul with stored weights.
        kept: Names of tensors that are read from outside of the graph.
        shapes: Shapes of the graph.
    """
    data, reader = shapes.shapes.get(product.inputs[0].name), _only_reader(product, kept)
    if data is None or len(data) != 2 or reader is None or reader.op != "Add":
        return
    width = (int(product.inputs[1].shape[1]),)
    others = [tensor for tensor in reader.inputs if tensor is not product.outputs[0]]
    if not others or _shape(others[0], shapes) != width:
        product.op = "Gemm"


def without_clip(product: gs.Node, kept: Collection[str], shapes: Shapes, fresh: Fresh) -> dict[int, list[gs.Node]]:
    """Puts Max and Min in place of a Relu or Clip behind a product, or behind the Add after it.

    Returns:
        The nodes that stand in place of a node, by its ``id``; they take over its results.
    """
    reader = _only_reader(product, kept)
    if reader is not None and reader.op == "Add":
        reader = _only_reader(reader, kept)
    if reader is None or reader.op not in ("Relu", "Clip") or reader.domain not in (None, "", "ai.onnx"):
        return {}
    data, result = reader.inputs[0], reader.outputs[0]
    if reader.op == "Relu":
        kind = helper.tensor_dtype_to_np_dtype(shapes.types[result.name])
        bounds = [("Max", gs.Constant(fresh(f"{result.name}_zero"), np.zeros((), kind)))]
    else:
        present = zip(("Max", "Min"), reader.inputs[1:], strict=False)
        bounds = [(op, bound) for op, bound in present if bound.name]
    if not bounds:
        return {}
    reader.inputs.clear()
    reader.outputs.clear()
    nodes = []
    for number, (op, bound) in enumerate(bounds, 1):
        is_last = number == len(bounds)
        out = result if is_last else gs.Variable(fresh(f"{result.name}_{op}"), result.dtype, result.shape)
        name = reader.name if is_last or not reader.name else f"{reader.name}_{op}"
        nodes.append(gs.Node(op, name, {}, [data, bound], [out]))
        data = out
    return {id(reader): nodes}


def _only_reader(node: gs.Node, kept: Collection[str]) -> gs.Node | None:
    result = node.outputs[0]
    return result.outputs[0] if len(result.outputs) == 1 and result.name not in kept else None


def _shape(tensor: gs.Tensor, shapes: Shapes) -> tuple[int, ...] | None:
    if isinstance(tensor, gs.Constant):
        return tuple(int(size) for size in tensor.shape)
    return shapes.shapes.get(tensor.name)
