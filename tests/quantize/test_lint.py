"""The rules of every target: each is broken by a small graph made for it, and by no file that keeps to the table."""

from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune.data.samples import load_samples
from onnxprune.model.io import load, to_proto
from onnxprune.model.sizes import infer_shapes
from onnxprune.quantize.lint import CHECKS, lint
from onnxprune.quantize.quantize import Settings, quantize_graph
from onnxprune.quantize.targets import TARGETS
from onnxprune.recover.recover import calibration
from onnxprune.runtime.fusion import on_integers
from onnxprune.runtime.session import SessionOptions, input_specs

MODELS = Path(__file__).parents[2] / "models"

STORED = {
    "s": np.float32(0.02), "t": np.float32(0.03), "z": np.int8(0), "u": np.uint8(128), "u0": np.uint8(0),
    "w": np.full((16, 16, 3, 3), 3, np.int8), "ws": np.full(16, 0.01, np.float32), "wz": np.zeros(16, np.int8),
    "wf": np.ones((16, 16, 3, 3), np.float32), "b": np.ones(16, np.float32),
    "g": np.full((16, 24), 3, np.int8), "gs": np.full(24, 0.01, np.float32), "gz": np.zeros(24, np.int8),
    "gb": np.ones(24, np.float32), "gi": np.ones(24, np.int32),
}  # fmt: skip
"""Stored tensors by name; a text uses some of them."""

X = "qx = QuantizeLinear (x, s, z) dx = DequantizeLinear (qx, s, z) "
W = "dw = DequantizeLinear <axis = 0> (w, ws, wz) "
CONV = X + W + "c = Conv <pads = [1, 1, 1, 1]> (dx, dw, b) "
LONG = CONV + "r = Relu (c) rq = QuantizeLinear (r, s, z) rd = DequantizeLinear (rq, s, z) "
LONG += "v = Conv <pads = [1, 1, 1, 1]> (rd, dw) e = Conv <pads = [1, 1, 1, 1]> (dx, dw) "
"""Two operators one after the other, ending in v, and one beside them, ending in e."""
PAIR = "{0}q = QuantizeLinear ({0}, t, z) {0}d = DequantizeLinear ({0}q, t, z) "


def pair(*names):
    """Q and DQ on tensors; what they give is called like the tensor, with a ``d`` behind it."""
    return "".join(PAIR.format(name) for name in names)


def unsigned(text):
    """The text with uint8 activations, as one target wants them."""
    return text.replace("s, z)", "s, u)").replace("t, z)", "t, u)")


def unsigned_conv(tail, middle=""):
    return unsigned(CONV + middle) + unsigned(tail)


@dataclass(frozen=True)
class Case:
    """A graph, the rules it breaks at the first node of each, and the stored tensors that are other than usual."""

    target: str
    text: str
    broken: dict[str, str] = field(default_factory=dict)
    stored: dict[str, np.ndarray] = field(default_factory=dict)
    shape: str = "1, 16, 8, 8"
    opset: int = 17
    out: str = "float y"

    def model(self):
        text = f"agraph (float[{self.shape}] x) => ({self.out}) {{ {self.text} }}"
        model = parser.parse_model(f'<ir_version: 8, opset_import: ["": {self.opset}, "com.microsoft": 1]> {text}')
        stored = {**STORED, **self.stored}
        read = {name for node in model.graph.node for name in node.input}
        model.graph.initializer.extend(numpy_helper.from_array(np.asarray(stored[n]), n) for n in stored if n in read)
        return model


def found(model, target, level="violation"):
    graph = load(model)
    return [one for one in lint(graph, infer_shapes(graph), TARGETS[target]) if one.level == level]


