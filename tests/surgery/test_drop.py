"""Dropped blocks: what is left computes what a network built without them does, under the names that a repair needs."""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_text import model, random_feeds
from stacks import bert, llama, residual

from onnxprune.channels.blocks import Block, find_blocks
from onnxprune.errors import PlanError
from onnxprune.model.graph import stored_tensors
from onnxprune.model.io import Graph, load, to_proto
from onnxprune.model.sizes import generic_shapes
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.surgery.drop import drop_blocks

MODELS = Path(__file__).parents[2] / "models"
OPTIONS = SessionOptions(threads=1)
SIZES = {"N": 2, "T": 5, "batch": 2}
Build = Callable[..., onnx.ModelProto]


def found(source: object) -> tuple[Graph, tuple[Block, ...]]:
    graph = load(source)
    return graph, find_blocks(graph, generic_shapes(graph)[0])


def of(blocks: Collection[Block], *exits: str) -> list[Block]:
    by_exit = {block.exit: block for block in blocks}
    return [by_exit[name] for name in exits]


def outputs(source: object) -> dict[str, np.ndarray]:
    proto = source if isinstance(source, onnx.ModelProto) else to_proto(source)
    onnx.checker.check_model(proto)
    return open_session(proto, OPTIONS).run(random_feeds(proto, np.random.default_rng(0), SIZES))


def made(graph: Graph) -> list[str]:
    return [tensor.name for node in graph.nodes for tensor in node.outputs]


@pytest.mark.parametrize(
    ("build", "exits"),
    [(residual, {0: "r0", 1: "r1", 2: "r2"})]
    + [(build, {"a0": "ya_0", "m0": "ym_0", "a1": "ya_1", "m1": "ym_1"}) for build in (bert, llama)],
)
def test_what_is_left_is_the_network_without_the_block(build: Build, exits: dict) -> None:
    graph, blocks = found(build(len(exits) if build is residual else 2))
    ends = list(exits)
    for without in [*([end] for end in ends), ends[1:3]]:
        small = drop_blocks(graph, of(blocks, *(exits[name] for name in without)))
        expected = build(len(exits) if build is residual else 2, without=without)
        (result,), (wanted,) = outputs(small).values(), outputs(expected).values()
        np.testing.assert_array_equal(result, wanted)
        assert sorted(node.op for node in small.nodes) == sorted(node.op_type for node in expected.graph.node)
        assert len(list(stored_tensors(small))) == len(expected.graph.initializer)
    assert made(graph) == made(load(build(len(exits) if build is residual else 2)))  # it was not changed


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "vit"])
def test_every_block_goes_alone_and_all_together(name: str) -> None:
    graph, blocks = found(MODELS / f"{name}.onnx")
    whole = outputs(graph)["logits"]
    possible = [block for block in blocks if block.reason is None]
    for chosen in [*([block] for block in possible), possible]:
        small = drop_blocks(graph, chosen)
        result = outputs(small)["logits"]
        assert result.shape == whole.shape
        assert not np.allclose(result, whole)
        assert len(graph.nodes) - len(small.nodes) >= len(set().union(*(block.nodes for block in chosen)))


def test_names_of_what_took_the_place() -> None:
    """The Relu before the block writes what the one behind it wrote, and the sums before them are alike too."""
    graph, blocks = found(residual(3))
    small = drop_blocks(graph, of(blocks, "r1"))
    assert made(small) == ["c", "r", "a0", "ar0", "b0", "s1", "r1", "a2", "ar2", "b2", "s2", "r2", "p", "f", "y"]
    assert [tensor.name for tensor in small.nodes[5].inputs] == ["b0", "r"]
    assert made(drop_blocks(graph, of(blocks, "r0", "r2")))[:7] == ["s0", "r0", "a1", "ar1", "b1", "s2", "r2"]
    assert made(drop_blocks(graph, of(blocks, "r0", "r1", "r2"))) == ["s2", "r2", "p", "f", "y"]


def test_the_inner_one_of_two_goes_with_the_outer_one() -> None:
    graph, blocks = found(residual(2))
    inner, outer = of(blocks, "b1", "r1")
    assert inner.parent == outer.name
    assert made(drop_blocks(graph, [inner, outer])) == made(drop_blocks(graph, [outer]))
    assert made(drop_blocks(graph, [inner]))[6:] == ["r0", "a1", "b1", "s1", "r1", "p", "f", "y"]


def test_other_readers_keep_the_name_of_the_entry() -> None:
    proto = model(
        "x:N,3,4,4 w0=6,3,1,1 w1=6,6,1,1 w2=6,6,1,1 w3=4,6,1,1 w4=2,10,1,1",
        "i = Conv(x, w0) a = Conv(i, w1) r = Relu(a) b = Conv(r, w2) s = Add(i, b) t = Conv(s, w3) "
        "u = Concat<axis=1>(t, i) y = Conv(u, w4)",
    )
    graph, blocks = found(proto)
    assert made(drop_blocks(graph, of(blocks, "s"))) == ["i", "t", "u", "y"]


