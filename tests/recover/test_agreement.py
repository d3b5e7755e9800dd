"""What repair stores is the least squares solution: every kind of operator against scipy on the stacked problem.

The stacked problem is made by the operator itself: it is linear in its weights and its shift, so that the column of a
weight is what comes out when that weight is one and all others are zero.
"""

from functools import partial

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import scipy.linalg
from onnx_text import model

from onnxprune.channels.groups import analyze
from onnxprune.model.io import load, to_proto
from onnxprune.model.linear import Holders, linear_nodes
from onnxprune.model.sizes import generic_shapes
from onnxprune.recover.least_squares import solve
from onnxprune.recover.sequential import Calibration, Settings, repair
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.surgery.gone import Gone

OPTIONS = SessionOptions(threads=1, optimize=False)
LINE = "x:N,6,12 w0=4,6,1 h = Conv(x, w0)"
PLANE = "x:N,6,7,6 w0=4,6,1,1 h = Conv(x, w0)"
SPACE = "x:N,6,4,4,4 w0=4,6,1,1,1 h = Conv(x, w0)"
FLAT = "x:N,8 w0=8,6 h = MatMul(x, w0)"
TOKENS = "x:N,5,8 w0=8,6 h = MatMul(x, w0)"
COLUMNS = "x:8,N w0=6,8 h = MatMul(w0, x)"

CASES = {
    "conv": (PLANE, "w=5,4,3,3 b=5", "y = Conv<pads=[1,1,1,1]>(h, w, b)"),
    "strided": (PLANE, "w=5,4,3,3 b=5", "y = Conv<strides=[2,1], pads=[1,0,0,1]>(h, w, b)"),
    "dilated": (PLANE, "w=5,4,2,3 b=5", "y = Conv<dilations=[3,2]>(h, w, b)"),
    "grouped": (PLANE, "w=6,2,3,3 b=6", "y = Conv<group=2>(h, w, b)"),
    "depthwise": (PLANE, "w=8,1,3,3 b=8", "y = Conv<group=4, pads=[1,1,1,1]>(h, w, b)"),
    "one dimension": (LINE, "w=5,4,4 b=5", 'y = Conv<auto_pad="SAME_LOWER">(h, w, b)'),
    "three dimensions": (SPACE, "w=3,4,2,2,2 b=3", "y = Conv(h, w, b)"),
    "transposed": (PLANE, "w=4,3,3,3 b=3", "y = ConvTranspose(h, w, b)"),
    "transposed, grouped": (PLANE, "w=4,3,2,2 b=6", "y = ConvTranspose<group=2, pads=[1,0,0,1]>(h, w, b)"),
    "transposed, strided": (PLANE, "w=4,3,3,2 b=3", "y = ConvTranspose<strides=[2,3], pads=[1,0,1,0]>(h, w, b)"),
    "gemm": (FLAT, "w=6,5 b=5", "y = Gemm(h, w, b)"),
    "gemm, turned weights": (FLAT, "w=5,6 b=5", "y = Gemm<transB=1, alpha=0.5>(h, w, b)"),
    "gemm, turned data": (COLUMNS, "w=6,5 b=5", "y = Gemm<transA=1, beta=0.25>(h, w, b)"),
    "matmul": (FLAT, "w=6,5", "y = MatMul(h, w)"),
    "matmul of tokens": (TOKENS, "w=6,5 b=5", "m = MatMul(h, w) y = Add(m, b)"),
    "weight on the left": (TOKENS, "w=7,5", "y = MatMul(w, h)"),
    "batch normalization": (
        PLANE,
        "w=4 b=4 mean=4 variance=+4",
        "r = Relu(h) y = BatchNormalization<epsilon=0.1>(r, w, b, mean, variance)",
    ),
    "batch normalization of vectors": (
        FLAT,
        "w=6 b=6 mean=6 variance=+6",
        "r = Relu(h) y = BatchNormalization(r, w, b, mean, variance)",
    ),
}


