"""Groups, their members and their reasons, against hand-made examples and a plain union of sets."""

# ruff: noqa: E501 (ONNX text reads best on one line)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import model

from onnxprune.channels.collect import collect
from onnxprune.channels.facts import Axis
from onnxprune.channels.groups import Channels, analyze
from onnxprune.channels.units import find_units
from onnxprune.model.io import load
from onnxprune.model.sizes import infer_shapes

CHAIN = ("x:2,3 w=3,6 b=6 v=6,4", "a = MatMul(x, w) c = Add(a, b) r = Relu(c) y = MatMul(r, v)")


def test_axes_that_touch_no_weight_cost_nothing() -> None:
    text = "a = Reshape(x, s) b = Transpose<perm=[1,0,2]>(a) c = Reshape(b, t) e = MatMul(c, w) y = MatMul(e, v)"
    graph = load(model("x:N,3 s={-1,7,3} t={-1,3} w=3,6 v=6,4", text))
    shapes = infer_shapes(graph, {"x": (700_000, 3)})
    units = find_units(collect(graph, shapes), {"w", "v"}, inexact=False)
    assert units.label.size < 100
    assert [group.units for group in analyze(graph, {"x": (700_000, 3)}).prunable] == [6]


def only(channels: Channels, units: int) -> object:
    (group,) = [group for group in channels.groups if group.units == units]
    return group


def reasons(tensors: str, text: str, opset: int = 17) -> dict[int, str | None]:
    """Returns why groups are frozen, by their number of units."""
    return {group.units: group.frozen for group in analyze(model(tensors, text, opset)).groups}


def test_a_group_has_everything_that_goes_together() -> None:
    group = only(analyze(model(*CHAIN)), 6)
    assert group.name == "MatMul_0"
    assert group.frozen is None
    assert group.exact
    assert group.width == 1
    assert set(group.weights) == {Axis("w", 1), Axis("b", 0), Axis("v", 0)}
    (member,) = group.members
    assert set(member.axes) == {*group.weights, Axis("a", 1), Axis("c", 1), Axis("r", 1)}
    assert member.channels.tolist() == member.units.tolist() == [0, 1, 2, 3, 4, 5]
    assert group.axes == 6


def test_graph_inputs_and_outputs_are_frozen() -> None:
    found = reasons(*CHAIN)
    assert found[3] == "is the graph input 'x'"
    assert found[4] == "is the graph output 'y'"


def test_the_boundary_can_be_left_out() -> None:
    channels = analyze(model(*CHAIN), boundary=False)
    assert sorted(group.units for group in channels.prunable) == [2, 3, 4, 6]


def test_units_of_one_axis_may_belong_to_different_groups() -> None:
    channels = analyze(
        model("x:2,3 w=3,7 v=2,4 u=5,4 s={2,5}", "a = MatMul(x, w) l, r = Split<axis=1>(a, s) p = MatMul(l, v) q = MatMul(r, u) y = Add(p, q)")
    )  # fmt: skip
    pieces = sorted(
        (group.units, member.channels.tolist())
        for group in channels.prunable
        for member in group.members
        if Axis("w", 1) in member.axes
    )
    assert pieces == [(2, [0, 1]), (5, [2, 3, 4, 5, 6])]


def test_residual_branches_are_one_group() -> None:
    channels = analyze(
        model("x:2,3 w=3,6 v=6,6 u=6,4", "a = MatMul(x, w) b = MatMul(a, v) c = Add(a, b) y = MatMul(c, u)")
    )
    assert set(only(channels, 6).weights) == {Axis("w", 1), Axis("v", 0), Axis("v", 1), Axis("u", 0)}


def test_a_weight_used_twice_ties_its_uses() -> None:
    channels = analyze(
        model(
            "x:2,6 w=6,8 v=8,4",
            "a = MatMul(x, w) r = Relu(a) b = MatMul(x, w) c = MatMul(r, v) d = MatMul(b, v) y = Add(c, d)",
        )
    )
    group = only(channels, 8)
    assert {Axis("a", 1), Axis("b", 1), Axis("w", 1), Axis("v", 0)} <= {axis for m in group.members for axis in m.axes}


def test_a_tied_embedding_is_one_group_through_transpose() -> None:
    found = analyze(
        model(
            "i:i2,5 e=9,6 w=6,7 v=7,6",
            "a = Gather(e, i) h = MatMul(a, w) b = MatMul(h, v) t = Transpose(e) y = MatMul(b, t)",
        )
    )
    assert set(only(found, 6).weights) == {Axis("e", 1), Axis("w", 0), Axis("v", 1)}
    assert only(found, 6).frozen is None
    assert only(found, 9).frozen == "is the graph output 'y'"


