"""Models in float64, by ONNX's own reference evaluator: what is left of a difference there is no rounding.

Some networks amplify rounding (deep ones with random weights, a softmax that is all but one-hot), so that two sums in
another order end up far apart in float32. In float64 the same amplification starts from errors 5e8 times smaller.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from scipy import special

from onnxprune.model.cost import macs_of
from onnxprune.model.importer import bodies
from onnxprune.model.io import Graph, to_proto
from onnxprune.model.sizes import infer_shapes

LARGEST_WORK = 10**10
"""Multiply-accumulates of one model over all feeds: ResNet-18 at 224 x 224 has 1.8e9, which take two seconds."""

NARROW = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
"""Element types that become float64."""

TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "output_datatype", "softmax_precision"}
"""Attributes that name the element type of a result."""

OTHERWISE = {
    "AffineGrid", "Bernoulli", "DeformConv", "GridSample", "LRN", "LpNormalization", "Multinomial", "RandomNormal",
    "RandomNormalLike", "RandomUniform", "RandomUniformLike",
}  # fmt: skip
"""Operators that the reference computes in float32 or by another rule than ONNX Runtime, or whose results are drawn."""

RECURRENT = {"GRU", "LSTM", "RNN"}
SEQUENCE_LENGTHS = 4
"""The input of recurrent operators that the reference passes over, like all attributes."""

Array = np.ndarray
Feeds = Mapping[str, Array]


class CannotRepeatError(Exception):
    """The model cannot be run in float64; the message says why, and becomes part of the result."""


class Erf(OpRun):  # type: ignore[misc,unused-ignore]
    """Erf with all digits: the reference rounds its own to float32."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (special.erf(x).astype(x.dtype),)


class Gelu(OpRun):  # type: ignore[misc,unused-ignore]
    """Gelu with all digits: its definition contains Erf."""

    op_domain = ""

    def _run(self, x: Array, approximate: str = "none") -> tuple[Array]:
        if approximate == "tanh":
            inner = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
        else:
            inner = special.erf(x / np.sqrt(2))
        return ((0.5 * x * (1 + inner)).astype(x.dtype),)


class GroupNormalization(OpRun):  # type: ignore[misc,unused-ignore]
    """GroupNormalization in the type of its input: its definition computes the statistics in float32."""

    op_domain = ""

    def _run(
        self, x: Array, scale: Array, bias: Array, epsilon: float = 1e-5, num_groups: int = 1, stash_type: int = 1
    ) -> tuple[Array]:
        rows = x.reshape(x.shape[0], num_groups, -1)
        rows = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + epsilon)
        # Before opset 21 there is one scale for each group.
        factors = (np.repeat(one, x.shape[1] // one.size).reshape(-1, *[1] * (x.ndim - 2)) for one in (scale, bias))
        return (rows.reshape(x.shape) * next(factors) + next(factors),)


class Softmax(OpRun):  # type: ignore[misc,unused-ignore]
    """Softmax before opset 13: over all axes from ``axis`` on, taken together."""

    op_domain = ""

    def _run(self, x: Array, axis: int = 1) -> tuple[Array]:
        weights = np.exp(_shifted(x, axis))
        return ((weights / weights.sum(axis=1, keepdims=True)).reshape(x.shape),)


class LogSoftmax(OpRun):  # type: ignore[misc,unused-ignore]
    """The logarithm of Softmax before opset 13."""

    op_domain = ""

    def _run(self, x: Array, axis: int = 1) -> tuple[Array]:
        rows = _shifted(x, axis)
        return ((rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))).reshape(x.shape),)


def _shifted(x: Array, axis: int) -> Array:
    """Returns the rows of which Softmax is taken, less their maxima."""
    rows = x.reshape(math.prod(x.shape[: axis % x.ndim]), -1)
    return np.asarray(rows - rows.max(axis=1, keepdims=True))


OWN = [Erf, Gelu, GroupNormalization]
"""Operators that the reference rounds to float32."""

FLATTENING = [LogSoftmax, Softmax]
"""Operators that flatten their input before opset 13, which the reference does not."""


