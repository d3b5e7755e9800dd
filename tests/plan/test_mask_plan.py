"""What is masked, with how many zeros, and what stays dense and why."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_text import model

from onnxprune.errors import PlanError
from onnxprune.model.io import Graph, load
from onnxprune.plan.masks import MaskDemand, MaskPlan, masks_for
from onnxprune.score.masks import Block, PerGroup, Unstructured

NET = model(
    "x:N,3,8,8 w0=16,3,3,3 w1=16,1,3,3 w2=12,8,3,3 w3=12,10,2,2 w4=8,10 w5=8,6",
    "p = Mul(x, x) a = Conv<pads=[1,1,1,1]>(p, w0) r = Relu(a) c = Conv<pads=[1,1,1,1], group=16>(r, w1) "
    "d = Conv<pads=[1,1,1,1], group=2>(c, w2) s = Relu(d) t = ConvTranspose<strides=[2,2]>(s, w3) "
    "q = GlobalAveragePool(t) f = Flatten(q) g = Gemm<transB=1>(f, w4) h = Relu(g) y = MatMul(h, w5)",
)


def names(plan: MaskPlan) -> list[str]:
    return [one.name for one in plan.tensors]


def reasons(plan: MaskPlan) -> dict[str, str]:
    return {one.node: one.reason for one in plan.dense}


def test_first_and_depthwise_operators_stay_dense() -> None:
    plan = masks_for(load(NET), MaskDemand(Unstructured(), 0.6))
    assert names(plan) == ["w2", "w3", "w4", "w5"]
    assert reasons(plan) == {
        "Conv_1": "it is the first that reads the input",
        "Conv_3": "it is depthwise: each of its few weights matters",
    }
    assert [one.zeros for one in plan.tensors] == [round(one.size * 0.6) for one in plan.tensors]
    assert plan.sparsity == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (PerGroup(2, 4), ["w2", "w3", "w5"]),  # w4 has 10 inputs
        (PerGroup(1, 8), ["w2", "w5"]),
        (PerGroup(3, 5), ["w4"]),
        (Block(1, 4), ["w2", "w3", "w5"]),
        (Block(4, 1), ["w4"]),
        (Block(2, 2), ["w2", "w3", "w4", "w5"]),
    ],
)
def test_patterns_divide_channels(pattern: PerGroup | Block, expected: list[str]) -> None:
    plan = masks_for(load(NET), MaskDemand(pattern))
    assert names(plan) == expected
    divided = [why for why in reasons(plan).values() if f"{pattern} does not divide its" in why]
    assert len(divided) == 4 - len(expected)


def test_narrow_operators_stay_dense_where_asked() -> None:
    plan = masks_for(load(NET), MaskDemand(PerGroup(2, 4), nm_min_channels=10))
    assert names(plan) == ["w3"]
    assert reasons(plan)["Conv_4"] == "it has 8 input and 6 output channels, and 2:4 pays from 10 of both"
    assert names(masks_for(load(NET), MaskDemand(Unstructured(), nm_min_channels=10))) == ["w2", "w3", "w4", "w5"]


def test_what_is_not_selected() -> None:
    plan = masks_for(load(NET), MaskDemand(Unstructured()), wanted=lambda node, tensor: tensor != "w4")
    assert names(plan) == ["w2", "w3", "w5"]
    assert reasons(plan)["Gemm_9"] == "it is not selected"
    with pytest.raises(PlanError, match=r"no weights can be masked: 'Conv_1' is not, because it is not selected"):
        masks_for(load(NET), MaskDemand(Unstructured()), wanted=lambda node, tensor: False)


def test_threshold_counts_what_is_smaller() -> None:
    graph = load(NET)
    plan = masks_for(graph, MaskDemand(Unstructured(), threshold=0.3))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in NET.graph.initializer}
    assert [one.zeros for one in plan.tensors] == [int((np.abs(stored[one.name]) < 0.3).sum()) for one in plan.tensors]
    assert all(one.fixed for one in plan.tensors)


def test_global_takes_the_lowest_of_all() -> None:
    plan = masks_for(scaled_rows(), MaskDemand(Unstructured(), 0.5, allocation="global"))
    zeros = {one.name: one.zeros / one.size for one in plan.tensors}
    assert plan.sparsity == pytest.approx(0.5, abs=1e-3)
    assert zeros["w2"] > 0.6 > zeros["w3"]


def scaled_rows() -> Graph:
    """A few of the weights of w2 are far larger than the others."""
    proto = onnx.ModelProto()
    proto.CopyFrom(NET)
    tensor = next(one for one in proto.graph.initializer if one.name == "w2")
    values = numpy_helper.to_array(tensor).copy()
    values[:, 0] *= 30
    tensor.CopyFrom(numpy_helper.from_array(values, "w2"))
    return load(proto)


@pytest.mark.parametrize("values", [[-1.0, 1.0], [-0.5, 0.0, 0.5]])
def test_binary_and_ternary_weights_are_refused(values: list[float]) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(NET)
    tensor = next(one for one in proto.graph.initializer if one.name == "w2")
    codes = np.random.default_rng(0).choice(values, list(tensor.dims)).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(codes, "w2"))
    with pytest.raises(PlanError, match=r"the weights 'w2' of 'Conv_4' are binary or ternary codes"):
        masks_for(load(proto), MaskDemand(Unstructured()))
    plan = masks_for(load(proto), MaskDemand(Unstructured()), wanted=lambda node, tensor: node != "Conv_4")
    assert names(plan) == ["w3", "w4", "w5"]


def test_shared_weights_are_planned_once() -> None:
    proto = model(
        "x:N,8 v=8,8 w=8,8",
        "a = MatMul(x, v) b = MatMul(a, w) r = Relu(b) c = MatMul(r, w) t = Transpose<perm=[1,0]>(w) y = MatMul(c, t)",
    )
    plan = masks_for(load(proto), MaskDemand(Unstructured()))
    assert [(one.name, one.nodes) for one in plan.tensors] == [("w", ("MatMul_1", "MatMul_3", "MatMul_5"))]
    with pytest.raises(PlanError):
        masks_for(load(proto), MaskDemand(PerGroup(2, 4)))


def test_tables_and_what_else_is_read_stay_dense() -> None:
    proto = model(
        "i:i5,4 w=10,8 v=8,8 u=8,8",
        "e = Gather(w, i) a = MatMul(e, v) r = Relu(a) b = MatMul(r, u) m = ReduceSum(u) c = Mul(b, m) "
        "t = Transpose<perm=[1,0]>(w) y = MatMul(c, t)",
    )
    plan = masks_for(load(proto), MaskDemand(Unstructured()))
    assert names(plan) == ["v"]  # a table is a product with weights, so that v is not the first
    assert reasons(plan) == {
        "MatMul_3": "'ReduceSum_4' reads its weights too",
        "MatMul_7": "'Gather_0' reads its weights too",
    }


def test_a_graph_without_operators() -> None:
    with pytest.raises(PlanError, match="no operator has stored weights"):
        masks_for(load(model("x:N,4", "y = Relu(x)")), MaskDemand(Unstructured()))
