"""Where Q and DQ stand in small graphs, for each target, and what is said of the nodes that stay float."""

from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from onnx_text import model

from onnxprune.model.io import load
from onnxprune.model.sizes import infer_shapes
from onnxprune.quantize.emit import Scales, weight_scale, with_integers, with_pairs
from onnxprune.quantize.grids import scale_of
from onnxprune.quantize.placement import ALONE, COMPUTED, EXCLUDED, Placement, place
from onnxprune.quantize.targets import ORT_CPU, TARGETS, target_of

CONVS = "x:1,16,8,8 w=16,16,3,3 u=16,16,3,3 v=16,16,3,3"
SMALL = "x:1,16,8,8 w=16,16,1,1 u=16,16,1,1 v=16,16,1,1"
DENSE = "x:4,32 w=32,16 b=16 v=16,32"


@dataclass(frozen=True)
class Expected:
    """Weights by operator, tensors rounded for all readers, and for some: ``tensor: node.slot node.slot``."""

    weights: str
    whole: str = ""
    read: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    shares: str = ""
    scaled: dict[str, tuple[str, float]] = field(default_factory=dict)
    stored: str = ""


def placed(proto: onnx.ModelProto, target: str, wanted=None) -> tuple[Placement, Expected]:
    graph = load(proto)
    found = place(graph, infer_shapes(graph), TARGETS[target], wanted)
    names = [node.name for node in graph.nodes]
    edges = {name: sorted(f"{names[e.node]}.{e.slot}" for e in found.read[name]) for name in sorted(found.read)}
    seen = Expected(
        " ".join(weight.operator for weight in found.weights),
        " ".join(sorted(found.whole)),
        {name: " ".join(where) for name, where in edges.items()},
        {one.node: one.reason for one in found.left},
        " ".join(sorted(f"{name}={found.scale(name)}" for name in found.tensors if found.scale(name) != name)),
        dict(found.scaled),
        " ".join(f"{names[edge.node]}.{edge.slot}" for edge in found.stored),
    )
    return found, seen


NARROW = "{} inputs and {} outputs are too few: the target gains from 16 on"
TRANSPOSED = "ONNX Runtime's CPU provider has no integer kernel for it, and Q/DQ would only cost time"
CHAIN = (CONVS, "c = Conv (x, w) r = Relu (c) y = Conv (r, v)")
RESIDUAL = (CONVS, "c = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu (c) a = Conv <pads = [1, 1, 1, 1]> (r, u) "
            "s = Add (a, r) t = Relu (s) y = Conv (t, v)")  # fmt: skip
RELU6 = (f"{CONVS} lo=f#0 hi=f#6", "c = Conv (x, w) r = Clip (c, lo, hi) y = Conv (r, v)")
GATED = (SMALL, "a = Conv (x, w) p = GlobalAveragePool (a) q = Conv (p, u) g = Sigmoid (q) m = Mul (a, g) "
         "y = Conv (m, v)")  # fmt: skip
CONCAT = ("x:1,16,8,8 w=16,16,3,3 u=16,16,3,3 v=16,32,3,3",
          "a = Conv (x, w) b = Conv (x, u) c = Concat <axis = 1> (a, b) y = Conv (c, v)")  # fmt: skip
POOLED = (CONVS, "a = Conv (x, w) p = MaxPool <kernel_shape = [2, 2]> (a) y = Conv (p, v)")
SCALED = (f"{CONVS} k=f#0.25 l=f#8", "a = Conv (x, w) r = Relu (a) m = Mul (r, k) d = Div (m, l) y = Conv (d, v)")
DENSE_CHAIN = (DENSE, "a = MatMul (x, w) s = Add (a, b) r = Relu (s) y = MatMul (r, v)")
GEMMS = (DENSE, "a = Gemm (x, w, b) r = Relu (a) y = Gemm (r, v)")
ATTENTION = ("x:2,6,16 q=16,16 k=16,16 v=16,16 o=16,16",
             "a = MatMul (x, q) b = MatMul (x, k) c = MatMul (x, v) t = Transpose <perm = [0, 2, 1]> (b) "
             "s = MatMul (a, t) p = Softmax (s) m = MatMul (p, c) y = MatMul (m, o)")  # fmt: skip
BRANCHES = (SMALL, "a = Conv (x, w) r = Relu (a) b = Conv (r, u) c = Conv (x, v) s = Add (b, c) y = Relu (s)")
SPLIT = ("x:1,32,8,8 w=32,32,3,3 u=16,16,3,3 v=16,16,3,3",
         "a = Conv (x, w) s, t = Split <axis = 1> (a) b = Conv (s, u) y = Conv (t, v)")  # fmt: skip
