"""The values that shape arithmetic computes are those that ONNX's own reference computes."""

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_text import model

from onnxprune.model.io import load
from onnxprune.model.sizes import infer_shapes

CASES = {
    "nonzero": (
        "x:2,3 one={1}",
        "s = Shape(x) o = ConstantOfShape<value=int64[1] {0}>(s) z = Add(o, one) y = NonZero(z)",
    ),
    "nonzero_some": ("x:2,3 k={0,4,0,5} t={2,2}", "m = Reshape(k, t) s = Shape(x) n = Sub(m, s) y = NonZero(n)"),
    "nonzero_none": ("x:2,3", "s = Shape(x) n = Sub(s, s) y = NonZero(n)"),
    "clip": ("x:2,3 low=#-2 high=#1", "s = Shape(x) n = Neg(s) y = Clip(n, low, high)"),
    "clip_upper": ("x:2,9 high=#4", "s = Shape(x) y = Clip(s, , high)"),
    "greater_or_equal": ("x:2,9 k={2,3}", "s = Shape(x) y = GreaterOrEqual(s, k)"),
    "less_or_equal": ("x:2,9 k={2,3}", "s = Shape(x) y = LessOrEqual(s, k)"),
}


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("name", CASES)
def test_values_of_shape_arithmetic(name: str, opset: int) -> None:
    tensors, text = CASES[name]
    proto = model(tensors, text, opset)
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": np.ones(shape, np.float32)})
    found = infer_shapes(load(proto)).values["y"]
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
