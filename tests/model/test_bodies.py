"""Shapes behind If, Loop and Scan: known where every run gives the same, and otherwise not."""

import onnx
import pytest
from onnx import parser

from onnxprune.channels.groups import analyze
from onnxprune.model.io import load
from onnxprune.model.sizes import infer_shapes

BRANCHES = "If(c) <then_branch = t () => (z1) {{ z1 = {} }}, else_branch = e () => (z2) {{ z2 = {} }}>"
LOOP = """Loop(n, c, x) <body = b (int64 i, bool go, float[N,K] s) => (bool on, next, out) {{
    on = Identity(go) next = {} out = Relu(x) }}>"""
NESTED = "If(d) <then_branch = t2 () => (u1) {{ u1 = Relu({0}) }}, else_branch = e2 () => (u2) {{ u2 = Neg({0}) }}>"
SCAN = """Scan<num_scan_inputs=1{}, body = b (float[K] s, float[J] r) => (next, out) {{
    m = Add(s, r) next = {} out = Concat<axis=0>(m, m) }}>(f, x)"""


def graph(text: str, opset: int = 17) -> onnx.ModelProto:
    """A model over x [4, 6]; types of the results inside bodies are left out."""
    stored = "float[6] f = {1,1,1,1,1,1}, int64[2] turned = {6,4}, int64 n = {3}"
    header = f'<ir_version: 8, opset_import: ["": {opset}]> g (float[4,6] x, bool c, bool d) => (z)'
    return parser.parse_model(f"{header} <{stored}> {{ {text} }}")


def shapes_of(text: str, opset: int = 17) -> dict[str, tuple[int, ...]]:
    return infer_shapes(load(graph(text, opset))).shapes


@pytest.mark.parametrize(
    ("branches", "expected"),
    [
        (("Relu(x)", "Neg(x)"), (4, 6)),
        (("Reshape(x, turned)", "Transpose(x)"), (6, 4)),
        (("Relu(x)", "Transpose(x)"), None),
        (("Shape(x)", "Relu(f)"), None),
        (("Shape(x)", "Identity(turned)"), (2,)),
        ((NESTED.format("x").replace("{{", "{").replace("}}", "}"), "Neg(x)"), (4, 6)),
    ],
)
def test_branches_that_agree(branches: tuple[str, str], expected: tuple[int, ...] | None) -> None:
    assert shapes_of(f"z = {BRANCHES.format(*branches)}").get("z") == expected


@pytest.mark.parametrize(
    ("state", "expected"),
    [("Add(s, x)", (4, 6)), ("Mul(s, f)", (4, 6)), ("Transpose(s)", None), ("Concat<axis=0>(s, x)", None)],
)
def test_what_a_loop_carries(state: str, expected: tuple[int, ...] | None) -> None:
    found = shapes_of(f"z, rows = {LOOP.format(state)}")
    assert found.get("z") == expected
    assert "rows" not in found


@pytest.mark.parametrize(
    ("axes", "state", "expected", "rows"),
    [
        ("", "Identity(m)", (6,), (4, 12)),
        (", scan_output_axes=[1]", "Identity(m)", (6,), (12, 4)),
        (", scan_output_axes=[-1]", "Identity(m)", (6,), (12, 4)),
        ("", "Concat<axis=0>(m, m)", None, None),
        (", scan_input_axes=[1]", "Identity(m)", None, None),
    ],
)
def test_what_a_scan_carries_and_stacks(
    axes: str, state: str, expected: tuple[int, ...] | None, rows: tuple[int, ...] | None
) -> None:
    found = shapes_of(f"z, rows = {SCAN.format(axes, state)}")
    assert found.get("z") == expected
    assert found.get("rows") == rows


def test_what_stands_behind_a_branch_can_be_pruned() -> None:
    text = f"a = {BRANCHES.format('Relu(x)', 'Neg(x)')} h = MatMul(a, w) r = Relu(h) z = MatMul(r, v)"
    model = graph(text)
    for name, shape in {"w": (6, 8), "v": (8, 5)}.items():
        values = [0.5 + place for place in range(shape[0] * shape[1])]
        model.graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, shape, values))
    assert [group.units for group in analyze(model).prunable] == [8]