def affordable(graph: Graph, feeds: Sequence[Feeds]) -> list[Feeds]:
    """Returns the feeds that float64 has time for: one of every set of input shapes, then more, the smallest first.

    Raises:
        CannotRepeatError: one of every set of shapes is already too much.
    """
    by_shapes: dict[tuple[tuple[str, tuple[int, ...]], ...], list[Feeds]] = {}
    for feed in feeds:
        by_shapes.setdefault(tuple(sorted((name, array.shape) for name, array in feed.items())), []).append(feed)
    priced = [(_work(graph, same[0]), same) for same in by_shapes.values()]
    total = sum(work for work, _ in priced)
    if total > LARGEST_WORK:
        raise CannotRepeatError(
            f"{total:.0e} multiply-accumulates take too long (limit {LARGEST_WORK:.0e}): give smaller inputs"
        )
    chosen = [same[0] for _, same in priced]
    for work, feed in sorted(((work, feed) for work, same in priced for feed in same[1:]), key=lambda item: item[0]):
        total += work
        if total > LARGEST_WORK:
            break
        chosen.append(feed)
    return chosen


def values(graph: Graph, feeds: Sequence[Feeds], names: Sequence[str]) -> list[dict[str, Array]]:
    """Returns the values of the named outputs in float64, for every feed.

    Raises:
        CannotRepeatError: the reference evaluator does not run the model.
    """
    model = widen(to_proto(graph))
    opset = next((entry.version for entry in model.opset_import if not entry.domain), 1)
    unlike = next((node.op_type for node in _all_nodes(model.graph.node) if _is_computed_otherwise(node, opset)), None)
    if opset < 13:
        for node in _all_nodes(model.graph.node):  # the evaluator takes the default of the newest version
            if node.op_type in ("LogSoftmax", "Softmax") and not node.attribute:
                node.attribute.append(helper.make_attribute("axis", 1))
    if unlike is not None:
        raise CannotRepeatError(f"the ONNX reference evaluator does not compute {unlike} as ONNX Runtime does")
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            evaluator = ReferenceEvaluator(model, new_ops=OWN + (FLATTENING if opset < 13 else []))
            runs = [evaluator.run(list(names), {k: _wide(v) for k, v in feed.items()}) for feed in feeds]
    except Exception as error:  # of any kind: the reference raises what each operator happens to
        reason = (str(error).splitlines() or [""])[0].strip()[:200].rstrip(". ") or type(error).__name__
        raise CannotRepeatError(f"the ONNX reference evaluator does not run the model ({reason})") from error
    return [{name: np.asarray(value) for name, value in zip(names, list(run), strict=True)} for run in runs]


def widen(model: onnx.ModelProto) -> onnx.ModelProto:
    """Makes float64 of all floating-point numbers of a model, in place, and returns it."""
    _widen_graph(model.graph)
    for function in model.functions:
        for node in function.node:
            _widen_node(node)
    return model


def _work(graph: Graph, feed: Feeds) -> int:
    shapes = infer_shapes(graph, {name: array.shape for name, array in feed.items()})
    return sum(macs_of(graph, node, shapes) or 0 for node in graph.nodes)


def _is_computed_otherwise(node: onnx.NodeProto, opset: int) -> bool:
    if node.op_type in RECURRENT:
        plain = all(item.name == "hidden_size" or item.s == b"forward" for item in node.attribute)
        return not plain or any(node.input[SEQUENCE_LENGTHS : SEQUENCE_LENGTHS + 1])
    return node.op_type in OTHERWISE or (opset < 13 and node.op_type == "Hardmax")


def _all_nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for body in bodies(node):
            yield from _all_nodes(body.node)


def _wide(array: Array) -> Array:
    narrow = helper.np_dtype_to_tensor_dtype(array.dtype) in NARROW
    return array.astype(np.float64) if narrow else array


def _widen_graph(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for sparse in graph.sparse_initializer:
        _widen_tensor(sparse.values)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in NARROW:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in graph.node:
        _widen_node(node)


def _widen_node(node: onnx.NodeProto) -> None:
    if node.op_type == "Constant":
        _widen_constant(node)
    elif node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float64))))
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            _widen_tensor(attribute.t)
        elif attribute.type == AttributeProto.SPARSE_TENSOR:
            _widen_tensor(attribute.sparse_tensor.values)
        elif attribute.name in TYPE_ATTRIBUTES and attribute.i in NARROW:
            attribute.i = TensorProto.DOUBLE
    for body in bodies(node):
        _widen_graph(body)


def _widen_constant(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name in ("value_float", "value_floats"):
            number = helper.get_attribute_value(attribute)
            attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(np.array(number, np.float64))))


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in NARROW:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