TENSORRT = [
    Case("tensorrt", CONV + "y = Relu (c)"),
    Case("tensorrt", CONV + "r = Relu (c) " + pair("r") + "v = Conv (rd, dw) y = Relu (v)"),
    Case("tensorrt", CONV + pair("c") + "y = Conv (cd, dw)"),
    Case("tensorrt", CONV + pair("c") + "m = MaxPool <kernel_shape = [2, 2]> (cd) y = Conv (m, dw)"),
    Case("tensorrt", CONV + "y = Relu (c)", {"tensorrt/zero-point": "qx"}, {"z": np.int8(3)}),
    Case(
        "tensorrt", CONV + "y = Relu (c)", {"tensorrt/zero-point": "qx", "tensorrt/type": "qx"}, {"z": np.uint8(128)}
    ),
    Case("tensorrt", CONV.replace("(x, s, z)", "(x, s)") + "y = Relu (c)", {"tensorrt/type": "qx", "onnx/types": "dx"}),
    Case(
        "tensorrt",
        CONV + "y = Relu (c)",
        {"tensorrt/activation-axis": "qx"},
        {"s": np.full(16, 0.02, np.float32), "z": np.zeros(16, np.int8)},
    ),
    Case("tensorrt", CONV.replace("axis = 0", "axis = 1") + "y = Relu (c)", {"tensorrt/weight-axis": "c"}),
    Case("tensorrt", X + W + "c = Conv (dx, wf) y = Relu (c)", {"tensorrt/inputs": "c"}),
    Case("tensorrt", W + "c = Conv (x, dw) y = Relu (c)", {"tensorrt/inputs": "c"}),
    Case("tensorrt", CONV + pair("c") + "y = Relu (cd)", {"tensorrt/fusion": "cq"}),
    Case("tensorrt", CONV + pair("c") + "y = Mul (cd, t)", {"tensorrt/fusion": "cq"}),
    Case("tensorrt", CONV + "y = Add (dx, c)"),
    Case("tensorrt", CONV + "y = Add (x, c)", {"tensorrt/branch": "y"}),
    Case("tensorrt", CONV + pair("c") + "y = Add (dx, cd)", {"tensorrt/residual": "y"}),
    Case("tensorrt", CONV + "e = Conv <pads = [1, 1, 1, 1]> (dx, dw) " + pair("e") + "y = Add (ed, c)"),
    Case("tensorrt", CONV + "e = Conv <pads = [1, 1, 1, 1]> (dx, dw) y = Add (e, c)", {"tensorrt/branch": "y"}),
    Case("tensorrt", LONG + pair("e") + "y = Add (ed, v)"),
    Case("tensorrt", LONG + pair("e") + "y = Add (v, ed)"),
    Case("tensorrt", LONG + pair("v") + "y = Add (vd, e)", {"tensorrt/branch": "y"}),
    Case("tensorrt", CONV + "m = GlobalAveragePool (x) y = Add (m, c)"),
    Case(
        "tensorrt",
        "dg = DequantizeLinear <axis = 1> (g, gs, gz) y = MatMul (x, dg)",
        {"tensorrt/inputs": "y"},
        shape="4, 16",
    ),
    Case(
        "tensorrt",
        "dg = DequantizeLinear <axis = 0, block_size = 16> (g, gs) y = MatMul (x, dg)",
        {},
        {"gs": np.full((2, 24), 0.01, np.float32), "g": np.ones((32, 24), ml_dtypes.int4)},
        "4, 32",
        21,
    ),
    Case("tensorrt", X + "y = Neg (dx)", {"tensorrt/type": "qx"}, {"z": ml_dtypes.int4(0)}, opset=21),
    Case(
        "tensorrt",
        CONV.replace("dw, b", "dw, db").replace("c =", "db = DequantizeLinear <axis = 0> (i, ws) c =") + "y = Relu (c)",
        {"tensorrt/bias": "c"},
        {"i": np.ones(16, np.int32)},
    ),
    Case(
        "tensorrt",
        X + "dg = DequantizeLinear <axis = 1> (g, gs, gz) m = MatMul (dx, dg) db = DequantizeLinear (i, s, z) "
        "y = Add (m, db)",
        {"tensorrt/bias": "y"},
        {"i": np.ones(24, np.int8)},
        "4, 16",
    ),
    Case("tensorrt", X + pair("x") + "y = Concat <axis = 1> (dx, xd)", {
        "tensorrt/concat": "y", "tensorrt/fan-out": "xq",
    }),
    Case("tensorrt", X + "r = Relu (x) y = Concat <axis = 1> (dx, r)", {"tensorrt/concat": "y"}),
    Case("tensorrt", X + "y = Softmax (dx)", {"tensorrt/float": "y"}),
    Case("tensorrt", "p = Softmax (x) " + pair("p") + "y = Neg (pd)", {"tensorrt/float": "p"}),
    Case(
        "tensorrt",
        CONV + "y = Relu (c)",
        {"tensorrt/narrow": "c"},
        {"w": np.ones((16, 3, 3, 3), np.int8)},
        "1, 3, 8, 8",
    ),
    Case("tensorrt", CONV + "y = Relu (c)", {}, {"w": np.ones((16, 8, 3, 3), np.int8)}, "1, 8, 8, 8"),
    Case("tensorrt", X + "k = Transpose (dx) y = MatMul (dx, k)", {"tensorrt/narrow": "y"}, {}, "1, 16"),
    Case("tensorrt", CONV + "r = Relu (c) q = QuantizeLinear (r, t, z) y = DequantizeLinear (q, t, z)", {
        "tensorrt/graph-output": "y",
    }),
    Case(
        "tensorrt",
        "q = QuantizeLinear (x, s, z) y = QLinearConv (q, s, z, w, ws, wz, t, z)",
        {"tensorrt/operator": "y", "tensorrt/pair": "q"},
        out="int8 y",
    ),
    Case(
        "tensorrt",
        "q, a, o = DynamicQuantizeLinear (x) y = ConvInteger (q, w, o)",
        {"tensorrt/operator": "q"},
        out="int32 y",
    ),
    Case("tensorrt", "q = com.microsoft.QuantizeLinear (x, s, z) y = com.microsoft.DequantizeLinear (q, s, z)", {
        "tensorrt/operator": "q", "tensorrt/graph-output": "y",
    }),
]  # fmt: skip

