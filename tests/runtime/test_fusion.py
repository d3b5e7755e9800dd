"""Which operators the runtime computes in integers, and what integer sums do on this machine."""

import numpy as np
import onnx
import pytest
from onnx_text import model

from onnxprune.errors import ModelError
from onnxprune.runtime.arithmetic import saturates
from onnxprune.runtime.fusion import on_integers
from onnxprune.runtime.session import SessionOptions

ONE = SessionOptions(threads=1)
TENSORS = "x:1,16,8,8 w=n16,16,3,3 v=16,16,3,3 s=f#0.05 t=f#0.01 z=f#0"
PAIR = "a = QuantizeLinear (x, s, o) b = DequantizeLinear (a, s, o) k = DequantizeLinear (w, t, i)"


def built(text: str) -> onnx.ModelProto:
    proto = model(TENSORS, text)
    for name, kind in (("o", np.uint8), ("i", np.int8)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((), kind), name))
    return proto


def test_only_what_has_pairs_on_both_sides_runs_in_integers() -> None:
    proto = built(f"{PAIR} c = Conv (b, k) q = QuantizeLinear (c, s, o) d = DequantizeLinear (q, s, o) e = Conv (d, v) "
                  "y = Relu (e)")  # fmt: skip
    before = proto.SerializeToString()
    assert on_integers(proto, {"c", "e"}, ONE) == {"c"}
    assert proto.SerializeToString() == before
    assert on_integers(proto, {"e"}, ONE) == set()
    assert on_integers(proto, {"c"}, ONE) == {"c"}
    assert on_integers(proto, set(), ONE) == set()


def test_a_convolution_without_a_pair_behind_it_stays_float() -> None:
    proto = built(f"{PAIR} c = Conv (b, k) y = Abs (c)")
    assert on_integers(proto, {"c"}, ONE) == set()


def test_nodes_without_names_are_told_apart() -> None:
    proto = built(f"{PAIR} c = Conv (b, k) q = QuantizeLinear (c, s, o) d = DequantizeLinear (q, s, o) "
                  "e = Conv (d, k) f = Abs (e) g = Neg (f) p = QuantizeLinear (g, s, o) h = DequantizeLinear (p, s, o) "
                  "j = Conv (h, k) n = QuantizeLinear (j, s, o) y = DequantizeLinear (n, s, o)")  # fmt: skip
    for node in proto.graph.node:
        node.name = ""
    assert on_integers(proto, {"c", "e", "j"}, ONE) == {"c", "j"}


def test_matrix_products() -> None:
    proto = model("x:2,16 w=n16,8 s=f#0.05 o=u8", "a = QuantizeLinear (x, s) b = DequantizeLinear (a, s) "
                  "k = DequantizeLinear (w, s) c = MatMul (b, k) y = Abs (c)")  # fmt: skip
    assert on_integers(proto, {"c"}, ONE) == {"c"}


def test_what_the_runtime_cannot_load() -> None:
    with pytest.raises(ModelError):
        on_integers(model("x:2,16 w=9,8", "y = MatMul (x, w)"), {"y"}, ONE)


def test_integer_sums_are_tried_once() -> None:
    assert isinstance(saturates(), bool)
    assert saturates() is saturates()
    assert saturates.cache_info().misses == 1
