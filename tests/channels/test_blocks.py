"""Blocks that can be dropped, against lists written by hand."""

import time
from pathlib import Path

import onnx
import pytest
from onnx import helper
from onnx_text import model
from stacks import bert, llama, residual

from onnxprune.channels.blocks import Block, find_blocks
from onnxprune.channels.groups import analyze
from onnxprune.model.io import load
from onnxprune.model.sizes import generic_shapes

MODELS = Path(__file__).parents[2] / "models"
CONV = "Conv<pads=[1,1,1,1]>"
SHAPE = "it changes the shape from ?x32x14x14 to ?x64x7x7", "it changes the shape from ?x64x7x7 to ?x128x4x4"


def blocks(source: object) -> tuple[Block, ...]:
    channels = analyze(source)
    return find_blocks(channels.graph, channels.shapes)


def ways(source: object) -> list[str]:
    """Returns entry and exit of the blocks that count, in graph order."""
    return [f"{block.entry} {block.exit}" for block in blocks(source) if block.counts]


def test_residual_network() -> None:
    found = blocks(MODELS / "resnet.onnx")
    outer = {block.name: block.reason for block in found if block.parent is None}
    stages = [f"/blocks/blocks.{place}" for place in range(5)]
    assert outer == dict(zip(stages, [None, None, SHAPE[0], None, SHAPE[1]], strict=True))
    assert [(block.entry, block.exit) for block in found if block.name == stages[1]] == [
        ("/blocks/blocks.0/Relu_1_output_0", "/blocks/blocks.1/Relu_1_output_0")
    ]
    inner = {block.name: block.parent for block in found if block.parent is not None}
    assert inner["/blocks/blocks.3/first/first.0/Conv"] == "/blocks/blocks.3"
    assert inner["/blocks/blocks.4/second/second.0/Conv"] == "/blocks/blocks.4"
    assert len(inner) == 8
    assert all(block.reason is None for block in found if block.parent is not None)


def test_mobile_network() -> None:
    """Residual ones; where the width changes, the depthwise convolution and the gate by channel are left."""
    found = {block.name for block in blocks(MODELS / "mobilenet.onnx") if block.counts}
    assert found == {
        "/blocks/blocks.0/body/body.2/body.2.0/Conv",
        "/blocks/blocks.0/body/body.4",
        "/blocks/blocks.1/body/body.4",
        "/blocks/blocks.2/body",
        "/blocks/blocks.3/body",
        "/blocks/blocks.4/body/body.2/body.2.0/Conv",
        "/blocks/blocks.4/body/body.4",
        "/head/head.1/HardSwish",
    }


def test_vision_transformer() -> None:
    found = blocks(MODELS / "vit.onnx")
    names = [f"/layers/layers.{layer}/{part}" for layer in range(4) for part in ("attention", "mlp")]
    assert [block.name for block in found if block.parent is None] == names
    first = found[0]
    assert (first.entry, first.exit, first.reason) == ("/Add_output_0", "/layers/layers.0/Add_output_0", None)
    assert first.parameters == 37441  # qkv 96x288 + 288, projection 96x96 + 96, norm 2x96, a scale
    assert next(block for block in found if block.name == names[-1]).exit == "/layers/layers.3/Add_1_output_0"


def test_layers_with_the_normalization_behind() -> None:
    assert ways(bert()) == ["x0 ya_0", "ya_0 ym_0", "ym_0 ya_1", "ya_1 ym_1"]


def test_layers_with_the_normalization_before() -> None:
    assert ways(llama()) == ["x ya_0", "ya_0 ym_0", "ym_0 ya_1", "ya_1 ym_1"]


def test_caches_are_read_by_the_caller() -> None:
    found = {block.exit: block.reason for block in blocks(llama(caches=True)) if block.parent is None}
    assert found == {
        "ya_0": "'Identity_55' outside of it reads 'ke_0'",
        "ym_0": None,
        "ya_1": "'Identity_111' outside of it reads 'ke_1'",
        "ym_1": None,
    }
    proto = residual(2)
    proto.graph.output.append(helper.make_tensor_value_info("ar1", onnx.TensorProto.FLOAT, None))
    found = {block.exit: block.reason for block in blocks(proto) if block.parent is None}
    assert found == {"r0": None, "r1": "'ar1' within it is an output of the graph"}


