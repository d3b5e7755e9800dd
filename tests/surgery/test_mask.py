"""Zeros in stored weights: where they must be, whatever way the weights take to their operators."""

from itertools import product

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_text import model

from onnxprune.errors import SurgeryError
from onnxprune.model.io import load, to_proto
from onnxprune.plan.masks import MaskDemand, MaskPlan, masks_for
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.score.masks import Block, PerGroup, Unstructured
from onnxprune.surgery.mask import mask_weights, masked_rows

OPTIONS = SessionOptions(threads=1)


def stored(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def masked(proto: onnx.ModelProto, demand: MaskDemand) -> tuple[dict[str, np.ndarray], MaskPlan]:
    graph = load(proto)
    plan = masks_for(graph, demand)
    return stored(to_proto(mask_weights(graph, plan))), plan


@pytest.mark.parametrize(("kept", "size"), [(2, 4), (1, 4), (3, 4), (1, 2), (5, 8)])
def test_groups_run_along_the_summed_channels_of_every_operator(kept: int, size: int) -> None:
    """As TensorRT reads 2:4: Conv axis 1 within each group, ConvTranspose axis 0, MatMul and Gemm the summed axis."""
    proto = model(
        "x:N,8,6,6 f=8,8,1,1 w0=16,8,3,3 w1=16,8,3,3 w2=16,5,2,2 w3=16,5 w4=16,24 w5=24,16 w6=8,16",
        "s = Conv(x, f) a = Conv(s, w0) b = Conv<group=2>(a, w1) c = ConvTranspose(b, w2) p = GlobalAveragePool(c) "
        "v = Flatten(p) g = Gemm<transB=1, alpha=0.5>(v, w3) h = Relu(g) i = MatMul(h, w4) j = Gemm(i, w5) "
        "k = Transpose(j) y = MatMul(w6, k)",
    )
    before = stored(proto)
    found, plan = masked(proto, MaskDemand(PerGroup(kept, size)))
    summed = {"w0": 1, "w1": 1, "w2": 0, "w4": 0, "w5": 0, "w6": 1}  # w3 sums over 5
    assert [one.name for one in plan.tensors] == list(summed)
    for name, axis in summed.items():
        values = np.moveaxis(found[name], axis, -1)
        original = np.moveaxis(before[name], axis, -1)
        for *place, number in product(*map(range, (*values.shape[:-1], values.shape[-1] // size))):
            group = values[(*place, slice(number * size, (number + 1) * size))]
            whole = original[(*place, slice(number * size, (number + 1) * size))]
            assert np.count_nonzero(group) == kept
            assert set(np.flatnonzero(group)) == set(np.argsort(np.abs(whole))[size - kept :])
            assert (group[group != 0] == whole[group != 0]).all()
    assert (found["w3"] == before["w3"]).all()


def test_blocks_of_outputs_and_inputs() -> None:
    proto = model("x:N,8,6,6 f=8,8,1,1 w=8,8,3,3", "a = Conv(x, f) y = Conv(a, w)")
    tall, _ = masked(proto, MaskDemand(Block(4, 1), 0.5))
    wide, _ = masked(proto, MaskDemand(Block(1, 4), 0.5))
    zeros = tall["w"].reshape(2, 4, 8, 3, 3) == 0
    assert (zeros.all(axis=1) == zeros.any(axis=1)).all()
    zeros = wide["w"].reshape(8, 2, 4, 3, 3) == 0
    assert (zeros.all(axis=2) == zeros.any(axis=2)).all()
    assert np.count_nonzero(tall["w"]) == np.count_nonzero(wide["w"]) == 288


WAYS = {
    "transposed": "t = Transpose<perm=[1,0]>(w) y = MatMul(a, t)",
    "identity": "t = Identity(w) y = Gemm<transB=1>(a, t)",
    "left": "b = Transpose(a) t = Identity(w) y = MatMul(t, b)",
    "shared": "b = Gemm<transB=1>(a, w) c = Relu(b) y = Gemm<transB=1>(c, w)",
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_come_another_way(way: str) -> None:
    proto = model("x:N,8 f=8,8 w=8,8", f"a = MatMul(x, f) {WAYS[way]}")
    found, plan = masked(proto, MaskDemand(PerGroup(2, 4)))
    assert [one.name for one in plan.tensors] == ["w"]
    assert (np.count_nonzero(found["w"].reshape(8, 2, 4), axis=2) == 2).all()


def test_weights_in_constant_nodes() -> None:
    proto = model("x:N,4 f=4,4", "a = MatMul(x, f) w = Constant<value=float[4,2] {1,8,2,7,3,6,4,5}>() y = MatMul(a, w)")
    graph = load(proto)
    result = to_proto(mask_weights(graph, masks_for(graph, MaskDemand(PerGroup(2, 4)))))
    node = next(node for node in result.graph.node if node.op_type == "Constant")
    assert numpy_helper.to_array(node.attribute[0].t).tolist() == [[0, 8], [0, 7], [3, 0], [4, 0]]
    assert to_proto(graph) == to_proto(load(proto))  # the argument has not changed


@pytest.mark.parametrize("moved", [False, True])
def test_quantized_weights_get_their_zero_point(moved: bool) -> None:
    rng = np.random.default_rng(0)
    way = "t = Transpose<perm=[1,0]>(d) y = MatMul(a, t)" if moved else "y = MatMul(a, d)"
    proto = model("x:N,8 f=8,8 w=u8,8 s=+8 z=u8", f"a = MatMul(x, f) d = DequantizeLinear<axis=1>(w, s, z) {way}")
    for tensor in proto.graph.initializer:
        if tensor.name in ("w", "z"):
            values = rng.integers(1, 255, list(tensor.dims)).astype(np.uint8)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    before = stored(proto)
    found, plan = masked(proto, MaskDemand(PerGroup(2, 4)))
    assert plan.tensors[0].name == "w"
    real = (found["w"].astype(float) - before["z"]) * before["s"]
    whole = (before["w"].astype(float) - before["z"]) * before["s"]
    groups, old = ((values if moved else values.T).reshape(16, 4) for values in (real, whole))
    assert (np.count_nonzero(groups, axis=1) <= 2).all()
    assert (groups[groups != 0] == old[groups != 0]).all()
    for group, one in zip(groups, old, strict=True):
        assert np.abs(group).max() == np.abs(one).max()


def test_threshold_spares_an_output_that_would_be_empty() -> None:
    proto = model("x:N,3 f=3,3 w=3,2", "a = MatMul(x, f) y = MatMul(a, w)")
    values = np.array([[1, 0.1], [2, 0.3], [0.2, 0.2]], np.float32)
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(values, "w"))
    graph = load(proto)
    plan = masks_for(graph, MaskDemand(Unstructured(), threshold=0.5))
    result = mask_weights(graph, plan)
    assert stored(to_proto(result))["w"] == pytest.approx(np.array([[1, 0], [2, 0.3], [0, 0]], np.float32))
    (row,) = masked_rows(result, plan)
    assert (row.zeros, row.spared, row.empty, row.unread) == (3, 1, 0, 1)


def test_the_same_zeros_every_time_and_a_model_that_runs() -> None:
    proto = model("x:N,8,6,6 f=8,8,1,1 w=8,8,3,3", "a = Conv(x, f) y = Conv(a, w)")
    first, _ = masked(proto, MaskDemand(Unstructured(), 0.7))
    second, plan = masked(proto, MaskDemand(Unstructured(), 0.7))
    assert (first["w"] == second["w"]).all()
    result = mask_weights(load(proto), plan)
    found = open_session(result, OPTIONS).run({"x": np.ones((2, 8, 6, 6), np.float32)})["y"]
    assert found.shape == (2, 8, 4, 4)


def test_a_plan_for_another_graph() -> None:
    _, plan = masked(model("x:N,8 f=8,8 w=8,8", "a = MatMul(x, f) y = MatMul(a, w)"), MaskDemand(Unstructured()))
    with pytest.raises(SurgeryError, match="'MatMul_1' has no stored weights any more"):
        mask_weights(load(model("x:N,8 f=8,8", "b = MatMul(x, f)")), plan)
