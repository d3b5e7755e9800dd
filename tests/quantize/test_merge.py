"""Operators that have taken in what scales and shifts their results compute what they did before."""

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_text import model, random_feeds

from onnxprune.model.io import load, to_proto
from onnxprune.quantize.merge import merged
from onnxprune.runtime.session import SessionOptions, open_session

NORM = "g=+{0} h={0} m={0} p=+{0}"
FLAT = "x:2,6,9,9 w=8,6,3,3 "


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return list(open_session(proto, SessionOptions(threads=1, optimize=False)).run(feeds).values())


def check(proto: onnx.ModelProto, operators: str) -> onnx.ModelProto:
    """The merged model has these operators, and computes the same."""
    given = proto.SerializeToString()
    graph = load(proto)
    held = to_proto(graph).SerializeToString()
    found = to_proto(merged(graph))
    assert to_proto(graph).SerializeToString() == held
    assert proto.SerializeToString() == given
    onnx.checker.check_model(found, full_check=True)
    assert " ".join(node.op_type for node in found.graph.node) == operators
    for name in ("input", "output"):
        assert [one.name for one in getattr(found.graph, name)] == [one.name for one in getattr(proto.graph, name)]
    feeds = random_feeds(proto, np.random.default_rng(1))
    for before, after in zip(run(proto, feeds), run(found, feeds), strict=True):
        assert before.shape == after.shape
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5 * np.abs(before).max())
    return found


CONVOLUTIONS = [
    ("x:2,6,12 w=8,6,3", "a = Conv (x, w)", (8, 1)),
    (FLAT, "a = Conv (x, w)", (8, 1, 1)),
    (FLAT + "b=8", "a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b)", (8, 1, 1)),
    ("x:2,6,9,9 w=8,3,3,3 b=8", "a = Conv <group = 2> (x, w, b)", (8, 1, 1)),
    ("x:2,6,9,9 w=12,1,3,3", "a = Conv <group = 6> (x, w)", (12, 1, 1)),
    ("x:1,2,5,5,5 w=4,2,2,2,2 b=4", "a = Conv (x, w, b)", (4, 1, 1, 1)),
    ("x:2,6,7 w=6,8,3 b=8", "a = ConvTranspose (x, w, b)", (8, 1)),
    ("x:2,6,5,5 w=6,8,3,3", "a = ConvTranspose <strides = [2, 2]> (x, w)", (8, 1, 1)),
    ("x:2,6,5,5 w=6,4,3,3 b=8", "a = ConvTranspose <group = 2> (x, w, b)", (8, 1, 1)),
    ("x:1,2,3,3,3 w=2,4,2,2,2", "a = ConvTranspose (x, w)", (4, 1, 1, 1)),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: f"{case[1]} {case[0].split()[0]}")
def test_convolutions(case: tuple[str, str, tuple[int, ...]]) -> None:
    tensors, text, shape = case
    op, size = text.split()[2], ",".join(map(str, shape))
    chains = [
        "y = BatchNormalization (a, g, h, m, p)",
        "c = BatchNormalization <epsilon = 0.01> (a, g, h, m, p) d = Mul (c, u) e = Add (d, v) y = Relu (e)",
        "c = Mul (u, a) d = Sub (c, v) e = Div (d, q) y = Add (s, e)",
        "c = Add (v, a) d = Mul (c, s) y = BatchNormalization (d, g, h, m, p)",
    ]
    for chain in chains:
        stored = f"{NORM.format(shape[0])} u={size} v={size} q=+{size} s=f#1.5"
        check(model(f"{tensors} {stored}", f"{text} {chain}"), f"{op} Relu" if "Relu" in chain else op)


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ("x:4,6 w=6,8", "Gemm (x, w)"),
        ("x:4,6 w=6,8 b=8", "Gemm (x, w, b)"),
        ("x:4,6 w=8,6 b=8", "Gemm <transB = 1> (x, w, b)"),
        ("x:4,6 w=8,6 b=8", "Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)"),
        ("x:4,6 w=6,8 b=1,8", "Gemm <beta = 0.25> (x, w, b)"),
        ("x:4,6 w=6,8", "Gemm <alpha = -2.0, beta = 4.0> (x, w)"),
        ("x:6,4 w=6,8 b=8", "Gemm <transA = 1, beta = 3.0> (x, w, b)"),
        ("x:4,6 w=6,8 b=1", "Gemm <beta = 3.0> (x, w, b)"),
    ],
)
def test_products_with_a_bias(tensors: str, text: str) -> None:
    stored = f"{NORM.format(8)} u=8 v=1,8 s=f{{0.5}}"
    check(model(f"{tensors} {stored}", f"y = {text}"), "Gemm")
    check(model(f"{tensors} {stored}", f"a = {text} b2 = Mul (a, u) y = Div (b2, s)"), "Gemm")
    check(model(f"{tensors} {stored}", f"a = {text} c = Mul (a, u) d = Add (c, v) y = Sub (d, u)"), "Gemm")
    check(model(f"{tensors} {stored}", f"a = {text} y = BatchNormalization (a, g, h, m, p)"), "Gemm")


def test_a_product_without_a_bias_takes_in_factors_alone() -> None:
    tensors = "x:2,4,6 w=6,8 u=8 v=1,8 s=f#3 b=8"
    check(model(tensors, "a = MatMul (x, w) c = Mul (a, u) d = Div (c, s) y = Mul (v, d)"), "MatMul")
    check(model(tensors, "a = MatMul (x, w) c = Mul (a, u) d = Add (c, b) y = Mul (d, u)"), "MatMul Add Mul")


def test_gemms_lose_their_factors() -> None:
    found = check(model("x:4,6 w=6,8 b=8", "y = Gemm <alpha = 0.5, beta = 2.0> (x, w, b)"), "Gemm")
    assert not {attribute.name for attribute in found.graph.node[0].attribute} & {"alpha", "beta"}


