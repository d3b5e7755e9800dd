"""Linear operators as matrix products: rows times matrix is what ONNX Runtime computes."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx_text import model, random_feeds

from onnxprune.model.io import load
from onnxprune.ops.forms import form_of
from onnxprune.runtime.session import SessionOptions, open_session

FORMS = {
    "conv": ("x:2,6,7,9 w=8,6,3,2", "y = Conv<strides=[2,1], pads=[1,0,2,1], dilations=[1,2]>(x, w)"),
    "grouped": ("x:2,6,7,9 w=8,3,3,2", "y = Conv<group=2>(x, w)"),
    "depthwise, same above": ("x:2,6,9 w=12,1,3", 'y = Conv<group=6, auto_pad="SAME_UPPER", strides=[2]>(x, w)'),
    "depthwise, same below": ("x:2,6,10 w=12,1,4", 'y = Conv<group=6, auto_pad="SAME_LOWER", strides=[2]>(x, w)'),
    "three dimensions": ("x:2,6,3,4,5 w=4,6,2,2,2", "y = Conv(x, w)"),
    "transposed": (
        "x:2,6,5,4 w=6,4,3,3",
        "y = ConvTranspose<strides=[2,3], pads=[1,0,0,1], output_padding=[1,0], dilations=[1,2]>(x, w)",
    ),
    "transposed, grouped": ("x:2,6,5,4 w=6,2,3,3", "y = ConvTranspose<group=3, strides=[2,2]>(x, w)"),
    "transposed, same above": ("x:2,6,5,4 w=6,2,3,3", 'y = ConvTranspose<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)'),
    "transposed, same below": ("x:2,6,5,4 w=6,2,3,3", 'y = ConvTranspose<auto_pad="SAME_LOWER", strides=[2,2]>(x, w)'),
    "transposed to a shape": ("x:2,6,5,4 w=6,2,3,3", "y = ConvTranspose<output_shape=[10,9], strides=[2,2]>(x, w)"),
    "transposed and cropped": ("x:2,6,5,4 w=6,2,3,3", "y = ConvTranspose<pads=[2,2,2,2]>(x, w)"),
    "gemm": ("x:5,6 w=8,6", "y = Gemm<transB=1, alpha=0.5>(x, w)"),
    "gemm of turned data": ("x:6,5 w=6,8", "y = Gemm<transA=1>(x, w)"),
    "tokens": ("x:2,5,6 w=6,8", "y = MatMul(x, w)"),
    "weight on the left": ("x:2,5,6 w=8,5", "y = MatMul(w, x)"),
}


@pytest.mark.parametrize("name", FORMS)
def test_rows_times_matrix_is_the_result(name: str) -> None:
    proto = model(*FORMS[name])
    (node,) = load(proto).nodes
    feeds = random_feeds(proto, np.random.default_rng(0))
    x, y = feeds["x"], open_session(proto, SessionOptions(threads=1, optimize=False)).run(feeds)["y"]
    weights = next(tensor for tensor in node.inputs if isinstance(tensor, gs.Constant)).values
    form = form_of(node, x.shape, weights.shape, y.shape)
    assert form is not None
    chosen = np.random.default_rng(1).permutation(form.places(y))[: max(form.places(y) // 2, 1)]
    rows, made = form.rows(x, y, chosen)
    matrix = form.matrix(weights)
    np.testing.assert_allclose(rows @ matrix, made, atol=1e-4)
    np.testing.assert_array_equal(form.weights(matrix, weights), weights)


@pytest.mark.parametrize("text", ["y = Gemm<alpha=0.0>(x, w)", "y = Add(x, w)"])
def test_what_has_no_form(text: str) -> None:
    (node,) = load(model("x:6,6 w=6,6", text)).nodes
    assert form_of(node, (6, 6), (6, 6), (6, 6)) is None