def network(name: str) -> onnx.ModelProto:
    """Returns the model of a case; what the operator reads is an output too."""
    before, tensors, text = CASES[name]
    inputs, _, first = before.partition(" h = ")
    proto = model(f"{inputs} {tensors}", f"h = {first} {text}")
    rank = len(proto.graph.input[0].type.tensor_type.shape.dim)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, [None] * rank))
    return proto


def masked(proto: onnx.ModelProto) -> gs.Graph:
    """Returns the model with some of the weights before the operator set to zero."""
    graph = load(proto)
    weights = graph.nodes[0].inputs[1 if isinstance(graph.nodes[0].inputs[1], gs.Constant) else 0]
    values = weights.values.copy()
    values[np.random.default_rng(2).random(values.shape) < 0.3] = 0
    weights.values = values
    return graph


def columns(proto: onnx.ModelProto, h: np.ndarray) -> np.ndarray:
    """Returns what every single weight and shift makes of the data, [results, weights]."""
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    del whole.graph.node[0], whole.graph.input[:], whole.graph.output[1:]
    parameters = [tensor for tensor in proto.graph.initializer if tensor.name in ("w", "b")]
    for tensor in parameters:
        whole.graph.initializer.remove(tensor)
    shapes = {"h": h.shape, **{tensor.name: tuple(tensor.dims) for tensor in parameters}}
    for key, shape in shapes.items():
        whole.graph.input.append(onnx.helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, shape))
    session = open_session(whole, OPTIONS)
    found = []
    for tensor in parameters:
        for place in range(int(np.prod(tensor.dims))):
            feeds = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()} | {"h": h}
            feeds[tensor.name].reshape(-1)[place] = 1
            found.append(session.run(feeds)["y"].ravel())
    return np.stack(found, axis=1).astype(np.float64)


@pytest.mark.parametrize("name", CASES)
def test_the_stored_solution_is_that_of_scipy(name: str) -> None:
    proto = network(name)
    channels = analyze(proto)
    rng = np.random.default_rng(0)
    shape = [dim.dim_value or 12 for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    runs = [{"x": np.asarray(rng.standard_normal(shape) + 0.5, np.float32)} for _ in range(2)]
    settings = Settings(partial(solve, strengths=[1e-9]), options=OPTIONS)
    pruned = masked(proto)
    repaired, _ = repair(pruned, channels.graph, Gone(channels, {}), Calibration(runs, runs), settings)
    results, wanted, before = (
        [open_session(graph, OPTIONS).run(run) for run in runs] for graph in (to_proto(repaired), proto, pruned)
    )
    goal = np.concatenate([run["y"].ravel() for run in wanted]).astype(np.float64)
    made, old = (np.concatenate([run["y"].ravel() for run in side]) for side in (results, before))
    stacked = np.concatenate([columns(proto, run["h"]) for run in results])
    solution = scipy.linalg.lstsq(stacked, goal)[0]
    least = float(np.square(stacked @ solution - goal).sum())
    assert least > 1e-4 * float(np.square(goal).sum())
    assert float(np.square(made - goal).sum()) == pytest.approx(least, rel=0.01)
    assert float(np.square(old - goal).sum()) > 1.05 * least


@pytest.mark.parametrize("shift", ["c = MatMul(x, u)", "c = Reshape(u, to)"])
def test_an_operator_whose_shift_is_not_stored_by_channel_is_left_alone(shift: str) -> None:
    """It would be fitted to a target that holds the shift, and get it once more."""
    text = f"{shift} h = MatMul(x, w0) r = Relu(h) y = Gemm(r, w, c)"
    graph = load(model("x:4,4 w0=4,5 w=5,4 u=4,4 to={4,4}", text))
    found = linear_nodes(graph, generic_shapes(graph)[0], Holders(graph))
    assert "y" not in {one.result for one in found}
