"""Sizes of free dimensions where a recurrent state stands beside the samples."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune.data.random import choose_shapes, find_running_sizes, random_samples
from onnxprune.runtime.session import SessionOptions, open_session

OPTIONS = SessionOptions(threads=1)


def detector(window: int, dims: str = "2, ?, 8", batch: str = "?") -> onnx.ModelProto:
    """A model that reads windows of fixed length and carries a state on, as voice activity detectors do."""
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    agraph (float[{batch}, ?] input, float[{dims}] state, int64 sr) => (float[?, 8] y, float[?, ?, ?] next) {{
        rate = Constant <value_int = 16000> ()
        right = Equal (sr, rate)
        y = If (right) <then_branch = one () => (float[?, 8] t) {{ t = MatMul (input, w) }},
                        else_branch = two () => (float[?, 8] e) {{ e = Relu (input) }}>
        next = Concat <axis = 0> (state, z)
    }}"""
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((window, 8), np.float32), "w"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1, 8), np.float32), "z"))
    return model


@pytest.mark.parametrize("window", [256, 480, 512, 576, 16000])
def test_audio_windows(window):
    sizes = find_running_sizes(detector(window), options=OPTIONS)
    assert sizes.shapes == {"input": (1, window), "state": (2, 1, 8), "sr": ()}
    assert sizes.chosen == {"input[0]": 1, "input[1]": window, "state[1]": 1}


def test_the_second_axis_of_a_state_is_a_batch_only_beside_a_free_batch():
    assert choose_shapes(detector(512))["state"] == (2, 1, 8)
    assert choose_shapes(detector(512, "1, M, 8"))["state"] == (1, 1, 8)
    assert choose_shapes(detector(512, "2, steps, 8"))["state"] == (2, 16, 8)
    assert choose_shapes(detector(512, batch="1"))["state"] == (2, 16, 8)


def test_the_other_reading_is_tried_as_well():
    model = detector(512)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones((1, 512, 8), np.float32), "z"))
    assert find_running_sizes(model, options=OPTIONS).shapes["state"] == (2, 512, 8)


def test_samples_keep_to_the_batch_of_the_state():
    model = detector(512)
    samples = random_samples(model, find_running_sizes(model, options=OPTIONS).shapes, 5, seed=0)
    assert samples.fixed_batch == 1
    assert samples.arrays["input"].shape == (5, 512)
    assert samples.constants["state"].shape == (2, 1, 8)
    session = open_session(model, OPTIONS)
    assert all(session.run(feeds)["y"].shape == (1, 8) for feeds in samples.batches(32))
