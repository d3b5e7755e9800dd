"""Small models from a line of tensors and a few lines of ONNX text.

Tensors are separated by spaces: ``x:2,6,5`` is a graph input (letters are free dimensions), ``w=8,6`` a stored tensor
of seeded random values, ``v=+6`` one of positive values, ``s={2,-1}`` stored integers, ``k=#3`` one without
dimensions, ``s=f{1,2}`` stored numbers, ``c=f#2`` one without dimensions. A letter before the dimensions is an element
type: ``b`` bool, ``i`` int64, ``u`` uint8, ``n`` int8, ``h`` int32, ``s`` float32; the default is that of the model.
"""

import re
import zlib

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from onnxprune.runtime.session import SessionOptions, open_session

TYPES = {"b": np.bool_, "i": np.int64, "u": np.uint8, "n": np.int8, "h": np.int32, "s": np.float32}
TENSOR = re.compile(r"(\w+)([:=])(.*)")


def model(tensors: str, text: str, opset: int = 17, dtype: type = np.float32, seed: int = 0) -> onnx.ModelProto:
    """Returns a model whose outputs are all values that no node reads; their shapes are left to inference."""
    inputs, stored = [], []
    for token in tensors.split():
        name, kind, rest = TENSOR.fullmatch(token).groups()
        if kind == ":":
            element, dims = _typed(rest, dtype)
            sizes = [int(size) if size.isdigit() else size for size in dims.split(",") if size]
            element = helper.np_dtype_to_tensor_dtype(np.dtype(element))
            inputs.append(helper.make_tensor_value_info(name, element, sizes))
        else:
            stored.append(numpy_helper.from_array(_values(rest, dtype, seed, name), name))
    nodes = list(parser.parse_graph(f"case () => () {{ {text} }}").node)
    for position, node in enumerate(nodes):
        node.name = node.name or f"{node.op_type}_{position}"
    read = {name for node in nodes for name in node.input}
    outputs = [name for node in nodes for name in node.output if name and name not in read]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(nodes, "case", inputs, results, stored)
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(domain, 1) for domain in sorted({node.domain for node in nodes} - {""})]
    built = helper.make_model(graph, opset_imports=imports, ir_version=_ir_version(opset))
    inferred = onnx.shape_inference.infer_shapes(built, data_prop=True)
    for place, output in enumerate(inferred.graph.output):
        built.graph.output[place].CopyFrom(output)
        if not output.type.WhichOneof("value"):  # of an operator that onnx does not know
            built.graph.output[place].type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return built


def with_measured_outputs(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Declares the outputs that shape inference knows nothing about as a run finds them, as exporters do."""
    if all(output.type.tensor_type.HasField("shape") for output in proto.graph.output):
        return proto
    feeds = random_feeds(proto, np.random.default_rng(0))
    try:
        values = ReferenceEvaluator(proto).run(None, feeds)
    except NotImplementedError:  # operators of ONNX Runtime
        values = open_session(proto, SessionOptions(threads=1, optimize=False)).run(feeds).values()
    for output, value in zip(proto.graph.output, values, strict=True):
        output.type.CopyFrom(helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape))
    return proto


def random_feeds(proto: onnx.ModelProto, rng: np.random.Generator, sizes: dict[str, int] | None = None) -> dict:
    """Returns random values for every input; ``sizes`` are those of free dimensions."""
    feeds = {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        shape = [dim.dim_value or (sizes or {}).get(dim.dim_param, 2) for dim in kind.shape.dim]
        feeds[value.name] = _random(rng, shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return feeds


def _ir_version(opset: int) -> int:
    return 8 if opset < 19 else 10


def _typed(text: str, dtype: type) -> tuple[type, str]:
    if text[:1] in TYPES and text[1:2].isdigit() | (text[1:2] == "("):
        return TYPES[text[0]], text[1:]
    return dtype, text


def _values(text: str, dtype: type, seed: int, name: str) -> np.ndarray:
    if text[0] == "#":
        return np.array(int(text[1:]), np.int64)
    if text[0] == "{":
        return np.array([int(number) for number in text[1:-1].split(",") if number], np.int64)
    if text[:2] == "f#":
        return np.array(float(text[2:]), np.float32)
    if text[:2] == "f{":
        return np.array([float(number) for number in text[2:-1].split(",") if number], np.float32)
    element, dims = _typed(text.replace("+", ""), dtype)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = _random(rng, [int(size) for size in dims.strip("()").split(",") if size], element)
    return (np.abs(values) + 0.5).astype(element) if "+" in text else values


def _random(rng: np.random.Generator, shape: list[int], dtype: type) -> np.ndarray:
    if np.issubdtype(dtype, np.floating):
        return np.asarray(rng.standard_normal(shape), dtype)
    return np.asarray(rng.integers(0, 2 if dtype == np.bool_ else 6, shape), dtype)