G = unsigned(X) + "dg = DequantizeLinear <axis = 1> (g, gs, gz) "
BIAS = "db = DequantizeLinear <axis = 0> (gi, gs) "
CPU = [
    Case("ort-cpu", unsigned_conv(pair("c") + "y = Neg (cd)")),
    Case("ort-cpu", unsigned_conv(pair("c") + "y = Neg (cd)", "").replace("t, u", "t, u0")),
    Case("ort-cpu", unsigned_conv("r = Relu (c) " + pair("r") + "y = Neg (rd)").replace("t, u", "t, u0")),
    Case("ort-cpu", unsigned_conv("m = MaxPool <kernel_shape = [2, 2]> (c) " + pair("m") + "y = Neg (md)")),
    Case(
        "ort-cpu",
        unsigned(X + W + "m = MaxPool <kernel_shape = [2, 2]> (dx) c = Conv (m, dw) " + pair("c") + "y = Neg (cd)"),
    ),
    Case("ort-cpu", G + BIAS + "c = Gemm (dx, dg, db) y = Neg (c)", shape="4, 16"),
    Case("ort-cpu", G + "c = Gemm (dx, dg, gb) " + unsigned(pair("c")) + "y = Neg (cd)", shape="4, 16"),
    Case("ort-cpu", G + "c = MatMul (dx, dg) y = Neg (c)", shape="4, 16"),
    Case("ort-cpu", G + "c = MatMul (dx, dg) y = Add (c, gb)", shape="N, 4, 16"),
    Case("ort-cpu", G + BIAS + "c = MatMul (dx, dg) y = Add (c, db)", shape="2, 4, 16"),
    Case("ort-cpu", G + "c = MatMul (dx, dg) r = Relu (c) y = Neg (r)", {"ort-cpu/result": "c"}, shape="4, 16"),
    Case("ort-cpu", G + "c = MatMul (dx, dg) r = Relu (c) " + unsigned(pair("r")) + "y = Neg (rd)", {
        "ort-cpu/result": "c",
    }, shape="4, 16"),
    Case("ort-cpu", G + "c = MatMul (dx, dg) r = Relu (c) y = Mul (r, r)", shape="4, 16"),
    Case("ort-cpu", G + "c = MatMul (dx, dg) " + unsigned(pair("c")) + "y = Sub (cd, c)", {
        "ort-cpu/result": "c",
    }, shape="4, 16"),
    Case(
        "ort-cpu",
        unsigned_conv(pair("c") + "k = Transpose <perm = [0, 1, 3, 2]> (x) y = MatMul (cd, k)"),
    ),
    Case("ort-cpu", CONV + pair("c") + "y = Neg (cd)", {"ort-cpu/activation-type": "qx"}),
    Case(
        "ort-cpu",
        unsigned_conv(pair("c") + "y = Neg (cd)"),
        {"ort-cpu/weight-type": "c"},
        {"w": np.full((16, 16, 3, 3), 3, np.uint8), "wz": np.full(16, 128, np.uint8)},
    ),
    Case(
        "ort-cpu", unsigned_conv(pair("c") + "y = Neg (cd)").replace("axis = 0", "axis = 1"),
        {"ort-cpu/weight-axis": "c"},
    ),
    Case(
        "ort-cpu",
        unsigned(X) + "dg = DequantizeLinear <axis = 0> (g, gs, gz) r = Transpose (dg) c = MatMul (dx, r) y = Neg (c)",
        {"ort-cpu/weight-moved": "c"},
        {"g": np.ones((24, 16), np.int8)},
        "4, 16",
    ),
    Case("ort-cpu", unsigned(X) + "c = MatMul (dx, f) y = Neg (c)", {"ort-cpu/inputs": "c"}, {
        "f": np.ones((16, 24), np.float32),
    }, "4, 16"),
    Case("ort-cpu", W + "c = Conv (x, dw) y = Neg (c)", {"ort-cpu/inputs": "c"}),
    Case("ort-cpu", unsigned_conv("y = Relu (c)"), {"ort-cpu/result": "c"}),
    Case("ort-cpu", unsigned_conv("r = Relu (c) " + pair("r") + "y = Neg (rd)"), {"ort-cpu/result": "c"}),
    Case("ort-cpu", unsigned_conv(pair("c") + "y = Sub (cd, c)"), {"ort-cpu/result": "c"}),
    Case("ort-cpu", unsigned_conv(pair("c") + "y = Neg (cd)"), {"ort-cpu/result": "c"}, out="float y, float c"),
    Case(
        "ort-cpu",
        unsigned_conv(pair("c") + "e = QuantizeLinear (c, s, z) ed = DequantizeLinear (e, s, z) y = Sub (cd, ed)"),
        {"ort-cpu/result": "c"},
    ),
    Case(
        "ort-cpu",
        unsigned_conv("r = Clip (c, lo, hi) " + pair("r") + "y = Neg (rd)").replace("t, u", "t, u0"),
        {"ort-cpu/result": "c"},
        {"lo": np.float32(0), "hi": np.float32(6)},
    ),
    Case(
        "ort-cpu",
        unsigned_conv("r = Clip (c, lo, hi) " + pair("r") + "y = Neg (rd)").replace("t, u", "t, u0"),
        {},
        {"lo": np.float32(0), "hi": np.float32(6), "t": np.float32(6 / 255)},
    ),
    Case("ort-cpu", G + "c = Gemm (dx, dg, gb) y = Neg (c)", {"ort-cpu/bias": "c"}, shape="4, 16"),
    Case("ort-cpu", G + "c = MatMul (dx, dg) y = Add (c, gb)", {"ort-cpu/bias": "c"}, shape="2, 4, 16"),
    Case("ort-cpu", G + "c = MatMul (dx, dg) y = Add (gb, c)", {"ort-cpu/bias": "c"}, shape="N, 16"),
    Case(
        "ort-cpu",
        unsigned_conv(pair("c") + "r = Relu (cd) " + pair("r") + "y = Neg (rd)"),
        {"ort-cpu/clip": "r"},
    ),
    Case("ort-cpu", unsigned(X + "h = HardSwish (dx) " + pair("h") + "y = Neg (hd)"), {"ort-cpu/no-kernel": "h"}),
    Case(
        "ort-cpu",
        unsigned_conv(pair("c") + "h = HardSwish (cd) hq = QuantizeLinear (h, s, z) hd = DequantizeLinear (hq, s, z) "
        "v = Conv (hd, dw) vq = QuantizeLinear (v, s, z) vd = DequantizeLinear (vq, s, z) y = Neg (vd)"),
    ),
    Case(
        "ort-cpu",
        unsigned(X) + "dw = DequantizeLinear <axis = 1> (w, ws, wz) y = ConvTranspose (dx, dw)",
        {"ort-cpu/no-kernel": "y"},
    ),
    Case(
        "ort-cpu",
        unsigned(X) + "m = MaxPool <kernel_shape = [2, 2]> (dx) " + unsigned(pair("m")) + "y = Neg (md)",
        {"ort-cpu/one-scale": "m"},
    ),
    Case(
        "ort-cpu",
        "dg = DequantizeLinear <axis = 0, block_size = 8> (g, gs) y = MatMul (x, dg)",
        {"ort-cpu/weight-only": "y"},
        {"gs": np.full((2, 24), 0.01, np.float32)},
        "4, 16",
        21,
    ),
    Case("ort-cpu", G + "c = MatMul (dx, dg) q = QuantizeLinear (c, t, u) y = DequantizeLinear (q, t, u)", {
        "ort-cpu/graph-output": "y",
    }, shape="4, 16"),
    Case("ort-cpu", unsigned_conv("q = QuantizeLinear (c, t, z) y = DequantizeLinear (q, t, z)")),
]  # fmt: skip