WIDTHS = ("x:1,3,8,8 w=16,3,3,3 v=16,16,3,3 u=12,16,3,3", "a = Conv (x, w) b = Conv (a, v) y = Conv (b, u)")
ALIGNED = ("x:1,8,8,8 w=32,8,3,3 v=8,32,3,3", "a = Conv (x, w) y = Conv (a, v)")
SPREAD = (CONVS, "a = Conv (x, w) g = GlobalAveragePool (x) s = Add (a, g) y = Conv (s, v)")
UP = (CONVS, "a = ConvTranspose (x, w) r = Relu (a) y = Conv (r, v)")
SHARED = (CONVS, "a = Conv (x, w) r = Relu (a) y = Conv (r, w)")
COMPUTED_WEIGHTS = ("x:1,16,8,8 w:16,16,3,3 v=16,16,3,3", "a = Conv (x, w) y = Conv (a, v)")
ATTENDED = {"MatMul_4": COMPUTED, "MatMul_6": COMPUTED}
HEADS = {"x": "MatMul_0.0 MatMul_1.0 MatMul_2.0", "m": "MatMul_7.0"}

TABLE = [
    ("ort-cpu", CHAIN, Expected("Conv_0 Conv_2", "r y", {"x": "Conv_0.0"})),
    ("tensorrt", CHAIN, Expected("Conv_0 Conv_2", "", {"r": "Conv_2.0", "x": "Conv_0.0"})),
    ("generic", CHAIN, Expected("Conv_0 Conv_2", "", {"r": "Conv_2.0", "x": "Conv_0.0"})),
    ("ort-cpu", RESIDUAL, Expected("Conv_0 Conv_2 Conv_5", "a r t y", {"x": "Conv_0.0"})),
    ("tensorrt", RESIDUAL, Expected(
        "Conv_0 Conv_2 Conv_5", "", {"r": "Add_3.1 Conv_2.0", "t": "Conv_5.0", "x": "Conv_0.0"})),
    ("generic", RESIDUAL, Expected(
        "Conv_0 Conv_2 Conv_5", "", {"r": "Conv_2.0", "t": "Conv_5.0", "x": "Conv_0.0"})),
    ("ort-cpu", RELU6, Expected("Conv_0 Conv_2", "r y", {"x": "Conv_0.0"})),
    ("ort-cpu", GATED, Expected("Conv_0 Conv_2 Conv_5", "a g m p q y", {"x": "Conv_0.0"})),
    ("tensorrt", GATED, Expected("Conv_0 Conv_2 Conv_5", "", {"m": "Conv_5.0", "p": "Conv_2.0", "x": "Conv_0.0"})),
    ("ort-cpu", CONCAT, Expected("Conv_0 Conv_1 Conv_3", "a b c y", {"x": "Conv_0.0 Conv_1.0"})),
    ("tensorrt", CONCAT, Expected("Conv_0 Conv_1 Conv_3", "", {"c": "Conv_3.0", "x": "Conv_0.0 Conv_1.0"})),
    ("ort-cpu", POOLED, Expected("Conv_0 Conv_2", "a p y", {"x": "Conv_0.0"}, shares="p=a")),
    ("tensorrt", POOLED, Expected("Conv_0 Conv_2", "", {"p": "Conv_2.0", "x": "Conv_0.0"})),
    ("ort-cpu", SCALED, Expected(
        "Conv_0 Conv_4", "r y", {"x": "Conv_0.0"}, scaled={"m": ("r", 0.25), "d": ("r", 0.25 / 8)})),
    ("tensorrt", SCALED, Expected("Conv_0 Conv_4", "", {"d": "Conv_4.0", "x": "Conv_0.0"})),
    ("ort-cpu", DENSE_CHAIN, Expected(
        "MatMul_0 MatMul_3", "", {"r": "MatMul_3.0", "x": "MatMul_0.0"}, {"Add_1": ALONE})),
    ("tensorrt", DENSE_CHAIN, Expected(
        "MatMul_0 MatMul_3", "", {"r": "MatMul_3.0", "x": "MatMul_0.0"}, {"Add_1": ALONE})),
    ("ort-cpu", GEMMS, Expected("Gemm_0 Gemm_2", "r", {"x": "Gemm_0.0"})),
    ("generic", GEMMS, Expected("Gemm_0 Gemm_2", "", {"r": "Gemm_2.0", "x": "Gemm_0.0"})),
    ("ort-cpu", ATTENTION, Expected("MatMul_0 MatMul_1 MatMul_2 MatMul_7", "", HEADS, {
        **ATTENDED, "Softmax_5": "it comes between products of activations, which stay float"})),
    ("tensorrt", ATTENTION, Expected("MatMul_0 MatMul_1 MatMul_2 MatMul_7", "", HEADS, {
        **ATTENDED, "Softmax_5": "attention is one kernel of its own, which Q/DQ inside it would break up"})),
    ("generic", ATTENTION, Expected("MatMul_0 MatMul_1 MatMul_2 MatMul_7", "", HEADS, ATTENDED)),
    ("tensorrt", BRANCHES, Expected("Conv_0 Conv_2 Conv_3", "", {
        "c": "Add_4.1", "r": "Conv_2.0", "x": "Conv_0.0 Conv_3.0"})),
    ("ort-cpu", SPLIT, Expected("Conv_0 Conv_2 Conv_3", "a b s t y", {"x": "Conv_0.0"}, shares="s=a t=a")),
    ("ort-cpu", WIDTHS, Expected("Conv_0 Conv_1 Conv_2", "a b y", {"x": "Conv_0.0"})),
    ("tensorrt", WIDTHS, Expected("Conv_1", "", {"a": "Conv_1.0"}, {
        "Conv_0": NARROW.format(3, 16), "Conv_2": NARROW.format(16, 12)})),
    ("tensorrt", ALIGNED, Expected("Conv_0 Conv_1", "", {"a": "Conv_1.0", "x": "Conv_0.0"})),
    ("tensorrt", SPREAD, Expected("Conv_0 Conv_3", "", {"s": "Conv_3.0", "x": "Conv_0.0"}, {"Add_2": ALONE})),
    ("ort-cpu", UP, Expected("Conv_2", "y", {"r": "Conv_2.0"}, {"ConvTranspose_0": TRANSPOSED})),
    ("tensorrt", UP, Expected("ConvTranspose_0 Conv_2", "", {"r": "Conv_2.0", "x": "ConvTranspose_0.0"})),
    ("ort-cpu", SHARED, Expected("Conv_0 Conv_2", "r y", {"x": "Conv_0.0"})),
    ("ort-cpu", COMPUTED_WEIGHTS, Expected("Conv_1", "y", {"a": "Conv_1.0"}, {"Conv_0": COMPUTED})),
]  # fmt: skip