def test_weights_behind_nodes_and_in_constants() -> None:
    channels = analyze(
        model(
            "x:2,3 w=6,3 v=6,4",
            "t = Transpose(w) i = Identity(t) a = MatMul(x, i) b = Constant<value_floats=[1.0,2.0,3.0,4.0,5.0,6.0]>() "
            "c = Add(a, b) k = Cast<to=1>(v) y = MatMul(c, k)",
        )
    )
    assert set(only(channels, 6).weights) == {Axis("w", 0), Axis("b", 0), Axis("v", 0)}
    assert only(channels, 6).frozen is None


def test_equal_small_vectors_do_not_tie() -> None:
    tensors = "x:2,3 w=3,6 v=6,6 zero=6 u=6,4"
    text = "a = MatMul(x, w) b = Add(a, zero) c = MatMul(b, v) d = Add(c, zero) y = MatMul(d, u)"
    channels = analyze(model(tensors, text))
    assert [group.units for group in channels.prunable] == [6, 6]


def test_a_shared_vector_keeps_its_name_for_its_first_reader() -> None:
    proto = model(
        "x:2,3 w=3,6 v=6,6 zero=6 u=6,4",
        "a = MatMul(x, w) b = Add(a, zero) c = MatMul(b, v) d = Add(c, zero) y = MatMul(d, u)",
    )
    names = [node.inputs[1].name for node in analyze(proto).graph.nodes if node.op == "Add"]
    assert names == ["zero", "zero_2"]
    assert [node.inputs[1].name for node in load(proto).nodes if node.op == "Add"] == ["zero", "zero"]


@pytest.mark.parametrize(
    "text",
    [
        "a = MatMul(x, w) s = Shape(a) n = Gather(s, i) f = Cast<to=1>(n) d = Div(a, f) y = MatMul(d, v)",
        "a = MatMul(x, w) s = Shape(a) n = Gather(s, i) y = MatMul(a, v)",
        "a = MatMul(x, w) s = Shape(a) y = MatMul(a, v)",
        "a = MatMul(x, w) s = Shape(a) b = Reshape(a, s) y = MatMul(b, v)",
    ],
)
def test_reading_a_length_does_not_freeze_it(text: str) -> None:
    assert reasons("x:2,3 w=3,6 i=#1 v=6,4", text)[6] is None


@pytest.mark.parametrize(
    ("tensors", "text", "reason"),
    [
        ("x:2,3 w=3,6 v=6,4", "a = MatMul(x, w) b = Softmax(a) y = MatMul(b, v)", "'Softmax_1' (Softmax) works over it"),
        ("x:2,3 w=3,6 v=6,4", "a = MatMul(x, w) b = EyeLike(a) y = MatMul(b, v)", "no channel rule for EyeLike ('EyeLike_1')"),
        ("x:2,3 w=3,6 v=6,4 k={6}", "a = MatMul(x, w) b, i = TopK(a, k) y = MatMul(b, v)", "'TopK_1' (TopK) works along it"),
        ("x:2,3 w=3,6 i:i6 v=6,4", "a = MatMul(x, w) b = Gather<axis=1>(a, i) y = MatMul(b, v)",
         "'Gather_1' (Gather) picks positions that are computed at run time"),
    ],
)  # fmt: skip
def test_reasons(tensors: str, text: str, reason: str) -> None:
    frozen = {group.frozen for group in analyze(model(tensors, text)).groups if group.units == 6}
    assert reason in frozen


def test_inexact_groups_say_so() -> None:
    tensors, text = "x:2,3 w=3,6 s=6 v=6,4", "a = MatMul(x, w) b = LayerNormalization(a, s) y = MatMul(b, v)"
    group = only(analyze(model(tensors, text)), 6)
    assert not group.exact
    assert group.frozen == group.inexact
    assert str(group.frozen).startswith("'LayerNormalization_1' (LayerNormalization) takes a statistic over it")


def test_one_unit_is_not_prunable() -> None:
    assert (
        reasons("x:2,3 w=3,1 v=1,4", "a = MatMul(x, w) y = MatMul(a, v)").get(1, "it has only one unit")
        == "it has only one unit"
    )


def test_initializers_that_callers_may_override_are_frozen() -> None:
    proto = model(*CHAIN)
    proto.graph.input.add().CopyFrom(_value_info(proto, "b", [6]))
    assert only(analyze(proto), 6).frozen == "'b' may be overridden by the caller"