BLOCKS = {"gs": np.full((2, 24), 0.01, np.float32), "g": np.ones((32, 24), ml_dtypes.int4)}
CUDA = [
    Case("ort-cuda", unsigned(X) + "y = Neg (dx)", {"ort-cuda/activations": "qx"}),
    Case(
        "ort-cuda",
        "dg = DequantizeLinear <axis = 0, block_size = 16> (g, gs) y = MatMul (x, dg)",
        {},
        BLOCKS,
        "4, 32",
        21,
    ),
    Case(
        "ort-cuda",
        "dg = DequantizeLinear <axis = 1, block_size = 12> (g, gs) y = MatMul (x, dg)",
        {"ort-cuda/weight-only": "y"},
        {**BLOCKS, "gs": np.full((32, 2), 0.01, np.float32)},
        "4, 32",
        21,
    ),
    Case("ort-cuda", W + "y = Conv (x, dw)", {"ort-cuda/weight-only": "y"}),
]  # fmt: skip

ONNX = [
    Case("generic", CONV + "y = Relu (c)"),
    Case("generic", CONV + "y = Relu (c)", {"onnx/opset": "dw"}, opset=12),
    Case("generic", X + "y = Neg (dx)", {"onnx/opset": "qx"}, {"z": np.int16(0)}),
    Case("generic", X + "y = Neg (dx)", {"onnx/opset": "qx"}, {"s": np.float16(0.5)}),
    Case("generic", CONV + "y = Relu (c)", {"onnx/shapes": "dw"}, {"wz": np.int8(0)}),
    Case("generic", "y = DequantizeLinear (g, s, u)", {"onnx/types": "y"}),
    Case("generic", CONV + "y = Relu (c)", {"onnx/scale": "dw"}, {"ws": np.arange(16, dtype=np.float32)}),
    Case("generic", X + "y = Neg (dx)", {"onnx/scale": "qx"}, {"s": np.float32("inf")}),
    Case("generic", CONV.replace("axis = 0", "axis = 4") + "y = Relu (c)", {"onnx/axis": "dw"}),
    Case("generic", CONV.replace("axis = 0", "axis = 2") + "y = Relu (c)", {"onnx/axis": "dw"}),
    Case("generic", "y = DequantizeLinear (gi, s, k)", {"onnx/int32-zero-point": "y"}, {"k": np.int32(4)}),
    Case("generic", "y = QuantizeLinear (x, s, z)", {"onnx/output": "y"}, out="int8 y"),
]  # fmt: skip

