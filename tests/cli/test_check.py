"""``check --nm``: counts against a count by hand, for every operator and every way to store its weights."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.commands.check import check
from onnxprune.report.patterns import conforms

CHAIN = "agraph (float[1, 8, 6, 6] x) => (float y) { h = Conv (x, stem) %s }"
ROWS = "agraph (float[3, 8] x) => (float y) { h = MatMul (x, first) %s }"


def half_zero(*shape, seed=1, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return (rng.integers(1, 100, shape) * (rng.random(shape) < 0.5)).astype(dtype)


def keeping(array, axis, kept, size):
    """The array with no more than ``kept`` of ``size`` along an axis."""
    order = np.moveaxis(array.copy(), axis, -1)
    order.reshape(*order.shape[:-1], -1, size)[..., kept:] = 0
    return np.moveaxis(order, -1, axis)


def counted(array, axis, kept, size):
    """Groups and violations, one by one."""
    groups = np.moveaxis(array, axis, -1).reshape(-1, size)
    return len(groups), sum(1 for group in groups.tolist() if sum(value != 0 for value in group) > kept)


def last(report):
    return report.sparsity.tensors[-1]


@pytest.fixture
def held(save):
    """Checks a model of which the last operator multiplies with ``w``, and returns its row."""

    def run(text, nm="2:4", **weights):
        chain = text.startswith("y = Conv")
        first = {"stem": (8, 8, 1, 1)} if chain else {"first": (8, 8)}
        report = check(save((CHAIN if chain else ROWS) % text, **first, **weights), nm=nm)
        assert report.sparsity.tensors[0].reason == "it is the first that reads the input"
        assert len(report.sparsity.tensors) == 2
        return last(report)

    return run


@pytest.mark.parametrize("nm", ["2:4", "1:4", "1:2", "3:8", "7:8"])
@pytest.mark.parametrize(
    ("text", "shape", "axis"),
    [
        ("y = Conv (h, w)", (6, 8, 3, 3), 1),
        ("y = Conv (h, w)", (6, 8, 1, 1), 1),
        ("y = ConvTranspose (h, w)", (8, 6, 3, 2), 0),
        ("y = MatMul (h, w)", (8, 6), 0),
        ("y = Gemm (h, w)", (8, 6), 0),
        ("y = Gemm <transB = 1> (h, w)", (6, 8), 1),
        ("y = Gemm <transB = 1, alpha = -0.5> (h, w)", (6, 8), 1),
        ("t = Transpose (h) y = MatMul (w, t)", (6, 8), 1),
        ("t = Transpose (h) y = Gemm <transA = 1> (t, w)", (8, 6), 0),
    ],
)
def test_every_operator_is_counted_along_what_it_sums_over(save, text, shape, axis, nm):
    chain = "Conv" in text
    first = {"stem": (8, 8, 1, 1)} if chain else {"first": (8, 8)}
    values = half_zero(*shape)
    row = last(check(save((CHAIN if chain else ROWS) % text, w=values, **first), nm=nm))
    kept, size = map(int, nm.split(":"))
    groups, violations = counted(values, axis, kept, size)
    assert (row.name, row.node, row.axis, row.reason) == ("w", "y", axis, None)
    assert (row.groups, row.violations) == (groups, violations)
    assert row.violations > 0 or kept > 4
    assert row.fraction == pytest.approx(np.mean(values == 0))
    masked = keeping(values, axis, kept, size)
    row = last(check(save((CHAIN if chain else ROWS) % text, w=masked, **first), nm=nm))
    assert (row.groups, row.violations, row.pattern) == (groups, 0, nm)


@pytest.mark.parametrize(
    ("text", "shape", "axis"),
    [
        ("y = Conv <group = 2> (h, w)", (6, 4, 3, 3), 1),
        ("y = ConvTranspose <group = 2> (h, w)", (8, 3, 3, 3), 0),
    ],
)
def test_groups_are_counted_apart(save, text, shape, axis):
    values = half_zero(*shape)
    row = last(check(save(CHAIN % text, stem=(8, 8, 1, 1), w=values), nm="2:4"))
    assert (row.axis, row.groups, row.violations) == (axis, *counted(values, axis, 2, 4))
    row = last(check(save(CHAIN % text, stem=(8, 8, 1, 1), w=values), nm="2:8"))
    assert (row.groups, row.violations) == (None, None)
    assert "8 does not divide its 4 input channels" in row.reason


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("k = Identity (w) y = MatMul (h, k)", {"w": half_zero(8, 6)}),
        ("k = Transpose (w) y = MatMul (h, k)", {"w": half_zero(6, 8)}),
        ("k = Transpose <perm = [1, 0]> (w) j = Identity (k) y = Gemm <transB = 1> (h, j)", {"w": half_zero(8, 6)}),
        (
            "k = DequantizeLinear (w, s, z) y = MatMul (h, k)",
            {"w": half_zero(8, 6, dtype=np.uint8) + np.uint8(128), "s": np.float32(0.1), "z": np.uint8(128)},
        ),
        (
            "k = DequantizeLinear <axis = 1> (w, s, z) y = MatMul (h, k)",
            {
                "w": half_zero(8, 6, dtype=np.int8) - np.arange(6, dtype=np.int8),
                "s": np.full(6, 0.1, np.float32),
                "z": -np.arange(6, dtype=np.int8),
            },
        ),
        (
            "k = DequantizeLinear <axis = 0> (w, s) t = Transpose (k) y = MatMul (h, t)",
            {"w": half_zero(6, 8, dtype=np.int8), "s": np.full(6, 0.1, np.float32)},
        ),
    ],
    ids=["identity", "transpose", "twice", "zero point", "zero points", "quantized and moved"],
)
def test_weights_are_followed_to_where_they_are_stored(held, text, weights):
    stored = weights["w"].astype(int) - (weights["z"].astype(int) if "z" in weights else 0)
    axis = list(stored.shape).index(8)
    row = held(text, **weights)
    assert (row.name, row.axis, row.groups, row.violations) == ("w", axis, *counted(stored, axis, 2, 4))
    assert row.violations > 0


def test_integer_operators_have_zero_points_too(save):
    text = """agraph (uint8[1, 8, 6, 6] x) => (int32 y) {
        a = ConvInteger (x, stem)
        c = Cast <to = 2> (a)
        b = QLinearConv (c, s, u, w, s, z, s, u)
        d = ConvInteger (b, v)
        y = MatMulInteger (b, m, u, n)
    }"""
    values = half_zero(4, 8, 3, 3, dtype=np.int8)
    matrix = half_zero(4, 6, seed=2, dtype=np.int8)
    path = save(
        text, stem=half_zero(8, 8, 1, 1, dtype=np.uint8), w=values + np.arange(4, dtype=np.int8).reshape(4, 1, 1, 1),
        z=np.arange(4, dtype=np.int8), s=np.float32(1), u=np.uint8(0), v=half_zero(6, 4, 1, 1, dtype=np.uint8),
        m=matrix - np.int8(3), n=np.int8(-3),
    )  # fmt: skip
    rows = {row.name: row for row in check(path, nm="2:4").sparsity.tensors}
    assert list(rows) == ["stem", "w", "v", "m"]
    assert (rows["w"].node, rows["w"].axis) == ("b", 1)
    assert (rows["w"].groups, rows["w"].violations) == counted(values, 1, 2, 4)
    assert (rows["m"].groups, rows["m"].violations) == counted(matrix, 0, 2, 4)
    assert rows["v"].violations == counted(half_zero(6, 4, 1, 1), 1, 2, 4)[1]


def test_constants_are_weights_too(save):
    path = save(ROWS % "k = Identity (h) y = MatMul (k, w)", first=(8, 8), w=(8, 6))
    model = onnx.load(path)
    values = half_zero(8, 6)
    del model.graph.initializer[1]
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(values)))
    row = last(check(model, nm="2:4"))
    assert (row.name, row.groups, row.violations) == ("w", *counted(values, 0, 2, 4))


def test_what_may_be_dense_is_listed_with_a_reason(save):
    text = """agraph (float[1, 8, 6, 6] x) => (float y) {
        a = Conv (x, stem)
        b = Conv <group = 8> (a, deep)
        c = Conv (b, odd)
        d = Conv (c, narrow)
        f = Flatten (d)
        r = Unsqueeze (f, zero)
        y, p, q = LSTM <hidden_size = 2> (r, lw, lr)
    }"""
    path = save(
        text, stem=(8, 8, 1, 1), deep=(8, 1, 3, 3), odd=(6, 8, 1, 1), narrow=(8, 6, 4, 4), zero=np.array([0]),
        lw=(1, 8, 8), lr=(1, 8, 2),
    )  # fmt: skip
    report = check(path, nm="2:4")
    rows = {row.name: row for row in report.sparsity.tensors}
    assert list(rows) == ["stem", "deep", "odd", "narrow", "lw", "lr"]
    assert {name: row.reason for name, row in rows.items()} == {
        "stem": "it is the first that reads the input",
        "deep": "it is depthwise: each of its few weights matters",
        "odd": None,
        "narrow": "2:4 does not divide its 6 input channels",
        "lw": "weights of LSTM in this form are not looked into",
        "lr": "weights of LSTM in this form are not looked into",
    }
    assert rows["stem"].violations == rows["stem"].groups == 16
    assert not conforms(report)
    wide = check(path, nm="2:4", nm_min_channels=8)
    assert {row.name for row in wide.sparsity.tensors if row.reason is None} == set()
    assert conforms(wide)
    assert wide.sparsity.fraction is None
    assert wide.warnings == ("no operator has weights that 2:4 could be asked of: see the reasons",)


@pytest.fixture
def pair(save):
    """A file in which two of three operators keep to 2:4, and one in which both that must do."""
    text = ROWS % "a = Relu (h) b = MatMul (a, good) y = Gemm <transB = 1> (b, bad)"
    good, bad = keeping(half_zero(8, 12, seed=2), 0, 2, 4), half_zero(5, 12, seed=3)
    broken = save(text, "broken.onnx", first=(8, 8), good=good, bad=bad)
    return broken, save(text, "right.onnx", first=(8, 8), good=good, bad=keeping(bad, 1, 2, 4))


def test_exit_codes_and_words(command, pair):
    broken, right = pair
    found = command("check", broken, "--nm", "2:4")
    assert (found.code, found.err) == (1, "")
    groups, violations = counted(half_zero(5, 12, seed=3), 1, 2, 4)
    words = f"2:4 does not hold in 1 of 2 operators: {violations} of {24 + groups} groups of weights hold more"
    assert words in found.out
    assert found.out.index("bad") < found.out.index("good")
    assert "may be dense: h: it is the first that reads the input" in found.out
    found = command("check", right, "--nm", "2:4")
    assert (found.code, found.err) == (0, "")
    assert "2:4 holds in 2 operators, 1 may be dense" in found.out
    assert command("check", right, "--nm", "2:4", "-q").out == ""
    assert command("check", broken, "--nm", "1:4", "-q").code == 1
    assert command("check", broken, "--nm", "3:4", "--nm-min-channels", 9).code == 0


def test_reports(command, pair, tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    files = [tmp_path / f"report{suffix}" for suffix in (".json", ".md", ".html")]
    options = [item for file in files for item in ("--report", file)]
    found = command("check", pair[0], "--nm", "2:4", "--json", *options)
    assert (found.code, found.err) == (1, "")
    report = json.loads(found.out)
    assert report == json.loads(files[0].read_text())
    assert report["command"] == "check"
    assert report["options"] == {"nm": "2:4", "nm_min_channels": 1}
    assert report["before"]["parameters"] == 64 + 96 + 60
    _, violations = counted(half_zero(5, 12, seed=3), 1, 2, 4)
    rows = report["sparsity"].pop("tensors")
    assert report["sparsity"]["pattern"] == "2:4"
    assert rows[2] == {
        "name": "bad", "fraction": pytest.approx(np.mean(half_zero(5, 12, seed=3) == 0)), "pattern": None,
        "node": rows[2]["node"], "axis": 1, "groups": 15, "violations": violations, "reason": None,
    }  # fmt: skip
    assert (rows[1]["pattern"], rows[1]["violations"]) == ("2:4", 0)
    assert "| `bad` |" in files[1].read_text()
    assert "it is the first that reads the input" in files[1].read_text()
    page = files[2].read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "2:4 does not hold in 1 of 2 operators" in page
    assert "<code>bad</code>" in page
    assert "<code>h</code> it is the first that reads the input" in page


def test_what_is_wrong_is_said_in_one_sentence(command, pair, tmp_path):
    for text in ("4:2", "0:4", "2:2", "2:33", "2", "two:four", "2:4:8", "-1:4"):
        command.refuses(2, "give N:M such as 2:4", "check", pair[0], "--nm", text)
    command.refuses(2, "nothing is asked for: give --nm", "check", pair[0])
    command.refuses(3, "does not exist", "check", tmp_path / "none.onnx", "--nm", "2:4")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    command.refuses(3, "is not an ONNX model", "check", tmp_path / "bad.onnx", "--nm", "2:4")
    command.refuses(2, "--input-shape", "check", pair[0], "--nm", "2:4", "--input-shape", "z:3x8")