def test_tensors_that_bodies_read_are_frozen() -> None:
    proto = model("x:2,3 c:b w=3,6 v=6,4 u=6,5", "a = MatMul(x, w) b = If<then_branch = t () => (p) { p = Identity(a) }, "
                  "else_branch = e () => (q) { q = Neg(a) }>(c) y = MatMul(b, v) z = MatMul(a, u)")  # fmt: skip
    group = next(group for group in analyze(proto).groups if Axis("w", 1) in group.weights)
    assert group.frozen == "is used inside the body of 'If_1' (If)"


def test_names_are_unique_and_always_the_same() -> None:
    proto = model(
        "x:2,3 w=3,7 v=2,4 u=5,4 s={2,5}",
        "a = MatMul(x, w) l, r = Split<axis=1>(a, s) p = MatMul(l, v) q = MatMul(r, u) y = Add(p, q)",
    )
    channels = analyze(proto)
    names = [group.name for group in channels.groups]
    assert len(set(names)) == len(names)
    assert names == [group.name for group in analyze(proto).groups]


def _value_info(proto: object, name: str, shape: list[int]) -> object:
    import onnx

    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


STEPS = st.lists(st.sampled_from(["relu", "scale", "double", "rotate", "halves", "pick", "twice", "grow"]), max_size=6)


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(STEPS)
def test_units_are_the_connected_components(steps: list[str]) -> None:
    """Random chains of operators on one axis: the engine agrees with a plain union of sets over its own ties."""
    tensors, text, name, width = ["x:2,3", "w=3,6"], ["a0 = MatMul(x, w)"], "a0", 6
    for number, step in enumerate(steps, 1):
        name, width = _append(step, number, name, width, tensors, text)
    tensors.append(f"last={width},4")
    text.append(f"y = MatMul({name}, last)")
    graph = load(model(" ".join(tensors), " ".join(text)))
    channels = analyze(graph)
    expected = _components_by_union(graph)
    for group in channels.groups:
        for unit in range(group.units):
            mine = {
                (axis, channel)
                for member in group.members
                for axis in member.axes
                for channel in member.channels[member.units == unit].tolist()
            }
            assert mine in expected


def _append(step: str, number: int, name: str, width: int, tensors: list[str], text: list[str]) -> tuple[str, int]:
    new, half = f"a{number}", width // 2
    if step == "relu":
        text.append(f"{new} = Relu({name})")
    elif step == "scale":
        tensors.append(f"s{number}={width}")
        text.append(f"{new} = Mul({name}, s{number})")
    elif step == "double" and width < 40:
        text.append(f"{new} = Concat<axis=1>({name}, {name})")
        return new, 2 * width
    elif step == "rotate":
        tensors.append(f"i{number}={{{','.join(str((c + 1) % width) for c in range(width))}}}")
        text.append(f"{new} = Gather<axis=1>({name}, i{number})")
    elif step == "halves" and width % 2 == 0:
        text.append(f"l{number}, r{number} = Split<axis=1>({name}) {new} = Add(l{number}, r{number})")
        return new, half
    elif step == "pick" and width > 3:
        tensors.append(f"b{number}={{1}} e{number}={{{width - 1}}} d{number}={{1}}")
        text.append(f"{new} = Slice({name}, b{number}, e{number}, d{number})")
        return new, width - 2
    elif step == "twice":
        tensors.append(f"m{number}={width},{width}")
        text.append(f"{new} = MatMul({name}, m{number})")
    elif step == "grow":
        tensors.append(f"p{number}={{0,1,0,2}}")
        text.append(f"{new} = Pad({name}, p{number})")
        return new, width + 3
    else:
        return name, width
    return new, width


def _components_by_union(graph: object) -> list[set[tuple[Axis, int]]]:
    """Joins channels one tie at a time."""
    found = collect(graph, infer_shapes(graph))
    component = {(axis, c): {(axis, c)} for axis, n in zip(found.axes, found.lengths, strict=True) for c in range(n)}
    pairs = [(a, b, np.arange(found.lengths[a]), np.arange(found.lengths[b])) for a, b in found.same]
    for left, right, left_index, right_index in [*pairs, *found.ties]:
        for i, j in zip(left_index.tolist(), right_index.tolist(), strict=True):
            one, other = component[(found.axes[left], i)], component[(found.axes[right], j)]
            if one is not other:
                one |= other
                for key in other:
                    component[key] = one
    return list({id(members): members for members in component.values()}.values())


def test_a_group_that_does_not_divide_the_channels_freezes_them() -> None:
    proto = model("x:1,4,5,5 w=6,2,3,3 v=5,6,1,1", "a = Conv<group=3>(x, w) y = Conv(a, v)")
    assert all(group.frozen for group in analyze(proto).groups if group.units in (4, 6))