@pytest.mark.parametrize("fixed", ["x", "i"])
def test_outputs_keep_their_names(fixed: str) -> None:
    """Where an input of the graph, or what is another output, takes the place of an output, an Identity writes it."""
    text = "a = MatMul(i, w1) r = Relu(a) b = MatMul(r, w2) s = Add(i, b) y = Relu(s)"
    graph, blocks = found(model("x:N,6 w0=6,6 w1=6,6 w2=6,6", "i = MatMul(x, w0) " + text))
    if fixed == "x":
        graph, blocks = found(model("x:N,6 w1=6,6 w2=6,6 w0=6,6", text.replace("i,", "x,") + " z = MatMul(x, w0)"))
    else:
        graph.outputs.append(graph.nodes[0].outputs[0])
        graph.outputs[1].dtype, graph.outputs[1].shape = np.dtype(np.float32), ["N", 6]
    declared = [(tensor.name, tensor.dtype, tensor.shape) for tensor in graph.outputs]
    small = drop_blocks(graph, of(blocks, "y"))
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in small.outputs] == declared
    assert [node.op for node in small.nodes] == ["MatMul", "Identity"]
    values = outputs(small)
    feeds = random_feeds(to_proto(graph), np.random.default_rng(0), SIZES)
    np.testing.assert_array_equal(values["y"], feeds["x"] if fixed == "x" else values["i"])


def test_an_output_is_written_by_what_took_its_place() -> None:
    text = "i = MatMul(x, w0) a = MatMul(i, w1) r = Relu(a) b = MatMul(r, w2) y = Add(i, b)"
    graph, blocks = found(model("x:N,6 w0=6,6 w1=6,6 w2=6,6", text))
    small = drop_blocks(graph, of(blocks, "y"))
    assert [(node.op, node.outputs[0].name) for node in small.nodes] == [("MatMul", "y")]
    assert small.outputs[0].shape == graph.outputs[0].shape
    np.testing.assert_array_equal(outputs(small)["y"], outputs(model("x:N,6 w0=6,6", "y = MatMul(x, w0)"))["y"])


def test_what_bodies_read_is_dropped_too() -> None:
    proto = model(
        "x:N,6 w0=6,6 w1=6,6 w2=6,6 wy=6,2",
        "h = MatMul(x, w0) i = Add(h, x) a = MatMul(i, w1) r = Relu(a) b = MatMul(r, w2) s = Add(i, b) "
        "c = Neg(s) y = MatMul(c, wy)",
    )
    proto.graph.initializer.append(helper.make_tensor("on", onnx.TensorProto.BOOL, [], [True]))
    bodies = [onnx.parser.parse_graph(f"g () => (float[N,6] o) {{ o = {op}(s) }}") for op in ("Neg", "Abs")]
    proto.graph.node[6].CopyFrom(
        helper.make_node("If", ["on"], ["c"], "choice", then_branch=bodies[0], else_branch=bodies[1])
    )
    graph, blocks = found(proto)
    small = drop_blocks(graph, of(blocks, "s"))
    assert [node.op for node in small.nodes] == ["MatMul", "Add", "If", "MatMul"]
    expected = model("x:N,6 w0=6,6 wy=6,2", "h = MatMul(x, w0) i = Add(h, x) c = Neg(i) y = MatMul(c, wy)")
    np.testing.assert_array_equal(outputs(small)["y"], outputs(expected)["y"])


def test_lengths_are_read_at_the_entry() -> None:
    proto = model(
        "x:N,3,6 w0=6,6 w1=6,6 w2=6,6 wy=6,2",
        "i = MatMul(x, w0) a = MatMul(i, w1) r = Relu(a) b = MatMul(r, w2) s = Add(i, b) "
        "n = Shape(r) q = ConstantOfShape(n) z = ReduceSum<keepdims=0>(q) t = MatMul(s, wy) y = Add(t, z)",
    )
    graph, blocks = found(proto)
    small = drop_blocks(graph, of(blocks, "s"))
    assert made(small) == ["s", "n", "q", "z", "t", "y"]
    outputs(small)


def test_nodes_that_nothing_read_before_stay() -> None:
    graph, blocks = found(residual(2))
    graph.nodes.append(load(model("x:2", "unread = Neg(x)")).nodes[0])
    graph.nodes[-1].inputs[0] = graph.inputs[0]
    assert made(drop_blocks(graph, of(blocks, "r1")))[-1] == "unread"


def test_refusals() -> None:
    graph, blocks = found(MODELS / "resnet.onnx")
    held = next(block for block in blocks if block.reason is not None)
    with pytest.raises(
        PlanError, match=r"block '/blocks/blocks.2' cannot be dropped \(it changes the shape from .*\): "
    ):
        drop_blocks(graph, [held])
    with pytest.raises(PlanError, match="drops block 'b', which the model does not have: make the plan anew"):
        drop_blocks(graph, [replace(blocks[0], name="b", exit="nothing")])