HINTS = [
    Case("tensorrt", CONV + "y = Relu (c)", {"tensorrt/per-channel": "c"}, {"ws": np.float32(1), "wz": np.int8(0)}),
    Case("tensorrt", CONV + "v = Conv (c, wf) y = Relu (v)", {"tensorrt/left-float": "v"}),
    Case(
        "ort-cpu",
        unsigned_conv(pair("c") + "k = Transpose (wf) n = Neg (cd) y = Conv (n, k)"),
        {"ort-cpu/left-float": "y"},
    ),
    Case(
        "ort-cpu",
        unsigned_conv(pair("c") + "y = Neg (cd)"),
        {"ort-cpu/per-channel": "c"},
        {"ws": np.float32(1), "wz": np.int8(0)},
    ),
    Case("generic", X + "y = Neg (dx)", {"onnx/shapes": "qx"}, {"s": np.ones(1, np.float32)}),
    Case("generic", "y = DequantizeLinear (gi, s, k)", {"onnx/int32-zero-point": "y"}, {"k": np.int32(0)}),
    Case("ort-cpu", "y = Conv (x, wf)", {"ort-cpu/nothing": ""}),
]


@pytest.mark.parametrize("case", [*TENSORRT, *CPU, *CUDA, *ONNX])
def test_exactly_these_rules_are_broken(case):
    first = {}
    for one in found(case.model(), case.target):
        first.setdefault(one.rule, one.node.split(":")[0])
    assert first == case.broken


@pytest.mark.parametrize("case", HINTS)
def test_hints(case):
    hints = {one.rule: one.node for one in reversed(found(case.model(), case.target, "hint"))}
    assert {rule: hints.get(rule) for rule in case.broken} == case.broken


