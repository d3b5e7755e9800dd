"""Masked equals sliced on every pattern, at three ratios and three seeds, and the model really gets smaller."""

import functools

import numpy as np
import onnx
import pytest
from law import random_units
from networks import NETWORKS
from onnx_text import model, random_feeds, with_measured_outputs

from onnxprune.channels.groups import Channels, analyze
from onnxprune.model.cost import cost
from onnxprune.model.io import to_proto
from onnxprune.runtime.session import SessionOptions
from onnxprune.surgery.slice import slice_channels
from onnxprune.validate.proof import prove

BY_NAME = {network.name: network for network in NETWORKS}
PRUNABLE = [network.name for network in NETWORKS if network.units]

ANALYZED = {"N": 2, "T": 5, "H": 6}
OTHER = {"N": 3, "T": 7, "H": 9}


@functools.cache
def channels_of(name: str) -> tuple[onnx.ModelProto, Channels]:
    network = BY_NAME[name]
    proto = with_measured_outputs(model(network.tensors, network.text, network.opset))
    shape = [dim.dim_value or ANALYZED[dim.dim_param] for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    return proto, analyze(proto, {"x": tuple(shape)})


def removals(channels: Channels, ratio: float, seed: int) -> dict[str, list[int]]:
    rng = np.random.default_rng(seed)
    return {group.name: random_units(group, ratio, rng) for group in channels.prunable}


@pytest.mark.parametrize("name", BY_NAME)
def test_prunable_units(name: str) -> None:
    _, channels = channels_of(name)
    found = sorted(group.units for group in channels.prunable)
    assert found == sorted(int(units) for units in BY_NAME[name].units.split())


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("name", PRUNABLE)
def test_masked_equals_sliced(name: str, ratio: float) -> None:
    proto, channels = channels_of(name)
    before = cost(channels.graph, channels.sizes)
    for seed in range(3):
        chosen = removals(channels, ratio, seed)
        sliced = slice_channels(channels, chosen)
        feeds = [random_feeds(proto, np.random.default_rng(seed), sizes) for sizes in (ANALYZED, OTHER)]
        result = prove(channels, chosen, sliced, feeds, SessionOptions(threads=1))
        assert result.passed, result
        after = cost(sliced, channels.sizes)
        assert after.parameters < before.parameters
        assert after.macs < before.macs
    onnx.checker.check_model(to_proto(sliced), full_check=True)
