"""Repair of models that another tool made smaller: blocks dropped, weights stored otherwise, tensors renamed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_text import model

import onnxprune as op
from onnxprune.channels.groups import analyze
from onnxprune.errors import PlanError
from onnxprune.model.fold import store_moved
from onnxprune.model.io import load, to_proto
from onnxprune.recover.alignment import align, rename
from onnxprune.recover.least_squares import solve
from onnxprune.recover.matching import find_removals
from onnxprune.recover.recover import recover
from onnxprune.recover.sequential import Calibration, Settings, repair
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.surgery.gone import Gone
from onnxprune.surgery.slice import slice_channels

MODELS = Path(__file__).parents[2] / "models"
OPTIONS = SessionOptions(threads=1)

NET = (
    "x:N,3,8,8 w0=12,3,3,3 w1=12,12,3,3 b1=12 w2=12,12,3,3 w3=24,12 b3=24 w4=24,10 b4=10",
    "i = Conv<pads=[1,1,1,1]>(x, w0) a = Relu(i) c = Conv<pads=[1,1,1,1]>(a, w1, b1) r = Relu(c) "
    "d = Conv<pads=[1,1,1,1]>(r, w2) t = Add(d, a) q = Relu(t) p = GlobalAveragePool(q) f = Flatten(p) "
    "g = Gemm<transB=1>(f, w3, b3) h = Relu(g) m = MatMul(h, w4) y = Add(m, b4)",
)
Change = Callable[[onnx.ModelProto], None]


def images(seed: int, count: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 3, 8, 8), np.float32)}


def small_model() -> tuple[onnx.ModelProto, onnx.ModelProto, dict[str, list[int]]]:
    """Returns a model, one with fewer channels, and what was removed."""
    proto = model(*NET)
    channels = analyze(proto)
    removals = dict(op.plan(channels, op.score(channels), 0.4, round_to=1).removals)
    return proto, to_proto(slice_channels(channels, removals)), removals


def without_block(path: Path, first: str, last: str) -> onnx.ModelProto:
    """Returns a model in which what reads one tensor reads an earlier one, and no node is left that nothing reads."""
    proto = onnx.load(path)
    for node in proto.graph.node:
        for slot, name in enumerate(node.input):
            if name == last:
                node.input[slot] = first
    needed = {value.name for value in proto.graph.output}
    kept = []
    for node in reversed(proto.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    stored = [tensor for tensor in proto.graph.initializer if tensor.name in needed]
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(reversed(kept))
    proto.graph.initializer.extend(stored)
    return proto


def right(proto: onnx.ModelProto) -> float:
    data = np.load(MODELS / "validation.npz")
    logits = open_session(proto, SessionOptions(threads=2)).run({"image": data["image"][:600]})["logits"]
    return float((logits.argmax(axis=1) == data["labels"][:600]).mean())


@pytest.mark.parametrize(
    ("name", "first", "last", "gain"),
    [
        ("resnet", "/blocks/blocks.2/Relu_1_output_0", "/blocks/blocks.3/Relu_1_output_0", 0.15),
        ("vit", "/Add_output_0", "/layers/layers.0/Add_1_output_0", 0.3),
    ],
)
def test_a_dropped_block(name: str, first: str, last: str, gain: float) -> None:
    path = MODELS / f"{name}.onnx"
    small = without_block(path, first, last)
    better = to_proto(recover(small, path, {"image": np.load(MODELS / "calibration.npz")["image"][:96]}))
    assert [node.output for node in better.graph.node] == [
        node.output for node in to_proto(analyze(small).graph).graph.node
    ]
    assert right(better) > right(small) + gain


def constants(proto: onnx.ModelProto) -> None:
    """Weights in nodes of their own."""
    for tensor in reversed(proto.graph.initializer):
        proto.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del proto.graph.initializer[:]


def moved(proto: onnx.ModelProto) -> None:
    """Matrices turned around and behind a Transpose, everything else behind an Identity."""
    for tensor in list(proto.graph.initializer):
        values, name = numpy_helper.to_array(tensor), tensor.name
        turned = values.ndim == 2
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values.T) if turned else values, f"{name}_0"))
        proto.graph.node.insert(
            0, helper.make_node("Transpose" if turned else "Identity", [f"{name}_0"], [f"{name}_1"])
        )
        for node in proto.graph.node[1:]:
            for slot, read in enumerate(node.input):
                node.input[slot] = f"{name}_1" if read == name else read


def renamed_weights(proto: onnx.ModelProto) -> None:
    names = {tensor.name: f"onnx::Weight_{place}" for place, tensor in enumerate(proto.graph.initializer)}
    rename_in(proto, names)


def renamed_results(proto: onnx.ModelProto) -> None:
    names = [name for node in proto.graph.node[:-1] for name in node.output]
    rename_in(proto, {name: f"value_{name}" for name in names})


def rename_in(proto: onnx.ModelProto, names: dict[str, str]) -> None:
    for node in proto.graph.node:
        for field in (node.input, node.output):
            for slot, name in enumerate(field):
                field[slot] = names.get(name, name)
    for tensor in proto.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


@pytest.mark.parametrize("change", [constants, moved, renamed_weights, renamed_results])
def test_other_layouts_and_names_come_to_the_same(change: Change) -> None:
    proto, small, removals = small_model()
    expected = open_session(recover(small, proto, images(0, 96)), OPTIONS).run(images(1, 32))["y"]
    other = onnx.ModelProto()
    other.CopyFrom(small)
    change(other)
    graph = load(other)
    align(graph, analyze(proto).graph)
    assert find_removals(analyze(proto), graph) == removals
    better = to_proto(recover(other, proto, images(0, 96)))
    np.testing.assert_allclose(open_session(better, OPTIONS).run(images(1, 32))["y"], expected, rtol=1e-3, atol=1e-3)
    assert [value.name for value in better.graph.output] == ["y"]
    made = {name for node in other.graph.node for name in node.output if node.op_type in ("Conv", "Relu", "Gemm")}
    assert made <= {name for node in better.graph.node for name in node.output}


def test_a_dropped_block_with_other_names() -> None:
    """What is left is found by the names of weights, as far as there are any."""
    proto = model(*NET)
    small = model(*NET)
    for node in small.graph.node:
        for slot, name in enumerate(node.input):
            node.input[slot] = "a" if name == "q" else name
    del small.graph.node[2:7]
    del small.graph.initializer[1:4]
    renamed_results(small)
    graph = load(small)
    old = align(graph, analyze(proto).graph)
    assert {new: name for new, name in old.items() if new in "iapgmh"} == {name: f"value_{name}" for name in "iagmh"}
    rename(graph, old)
    assert [node.output[0] for node in to_proto(graph).graph.node] == [node.output[0] for node in small.graph.node]
    expected, before, after = (
        open_session(one, OPTIONS).run(images(1, 64))["y"]
        for one in (proto, small, recover(small, proto, images(0, 96)))
    )
    assert np.square(after - expected).mean() < 0.2 * np.square(before - expected).mean()


def test_models_without_a_name_in_common() -> None:
    proto, small, _ = small_model()
    renamed_weights(small)
    renamed_results(small)
    rename_in(small, {"y": "logits"})
    small.graph.output[0].name = "logits"
    with pytest.raises(PlanError, match=r"no node of the smaller model .* restore the names of its weights$"):
        recover(small, proto, images(0, 8))


def test_other_inputs() -> None:
    proto, small, _ = small_model()
    rename_in(small, {"x": "image"})
    small.graph.input[0].name = "image"
    with pytest.raises(PlanError, match=r"has the inputs \['image'\] and the original \['x'\]: rename them"):
        recover(small, proto, images(0, 8))


def test_another_shape_is_no_target() -> None:
    """A convolution that no longer skips places has no target, and what is behind it is repaired."""
    tensors = "x:N,3,8,8 w0=12,3,3,3 w1=12,12,3,3 w2=10,12"
    text = (
        "i = Conv<strides=[{0},{0}]>(x, w0) r = Relu(i) c = Conv(r, w1) q = Relu(c) p = GlobalAveragePool(q) "
        "f = Flatten(p) y = Gemm<transB=1>(f, w2)"
    )
    proto, small = model(tensors, text.format(2)), model(tensors, text.format(1))
    channels = analyze(proto)
    graph = load(small)
    graph.nodes[0].inputs[1].values = graph.nodes[0].inputs[1].values * np.float32(0.5)
    runs = Calibration([images(0, 64)], [images(1, 32)])
    better, found = repair(graph, channels.graph, Gone(channels, {}), runs, Settings(solve, options=OPTIONS))
    assert [one.node for one in found] == ["Gemm_6"]
    assert found[0].kept
    assert [value.name for value in better.outputs] == ["y"]


def test_names_make_room_and_come_back() -> None:
    graph = load(model(*NET))
    names = [node.outputs[0].name for node in graph.nodes]
    old = rename(graph, {"i": "r", "a": "i"})
    assert [node.outputs[0].name for node in graph.nodes][:4] == ["r", "i", "c", "r_"]
    rename(graph, old)
    assert [node.outputs[0].name for node in graph.nodes] == names


def test_shared_matrices_stay_shared() -> None:
    """Only what nothing else reads is stored as it is moved."""
    text = "t = Transpose(w) a = MatMul(x, t) r = Relu(a) u = Transpose(v) b = MatMul(r, u) y = MatMul(b, v)"
    proto = model("x:N,8 w=12,8 v=6,12", text)
    graph = load(proto)
    store_moved(graph)
    assert [node.op for node in graph.nodes] == ["MatMul", "Relu", "Transpose", "MatMul", "MatMul"]
    data = {"x": np.random.default_rng(0).standard_normal((5, 8), np.float32)}
    expected, found = (open_session(one, OPTIONS).run(data)["y"] for one in (proto, graph))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