def test_every_rule_is_broken_somewhere():
    tried = {rule for case in (*TENSORRT, *CPU, *CUDA, *ONNX, *HINTS) for rule in case.broken}
    known = {check.rule for checks in CHECKS.values() for check in checks}
    assert known - tried == {"onnx/body"}


def test_every_finding_says_why_and_how_to_fix_it():
    for checks in CHECKS.values():
        assert all(len(check.why) > 20 and check.fix and check.find.__doc__ for check in checks)


@pytest.mark.parametrize(
    "case", [case for case in CPU if "c =" in case.text and set(case.broken) <= {"ort-cpu/result", "ort-cpu/bias"}]
)
def test_onnx_runtime_computes_in_floats_what_is_flagged_and_no_more(case):
    model = case.model()
    names = {"c"} if "c = MatMul" not in case.text or "Add" not in case.text else {"c", "y"}
    assert bool(on_integers(model, names, SessionOptions(threads=1))) == (not case.broken)


def test_a_body_is_not_looked_into_and_that_is_said():
    text = """agraph (float[1, 16, 8, 8] x, bool k) => (float y) {
        qx = QuantizeLinear (x, s, z) dx = DequantizeLinear (qx, s, z)
        y = If (k) <
            then_branch = yes () => (float a) { a = Conv (dx, wf) },
            else_branch = no () => (float e) { e = Neg (dx) }
        >
    }"""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(STORED[name]), name) for name in ("s", "z", "wf"))
    hint = next(one for one in found(model, "generic", "hint") if one.rule == "onnx/body")
    assert (hint.node, hint.detail) == ("y", "1 operators")


def test_what_is_left_float_has_the_reason_of_the_table():
    text = CONV + "v = Conv (c, n) k = Transpose <perm = [1, 0, 2, 3]> (wf) o = Conv (v, k) y = Relu (o)"
    model = Case("tensorrt", text, stored={"n": np.ones((16, 16, 1, 1), np.float32)}).model()
    details = {one.node: one.detail for one in found(model, "tensorrt", "hint")}
    assert details["v"] == "the tables know no reason"
    assert "through Transpose" in details["o"]
    deep = Case("tensorrt", CONV + "y = Conv (c, n)", stored={"n": np.ones((4, 16, 1, 1), np.float32)}).model()
    assert "16 input and 4 output channels" in found(deep, "tensorrt", "hint")[0].detail
    turned = Case("ort-cpu", unsigned_conv(pair("c") + "n = Neg (cd) y = ConvTranspose (n, wf)")).model()
    assert "no integer kernel" in found(turned, "ort-cpu", "hint")[0].detail


def quantized(name, target):
    """A model of the project, quantized for a target."""
    proto, graph = onnx.load(MODELS / f"{name}.onnx"), load(MODELS / f"{name}.onnx")
    samples = load_samples(MODELS / "calibration.npz", input_specs(proto), limit=20, seed=0)
    sizes = {key: tuple(array.shape) for key, array in next(samples.batches(1)).items()}
    runs = calibration(samples, graph, infer_shapes(graph, sizes), 0)
    settings = Settings(TARGETS[target], "minmax", round=False, options=SessionOptions(threads=1))
    return to_proto(quantize_graph(graph, runs, settings)[0])


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt", "generic"])
@pytest.mark.parametrize("name", ["resnet", "mobilenet", "vit"])
def test_our_own_files_break_no_rule(name, target):
    assert found(quantized(name, target), target) == []


def test_default_files_of_another_quantizer_break_the_rules_that_they_do(tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    images = np.load(MODELS / "calibration.npz")["image"][:4]
    path = tmp_path / "default.onnx"

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self._left = [{"image": images}]

        def get_next(self):
            return self._left.pop() if self._left else None

    quantization.quantize_static(MODELS / "resnet.onnx", path, Reader())
    model = onnx.load(path)
    assert {one.rule for one in found(model, "tensorrt")} == {
        "tensorrt/zero-point", "tensorrt/fusion", "tensorrt/bias", "tensorrt/float", "tensorrt/narrow",
        "tensorrt/graph-output",
    }  # fmt: skip
    assert {one.rule for one in found(model, "ort-cpu")} == {
        "ort-cpu/activation-type", "ort-cpu/no-kernel", "ort-cpu/graph-output"
    }  # fmt: skip
    assert "ort-cpu/per-channel" in {one.rule for one in found(model, "ort-cpu", "hint")}
    assert found(model, "generic") == []
