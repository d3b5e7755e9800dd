"""Law 2 on every real model that can be found: masked equals sliced, at three ratios and three seeds each.

The slow part is marked ``zoo``. ``bench/coverage.py`` prints the same as a table.
"""

import sys
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

from collection import Entry, collection

from onnxprune.channels.groups import Channels, analyze
from onnxprune.commands.inputs import Inputs, choose_inputs
from onnxprune.errors import PlanError
from onnxprune.model.cost import cost
from onnxprune.model.io import load, to_proto
from onnxprune.plan.plan import plan
from onnxprune.score.scores import score
from onnxprune.slim import Recipe
from onnxprune.surgery.slice import slice_channels
from onnxprune.validate.proof import prove

RATIOS = (0.25, 0.5, 0.75)
SEEDS = (0, 1, 2)

ENTRIES = {entry.name: entry for entry in collection()}
QUICK = ("mobilenet", "resnet", "vit", "light_squeezenet")

NOTHING = {"silero_vad/silero_vad", "silero_vad/silero_vad_op18_ifless"}
"""All of their weights are inside the bodies of If."""

LEAST_MACS = {
    "light_resnet50": 0.70,
    "light_densenet121": 0.70,
    "light_inception_v1": 0.70,
    "light_inception_v2": 0.70,
    "light_vgg19": 0.70,
    "light_squeezenet": 0.60,
    "cifar_resnet20": 0.40,
    "cifar_resnet56": 0.40,
    "rapidocr_onnxruntime/ch_PP-OCRv4_det_infer": 0.40,
    "rapidocr_onnxruntime/ch_ppocr_mobile_v2.0_cls_infer": 0.40,
}
"""MACs that --round-to 1 --channels 0.5 has to remove at least."""


@cache
def opened(name: str) -> tuple[Channels, Inputs]:
    entry: Entry = ENTRIES[name]
    graph = load(entry.open())
    proto = to_proto(graph)
    inputs = choose_inputs(proto, Recipe(channels=0.5))
    return analyze(graph, inputs.sizes), inputs


def check_law(name: str) -> None:
    channels, inputs = opened(name)
    assert (name in NOTHING) == (not channels.prunable)
    for ratio in RATIOS if channels.prunable else ():
        for seed in SEEDS:
            removals = plan(channels, score(channels, "random", seed=seed), ratio, 1).removals
            proof = prove(channels, removals, slice_channels(channels, removals), inputs.proof)
            assert proof.passed, f"{name} at {ratio}, seed {seed}: {proof}"


@pytest.mark.parametrize("name", QUICK)
def test_masked_equals_sliced(name: str) -> None:
    check_law(name)


@pytest.mark.zoo
@pytest.mark.parametrize("name", sorted(set(ENTRIES) - set(QUICK)))
def test_masked_equals_sliced_everywhere(name: str) -> None:
    check_law(name)


@pytest.mark.zoo
@pytest.mark.parametrize("name", sorted(set(LEAST_MACS) & set(ENTRIES)))
def test_half_of_the_channels_removes_enough(name: str) -> None:
    channels, inputs = opened(name)
    removals = plan(channels, score(channels), 0.5, 1).removals
    before = cost(channels.graph, inputs.sizes).macs
    after = cost(slice_channels(channels, removals), inputs.sizes).macs
    assert 1 - after / before >= LEAST_MACS[name]


@pytest.mark.parametrize("name", sorted(NOTHING & set(ENTRIES)))
def test_a_model_with_nothing_to_prune_says_why(name: str) -> None:
    channels, _ = opened(name)
    with pytest.raises(PlanError, match="the weights are inside the bodies of"):
        plan(channels, score(channels), 0.5)


def test_the_collection_is_complete() -> None:
    packages = {name.partition("/")[0] for name in ENTRIES if "/" in name}
    assert {"mobilenet", "resnet", "vit"} <= set(ENTRIES)
    assert len([name for name in ENTRIES if name.startswith("light_")]) == 9
    expected = {"basic_pitch", "magika", "silero_vad"} | (
        {"rapidocr_onnxruntime"} if sys.version_info < (3, 13) else set()
    )
    assert packages == expected, "run the tests with 'make test', which installs the packages that carry models"
