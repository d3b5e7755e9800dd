"""What a plan will cost is known before anything is cut: exactly, on every pattern, and what the next unit saves."""

import functools
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxprune.channels.groups import Channels, analyze
from onnxprune.model.cost import cost
from onnxprune.plan.plan import lowest
from onnxprune.plan.sizes import Sizes
from onnxprune.surgery.slice import slice_channels

sys.path.append(str(Path(__file__).parents[1] / "surgery"))
from networks import NETWORKS
from onnx_text import model, with_measured_outputs

BY_NAME = {network.name: network for network in NETWORKS if network.units}
MODELS = Path(__file__).parents[2] / "models"
FREE = {"N": 2, "T": 5, "H": 6}


@functools.cache
def channels_of(name: str) -> Channels:
    if name in BY_NAME:
        network = BY_NAME[name]
        proto = with_measured_outputs(model(network.tensors, network.text, network.opset))
        shape = [dim.dim_value or FREE[dim.dim_param] for dim in proto.graph.input[0].type.tensor_type.shape.dim]
        return analyze(proto, {"x": tuple(shape)})
    return analyze(MODELS / f"{name}.onnx")


def chosen(channels: Channels, ratio: float, seed: int) -> dict[str, tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    found = {}
    for group in channels.prunable:
        count = min(round(group.units * ratio / group.block_count), group.units // group.block_count - 1)
        found[group.name] = lowest(group, rng.random(group.units), count * group.block_count)
    return found


@pytest.mark.parametrize("name", [*BY_NAME, "resnet", "mobilenet", "vit"])
def test_sizes_are_those_of_the_sliced_graph(name: str) -> None:
    channels = channels_of(name)
    sizes = Sizes(channels, channels.prunable)
    whole = cost(channels.graph, channels.sizes)
    nothing = np.zeros(len(sizes.groups), np.int64)
    assert (sizes.macs(nothing), sizes.parameters(nothing)) == (whole.macs, whole.parameters)
    for seed, ratio in enumerate((0.3, 0.6)):
        removals = chosen(channels, ratio, seed)
        removed = np.array([len(removals[group.name]) for group in sizes.groups])
        sliced = slice_channels(channels, removals)
        found = cost(sliced, channels.sizes)
        assert sizes.macs(removed) == found.macs
        added = found.parameters - sizes.parameters(removed)
        new_nodes = len(sliced.nodes) - len(channels.graph.nodes)
        assert 0 <= added <= 2 * max(sizes.units) * max(new_nodes, 0)  # what stands in where a statistic stays exact


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "vit"])
def test_savings_are_the_differences(name: str) -> None:
    channels = channels_of(name)
    sizes = Sizes(channels, channels.prunable)
    removed = sizes.units // 3
    for size, savings in ((sizes.macs, sizes.macs_saved()), (sizes.parameters, sizes.parameters_saved())):
        predicted = savings.next_unit(removed)
        for number, group in enumerate(sizes.groups):
            step = np.zeros_like(removed)
            step[number] = 1
            found = size(removed) - size(removed + step)
            assert predicted[number] == pytest.approx(found, rel=0.05), group.name