CASES = {
    "plain": (
        "x:N,3,8,8 ws=6,3,3,3 w1=6,6,3,3 s=6 t=6 m=6 v=+6 w2=6,6,3,3 w3=9,6,3,3 w4=9,9,3,3",
        f"c = {CONV}(x, ws) r = Relu(c) a = {CONV}(r, w1) n = BatchNormalization(a, s, t, m, v) k = Relu(n) "
        f"e = {CONV}(k, w2) q = Relu(e) g = {CONV}(q, w3) h = Relu(g) i = {CONV}(h, w4) y = Relu(i)",
        "r k, k q, h y",
    ),
    "narrow in the middle": (
        "x:N,8,4,4 w0=8,8,1,1 w1=2,8,1,1 w2=4,2,1,1 w3=4,2,3,3 w4=5,8,1,1",
        "o = Conv(x, w0) s = Conv(o, w1) r = Relu(s) a = Conv(r, w2) b = Conv<pads=[1,1,1,1]>(r, w3) "
        "c = Concat<axis=1>(a, b) z = Relu(c) y = Conv(z, w4)",
        "x o, o z",
    ),
    "recurrent": (
        "x:5,N,3 w1=1,24,3 r1=1,24,6 w2=1,24,6 r2=1,24,6 b=1,48 ax={1} wy=6,4",
        "l1 = LSTM<hidden_size=6>(x, w1, r1, b) q1 = Squeeze(l1, ax) l2 = LSTM<hidden_size=6>(q1, w2, r2) "
        "q2 = Squeeze(l2, ax) y = MatMul(q2, wy)",
        "q1 q2",
    ),
    "gate": (
        "x:N,6,4,4 w1=2,6,1,1 w2=6,2,1,1 w3=3,6,1,1",
        "p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) b = Conv(r, w2) g = Sigmoid(b) m = Mul(x, g) "
        "y = Conv(m, w3)",
        "x m",
    ),
    "a sum around several blocks is a stage": (
        "x:N,3,4,4 ws=6,3,1,1 w1=6,6,1,1 w2=6,6,1,1 w3=6,6,1,1 w4=6,6,1,1 w5=6,6,1,1 wy=4,6,1,1",
        "s = Conv(x, ws) a = Conv(s, w1) ar = Relu(a) b = Conv(ar, w2) k = Add(s, b) c = Conv(k, w3) cr = Relu(c) "
        "d = Conv(cr, w4) l = Add(k, d) e = Conv(l, w5) z = Add(e, s) y = Conv(z, wy)",
        "s k, k l, l e",
    ),
    "the whole network is none": (
        "x:N,6 w1=6,6 w2=6,6",
        "a = MatMul(x, w1) r = Relu(a) b = MatMul(r, w2) y = Add(x, b)",
        "x r, r b",
    ),
    "a mask from the same input": (
        "x:i2,5 table=6,8 w0=8,8 v0=8,8 w1=8,8 v1=8,8 wy=8,3 zero=#0 ax={-1}",
        "e = Gather(table, x) k = Equal(x, zero) c = Cast<to=1>(k) m = Unsqueeze(c, ax) "
        "a = MatMul(e, w0) am = Mul(a, m) b = MatMul(am, v0) s = Add(e, b) "
        "c1 = MatMul(s, w1) cm = Mul(c1, m) d = MatMul(cm, v1) t = Add(s, d) y = MatMul(t, wy)",
        "e s, s t",
    ),
    "what an encoder made goes around": (
        "x:N,5,8 q=1,4,8 wk0=8,8 wk1=8,8 w0=8,16 v0=16,8 w1=8,16 v1=16,8 a0=8,8 a1=8,8 wy=8,3",
        "z = Relu(x) k0 = MatMul(z, wk0) kt0 = Transpose<perm=[0,2,1]>(k0) g0 = MatMul(q, kt0) p0 = Softmax(g0) "
        "o0 = MatMul(p0, k0) s0 = Add(o0, q) f0 = MatMul(s0, w0) h0 = Relu(f0) i0 = MatMul(h0, v0) t0 = Add(s0, i0) "
        "u1 = MatMul(t0, a1) k1 = MatMul(z, wk1) kt1 = Transpose<perm=[0,2,1]>(k1) g1 = MatMul(u1, kt1) "
        "p1 = Softmax(g1) o1 = MatMul(p1, k1) "
        "s1 = Add(o1, t0) f1 = MatMul(s1, w1) h1 = Relu(f1) i1 = MatMul(h1, v1) t1 = Add(s1, i1) "
        "y = MatMul(t1, wy)",
        "z k0, s0 t0, t0 s1, s1 t1",
    ),
    "equal lengths by chance": (
        "x:B,T,6 w=6,6 v=6,6 wy=6,2",
        "a = MatMul(x, w) t = Transpose<perm=[1,0,2]>(a) b = MatMul(t, v) r = Relu(b) y = MatMul(r, wy)",
        "x a, t r",
    ),
    "another element type": (
        "x:N,6 w=6,6 wy=6,2",
        "a = MatMul(x, w) h = Cast<to=11>(a) s = Softmax(h) c = Cast<to=1>(s) y = MatMul(c, wy)",
        "x c",
    ),
    "no weights": ("x:N,6 w=6,2", "a = Relu(x) b = Sigmoid(a) c = Mul(a, b) y = MatMul(c, w)", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_a_block(case: str) -> None:
    tensors, text, expected = CASES[case]
    assert ", ".join(ways(model(tensors, text))) == expected


def test_side_outputs_have_a_reason() -> None:
    """A skip around a block may leave its entry, but what lies within it is its own."""
    text = (
        "i = Conv(x, w0) a = Conv(i, w1) r = Relu(a) b = Conv(r, w2) s = Add(i, b) t = Conv(s, w3) {} y = Conv(u, w4)"
    )
    tensors = "x:N,3,4,4 w0=6,3,1,1 w1=6,6,1,1 w2=6,6,1,1 w3=4,6,1,1 w4=2,10,1,1"
    free = blocks(model(tensors, text.format("u = Concat<axis=1>(t, i)")))
    assert [(block.entry, block.exit) for block in free if block.counts] == [("i", "s")]
    held = [block for block in blocks(model(tensors, text.format("u = Concat<axis=1>(t, r)"))) if block.entry == "i"]
    assert [block.reason for block in held if block.exit == "s"] == ["'Concat_6' outside of it reads 'r'"]


def test_a_length_may_be_read_elsewhere() -> None:
    tensors = "x:N,3,6 w0=6,6 w1=6,6 w2=6,6 wy=6,2"
    text = (
        "i = MatMul(x, w0) a = MatMul(i, w1) r = Relu(a) b = MatMul(r, w2) s = Add(i, b) "
        "n = Shape(r) q = ConstantOfShape(n) z = ReduceSum<keepdims=0>(q) t = MatMul(s, wy) y = Add(t, z)"
    )
    found = [block for block in blocks(model(tensors, text)) if block.exit == "s"]
    assert [(block.entry, block.reason, block.lengths) for block in found] == [("i", None, ("r",))]


def test_nodes_and_parameters() -> None:
    """Of shared weights, and of what others read too, nothing goes."""
    proto = model(
        "x:N,6 w=6,6 v=6,6 b=6 u=6,2",
        "a = MatMul(x, w) ab = Add(a, b) r = Relu(ab) c = MatMul(r, v) cb = Add(c, b) k = Add(cb, x) "
        "d = MatMul(k, w) e = Relu(d) g = MatMul(e, v) h = Add(g, k) y = MatMul(h, u)",
    )
    graph = load(proto)
    found = [block for block in find_blocks(graph, generic_shapes(graph)[0]) if block.parent is None]
    assert [(block.exit, block.parameters) for block in found] == [("k", 6), ("h", 0)]
    assert [graph.nodes[place].op for place in found[1].nodes] == [
        "MatMul",
        "Relu",
        "MatMul",
        "Add",
    ]


def test_names() -> None:
    proto = residual(2)
    for node in proto.graph.node:
        node.name = {"a0": "net/one/conv1", "b0": "net/one/conv2", "a1": "net/a", "b1": "net/b"}.get(
            node.output[0], "z"
        )
    assert [block.name for block in blocks(proto) if block.parent is None] == ["net/one", "z"]
    assert len({block.name for block in blocks(proto)}) == len(blocks(proto)) == 6


def test_a_node_with_bodies_is_one_node() -> None:
    branch = "g () => (float[N,6] {0}) {{ {0} = {1}(i) }}"
    proto = model(
        "x:N,6 w=6,6 u=6,6 wy=6,2 ", "i = MatMul(x, w) s = MatMul(i, u) c = Neg(i) t = Add(s, c) y = MatMul(t, wy)"
    )
    bodies = [onnx.parser.parse_graph(branch.format(name, op)) for name, op in (("p", "Relu"), ("q", "Abs"))]
    proto.graph.initializer.append(helper.make_tensor("on", onnx.TensorProto.BOOL, [], [True]))
    choice = helper.make_node("If", ["on"], ["c"], "choice", then_branch=bodies[0], else_branch=bodies[1])
    proto.graph.node[2].CopyFrom(choice)
    found = [block for block in blocks(proto) if block.counts]
    assert [(block.entry, block.exit) for block in found] == [("x", "i"), ("i", "t")]
    assert 2 in found[1].nodes


def test_large_graphs_take_no_time() -> None:
    graph = load(residual(300))
    shapes, _ = generic_shapes(graph)
    start = time.perf_counter()
    found = find_blocks(graph, shapes)
    assert time.perf_counter() - start < 2  # 0.2 s on an idle core
    assert sum(block.counts for block in found) == 300