@pytest.mark.parametrize(("target", "case", "expected"), TABLE)
def test_where_pairs_stand(target: str, case: tuple[str, str], expected: Expected) -> None:
    proto = model(*case)
    before = proto.SerializeToString()
    found, seen = placed(proto, target)
    for name in ("weights", "whole", "shares", "stored"):
        assert sorted(getattr(seen, name).split()) == sorted(getattr(expected, name).split()), name
    assert seen.read == expected.read
    assert seen.left == expected.left
    assert seen.scaled == expected.scaled
    assert found.eligible == sum(node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") for node in
                                 proto.graph.node) - list(expected.left.values()).count(COMPUTED)  # fmt: skip
    assert proto.SerializeToString() == before


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt", "generic"])
@pytest.mark.parametrize("case", list(dict.fromkeys(case for _, case, _ in TABLE)), ids=lambda case: case[1][:40])
def test_laws_of_every_placement(target: str, case: tuple[str, str]) -> None:
    """Every operator with weights reads rounded numbers; all that Q/DQ name exists; nothing is rounded twice."""
    proto = model(*case)
    found, seen = placed(proto, target)
    assert not found.whole & found.read.keys()
    assert not found.scaled.keys() & set(found.tensors)
    names = {name for node in proto.graph.node for name in (*node.input, *node.output)}
    assert set(found.tensors) | found.scaled.keys() <= names
    for weight in found.weights:
        known = weight.data in found.whole or weight.data in found.scaled
        assert known or f"{weight.operator}.{weight.form.data}" in seen.read[weight.data].split()
        if target == "ort-cpu" and weight.node.op == "Conv":
            readers = [node for node in proto.graph.node if weight.result in node.input]
            clipped = readers[0].output[0] if len(readers) == 1 else None
            assert {weight.result, clipped} & found.whole, "without a Q behind it the runtime leaves it float"
    if target != "ort-cpu":
        assert not found.whole
        assert not found.scaled
    assert all(one.reason for one in found.left)
    assert not {weight.operator for weight in found.weights} & {one.node for one in found.left}


def test_scales_of_all_inputs_of_a_concat_behind_floats() -> None:
    """One scale for what TensorRT joins, also where something else reads the parts."""
    text = "a = Conv (x, w) b = Conv (x, u) c = Concat <axis = 1> (a, b) y = Conv (c, v) z = Conv (a, t)"
    parts = "x:1,16,8,8 w=16,16,1,1 u=16,16,1,1 v=16,32,1,1 t=16,16,1,1", text
    found, seen = placed(model(*parts), "tensorrt")
    assert seen.read == {"a": "Conv_4.0", "c": "Conv_3.0", "x": "Conv_0.0 Conv_1.0"}
    assert found.scale("a") == found.scale("c")


