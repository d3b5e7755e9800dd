"""Law 1 on the node tests that ONNX itself comes with, operators and their function bodies, where anything can go."""

import dataclasses
import functools
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from law import _run, _with_shapes, difference, seeded_removals
from onnx import numpy_helper

from onnxprune.channels.groups import analyze
from onnxprune.errors import ModelError
from onnxprune.model.io import to_proto
from onnxprune.surgery.gates import silence
from onnxprune.surgery.slice import Gone, slice_channels

NEWEST = 25
PARTS = 8
LIMIT, LIMIT_HALF = 1e-4, 2e-3


@functools.cache
def node_tests() -> list[Any]:
    """Returns the tests of opsets that we speak for; training draws random numbers, and no two runs agree."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    chosen = []
    for case in found:
        versions = {entry.domain: entry.version for entry in case.model.opset_import} if case.model else {}
        if versions.get("", NEWEST + 1) <= NEWEST and "training" not in case.name and case.data_sets:
            chosen.append(case)
    return chosen


def variants(case: Any) -> list[tuple[onnx.ModelProto, dict[str, np.ndarray]]]:
    """Returns the model as it is, and with its small integer inputs stored, as exporters store them."""
    values = [numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else x for x in case.data_sets[0][0]]
    feeds = dict(zip((value.name for value in case.model.graph.input), values, strict=False))
    if not all(isinstance(value, np.ndarray) for value in values):
        return []
    operands = [n for n, x in list(feeds.items())[1:] if x.dtype.kind in "iu" and x.ndim <= 1]
    stored = onnx.ModelProto()
    stored.CopyFrom(case.model)
    del stored.graph.input[:]
    stored.graph.input.extend(value for value in case.model.graph.input if value.name not in operands)
    stored.graph.initializer.extend(numpy_helper.from_array(feeds[name], name) for name in operands)
    rest = {name: x for name, x in feeds.items() if name not in operands}
    return [(case.model, feeds), (stored, rest)] if operands else [(case.model, feeds)]


def violation(model: onnx.ModelProto, feeds: dict[str, np.ndarray], seed: int) -> float:
    """Returns the largest difference in multiples of the limit; 0 where nothing can go."""
    channels = analyze(model, {name: x.shape for name, x in feeds.items()}, boundary=False)
    if not channels.prunable:
        return 0.0
    removals = seeded_removals(channels, seed)
    gone = Gone(channels, removals)
    sizes = {name: gone.shape(name, shape) for name, shape in channels.sizes.items()}
    sliced = to_proto(slice_channels(dataclasses.replace(channels, sizes=sizes), removals))
    if all(value.name in channels.shapes.shapes for value in (*model.graph.input, *model.graph.output)):
        sliced = _with_shapes(sliced, channels, gone)
    smaller = {name: gone.take(name, x) for name, x in feeds.items()}
    masked = to_proto(silence(channels, removals))
    how = "runtime"
    try:
        expected = _run(masked, feeds, how)
    except ModelError:
        how = "double"
        expected = _run(masked, feeds, how)
    found = _run(sliced, smaller, how)
    worst = 0.0
    for name, values in expected.items():
        if values.dtype.kind in "fiub":
            limit = LIMIT_HALF if values.dtype == np.float16 else LIMIT
            worst = max(worst, difference(gone.take(name, values), found[name]) / limit)
    return worst


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(PARTS))
def test_the_law_holds_on_the_node_tests_of_onnx(part: int) -> None:
    cases = node_tests()[part::PARTS]
    assert len(cases) > 100
    broken = [
        case.name
        for case in cases
        for model, feeds in variants(case)
        for seed in range(2)
        if all(x.size for x in feeds.values()) and violation(model, feeds, seed) > 1
    ]
    assert broken == []
