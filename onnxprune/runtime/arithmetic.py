"""What the integer arithmetic of this machine does, found out by trying it."""

import functools

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.runtime.session import SessionOptions, open_session

DEPTH = 64
"""Products in the sum that is tried."""


@functools.cache
def saturates() -> bool:
    """Returns whether sums of products of uint8 activations and int8 weights go wrong here.

    x86 without VNNI adds two products in 16 bits, where 255 * 127 * 2 has no room; weights of 7 bits always have.
    """
    weights = np.full((DEPTH, DEPTH), 127, np.int8)
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [node],
        "sums",
        [helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [1, DEPTH])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [1, DEPTH])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = open_session(model, SessionOptions(threads=1))
    result = session.run({"x": np.full((1, DEPTH), 255, np.uint8)})["y"]
    return bool((result != 255 * 127 * DEPTH).any())