def test_what_others_read_stays_a_float_result() -> None:
    found, _ = placed(model(CONVS, "a = Conv (x, w) y = Conv (a, v) z = Exp (a)"), "ort-cpu")
    assert {"a", "y"} <= found.whole
    gemms, _ = placed(model(DENSE, "a = Gemm (x, w, b) y = Gemm (a, v) z = Exp (a)"), "ort-cpu")
    assert set(gemms.read) == {"x", "a"}, "a Gemm may write floats, of which one reader alone needs integers"


def test_a_clip_whose_bounds_are_computed_is_no_rounding() -> None:
    found, _ = placed(model(f"{CONVS} h:", "a = Conv (x, w) r = Clip (a, , h) y = Conv (r, v)"), "ort-cpu")
    assert "a" in found.whole


@pytest.mark.parametrize("number", ["f#0", "f#-2"])
def test_only_positive_numbers_are_taken_into_a_scale(number: str) -> None:
    found, _ = placed(model(f"{CONVS} k={number}", "a = Conv (x, w) m = Mul (a, k) y = Conv (m, v)"), "ort-cpu")
    assert not found.scaled


def test_tensors_that_bodies_read_keep_their_names() -> None:
    body = """z = If (o) <then_branch = t () => (float s) {{ s = Exp ({0}) }},
                         else_branch = e () => (float s) {{ s = Neg ({0}) }}>"""
    proto = model(f"{CONVS} o:b1", f"c = Conv (x, w) r = Relu (c) {body.format('c')} y = Conv (r, v)")
    found, _ = placed(proto, "ort-cpu")
    assert {"c", "r", "y"} <= found.whole | found.read.keys()
    assert "c" in found.whole, "the relu is not all that reads the convolution"
    proto = model("x:4,16 w=16,16 v=16,16 o:b1", f"a = Gemm (x, w) {body.format('a')} y = Gemm (a, v)")
    found, _ = placed(proto, "ort-cpu")
    assert "a" not in found.whole


def test_operators_inside_bodies_are_counted_and_named() -> None:
    text = """a = Conv (x, w)
        y = If (o) <then_branch = t () => (float s) { s = Conv (a, v) },
                    else_branch = e () => (float s) { s = Neg (a) }>"""
    _, seen = placed(model(f"{CONVS} o:b1", text), "ort-cpu")
    assert seen.left == {"If_1": "1 operators inside it stay float: bodies are not looked into"}


def test_selectors_choose_by_name_and_weights() -> None:
    asked: list[tuple[str, str]] = []

    def wanted(operator: str, tensor: str) -> bool:
        asked.append((operator, tensor))
        return tensor == "w"

    _, seen = placed(model(*CHAIN), "ort-cpu", wanted)
    assert sorted(asked) == [("Conv_0", "w"), ("Conv_2", "v")]
    assert (seen.weights, seen.left) == ("Conv_0", {"Conv_2": EXCLUDED})
    _, seen = placed(model(*CHAIN), "generic", lambda operator, tensor: operator == "Conv_2")
    assert (seen.weights, seen.read) == ("Conv_2", {"r": "Conv_2.0"})


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt", "generic"])
def test_other_types_stay_as_they_are(target: str) -> None:
    found, seen = placed(model(*CHAIN, dtype=np.float16), target)
    assert not found.weights
    assert not found.tensors
    assert set(seen.left.values()) == {"it does not compute in float32"}
    assert {"Conv_0", "Conv_2"} <= seen.left.keys()


def test_what_is_quantized_already_is_left_alone() -> None:
    """A placement in what another placement has made."""
    graph = load(model(*CHAIN))
    shapes = infer_shapes(graph)
    found = place(graph, shapes, ORT_CPU)
    scales = {name: scale_of(-1.0, 1.0, ORT_CPU.activations) for name in found.tensors}
    weights = {weight.result: weight_scale(weight, ORT_CPU.weights) for weight in found.weights}
    made = with_integers(with_pairs(graph, found, scales), found, Scales(scales, weights), ORT_CPU)
    again = place(made, infer_shapes(made), ORT_CPU)
    assert not again.weights
    assert {one.reason for one in again.left} == {"its weights are quantized already"}


def test_weights_on_the_left_of_a_product() -> None:
    _, seen = placed(model("x:1,16,20 w=24,16 v=20,16", "a = MatMul (w, x) y = MatMul (a, v)"), "generic")
    assert (seen.weights, list(seen.left)) == ("MatMul_1", ["MatMul_0"])
    assert "on the left of the product" in seen.left["MatMul_0"]


def test_targets_by_name() -> None:
    assert [target_of(name).name for name in TARGETS] == ["ort-cpu", "ort-cuda", "tensorrt", "generic"]
    for target in TARGETS.values():
        assert (target.activations.symmetric, target.weights.symmetric) == (not target.name.startswith("ort"), True)