@pytest.mark.parametrize(
    "text",
    [
        "a = Gemm <beta = 2.0> (x, w, b) y = Gemm <beta = 3.0> (x, w2, b)",
        "a = Gemm <beta = 0.5> (x, w, b) r = Mul (a, u) y = Gemm (x, w2, b)",
        "c = Gemm (x, w, b) a = Mul (c, u) d = Gemm (x, w2, b) y = Add (d, u)",
    ],
)
def test_a_bias_that_several_share(text: str) -> None:
    """What one does with it is none of the other's business."""
    proto = model("x:4,6 w=6,8 w2=6,8 b=8 u=8", text)
    feeds = random_feeds(proto, np.random.default_rng(1))
    for before, after in zip(run(proto, feeds), run(to_proto(merged(load(proto))), feeds), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5 * np.abs(before).max())


BN = f"{NORM.format(8)} {FLAT}"


@pytest.mark.parametrize(
    ("tensors", "text", "operators"),
    [
        # others read what lies between
        (BN, "a = Conv (x, w) y = BatchNormalization (a, g, h, m, p) z = Relu (a)", "Conv BatchNormalization Relu"),
        # what is added is not the same for all places, or is computed
        (FLAT + "u=7,7", "a = Conv (x, w) y = Mul (a, u)", "Conv Mul"),
        (FLAT + "u:8,1,1", "a = Conv (x, w) y = Mul (a, u)", "Conv Mul"),
        # a number divided by the result
        (FLAT + "u=+8,1,1", "a = Conv (x, w) y = Div (u, a)", "Conv Div"),
        (FLAT + "u=8,1,1", "a = Conv (x, w) y = Sub (u, a)", "Conv Sub"),
        # the result squared
        (FLAT, "a = Conv (x, w) y = Mul (a, a)", "Conv Mul"),
        # a larger result
        (FLAT + "u=2,1,8,1,1", "a = Conv (x, w) y = Mul (a, u)", "Conv Mul"),
        # nothing to merge
        (FLAT + "u=8,1,1", "a = Conv (x, w) r = Relu (a) y = Mul (r, u)", "Conv Relu Mul"),
        # normalization of a tensor of another rank
        ("x:2,4,6 w=6,8 g=+4 h=4 m=4 p=+4", "a = MatMul (x, w) y = BatchNormalization (a, g, h, m, p)",
         "MatMul BatchNormalization"),
    ],
)  # fmt: skip
def test_what_is_not_merged(tensors: str, text: str, operators: str) -> None:
    check(model(tensors, text), operators)


def test_results_that_are_outputs_stay() -> None:
    proto = model(BN, "a = Conv (x, w) y = BatchNormalization (a, g, h, m, p)")
    proto.graph.output.append(onnx.helper.make_tensor_value_info("a", 1, [2, 8, 7, 7]))
    check(proto, "Conv BatchNormalization")


def test_results_that_bodies_read_stay() -> None:
    body = """z = If (o) <then_branch = t () => (float[2, 8, 7, 7] s) { s = Exp (a) },
                         else_branch = e () => (float[2, 8, 7, 7] s) { s = Neg (a) }>"""
    check(model(f"{FLAT} u=8,1,1 o:b1", f"a = Conv (x, w) y = Mul (a, u) {body}"), "Conv Mul If")


def test_weights_that_several_share_stay() -> None:
    proto = model("x:2,6,9,9 w=6,6,3,3 u=6,1,1", "a = Conv (x, w) c = Mul (a, u) y = Conv (c, w)")
    found = check(proto, "Conv Mul Conv")
    assert sum(len(one.dims) == 4 for one in found.graph.initializer) == 1


def test_weights_in_nodes_and_moved_ones_become_stored() -> None:
    proto = model("x:2,6,9,9 x2:4,6 w=8,6,3,3 v=8,6 u=8,1,1",
                  "a = Conv (x, w) y = Mul (a, u) t = Transpose (v) i = Identity (t) z = MatMul (x2, i)")  # fmt: skip
    for tensor in list(proto.graph.initializer):
        if tensor.name in ("w", "v"):
            node = onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
            proto.graph.node.insert(0, node)
            proto.graph.initializer.remove(tensor)
    check(proto, "Conv MatMul")


def test_chains_one_after_another() -> None:
    proto = model(f"x:2,6,9,9 w=8,6,3,3 {NORM.format(8)} v=4,8,3,3 g2=+4 h2=4 m2=4 p2=+4",
                  "a = Conv (x, w) b = BatchNormalization (a, g, h, m, p) r = Relu (b) c = Conv (r, v) "
                  "y = BatchNormalization (c, g2, h2, m2, p2)")  # fmt: skip
    found = check(proto, "Conv Relu Conv")
    assert [len(node.input) for node in found.graph.node] == [3, 1, 3]


@pytest.mark.parametrize("case", CONVOLUTIONS[1:5] + CONVOLUTIONS[7:8], ids=lambda case: case[1])
def test_in_double_precision(case: tuple[str, str, tuple[int, ...]]) -> None:
    """Only weights and biases change, by float64's rounding: ONNX's own reference computes the same."""
    tensors, text, shape = case
    proto = model(
        f"{tensors} {NORM.format(shape[0])}", f"{text} y = BatchNormalization (a, g, h, m, p)", dtype=np.float64
    )
    feeds = random_feeds(proto, np.random.default_rng(1))
    before = ReferenceEvaluator(proto).run(None, feeds)[0]
    after = ReferenceEvaluator(to_proto(merged(load(proto)))).run(None, feeds)[0]
    np.testing.assert_allclose(after, before, rtol=1e-10, atol=1e-10)
