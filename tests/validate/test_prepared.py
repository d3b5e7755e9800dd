"""What analysis prepares computes what the model computes, and a run ends where it does not."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx_text import model

import onnxprune
from onnxprune.errors import ValidationError
from onnxprune.model import normalize
from onnxprune.model.io import Graph, load, read_values, write_values
from onnxprune.runtime.session import SessionOptions
from onnxprune.surgery.gone import Removals
from onnxprune.validate.prepared import prove_preparation
from onnxprune.validate.proof import TOLERANCE, TOLERANCE_EXACT

OPTIONS = SessionOptions(threads=1)
RNG = np.random.default_rng(0)
FEEDS = [{"x": RNG.standard_normal((2, 3, 6, 6), np.float32)}, {"x": RNG.standard_normal((4, 3, 6, 6), np.float32)}]
CONVOLUTIONS = "a = Conv(x, w) b = Relu(a) y = Conv(b, v)"
SHUFFLED = (
    "a = Conv(x, w) s = Reshape(a, split) t = Transpose<perm=[0,2,1,3,4]>(s) b = Reshape(t, joined) c = Relu(b) "
    "y = Conv(c, v)"
)
STANDARDIZED = (
    "m = ReduceMean<axes=[1,2,3]>(w) d = Sub(w, m) q = Mul(d, d) e = ReduceMean<axes=[1,2,3]>(q) r = Sqrt(e) "
    "u = Div(d, r) a = Conv(x, u) b = Relu(a) z = Conv(b, v) "
)


def convolutions() -> onnx.ModelProto:
    return model("x:N,3,6,6 w=8,3,3,3 v=4,8,3,3", CONVOLUTIONS)


def shuffled() -> onnx.ModelProto:
    return model("x:N,3,6,6 w=8,3,3,3 v=4,8,3,3 split={0,2,4,4,4} joined={0,8,4,4}", SHUFFLED)


def standardized(steps: int = 0) -> onnx.ModelProto:
    """Weights that analysis computes, and a logistic map that doubles what rounding leaves apart at every step."""
    text = STANDARDIZED + "p0 = Sigmoid(z) "
    for step in range(steps):
        text += f"n{step} = Sub(one, p{step}) q{step} = Mul(p{step}, n{step}) p{step + 1} = Mul(k, q{step}) "
    return model("x:N,3,6,6 w=8,3,3,3 v=4,8,3,3 k=f#3.99 one=f#1", text)


def prepared(proto: onnx.ModelProto) -> tuple[Graph, onnxprune.analyze, Removals]:
    channels = onnxprune.analyze(proto)
    return load(proto), channels, {group.name: (0, 3) for group in channels.prunable}


def test_where_nothing_changed_nothing_is_compared() -> None:
    assert prove_preparation(*prepared(convolutions()), FEEDS, OPTIONS) is None


def test_a_shared_bias_that_is_copied_is_no_change() -> None:
    proto = model("x:N,3,6,6 w=8,3,3,3 v=8,8,1,1 b=8 u=4,8,1,1", "a = Conv(x, w, b) c = Conv(a, v, b) y = Conv(c, u)")
    assert prove_preparation(*prepared(proto), FEEDS, OPTIONS) is None


@pytest.mark.parametrize("proto", [shuffled(), standardized()])
def test_what_is_prepared_computes_the_same(proto: onnx.ModelProto) -> None:
    found = prove_preparation(*prepared(proto), FEEDS, OPTIONS)
    assert found is not None
    assert found.within
    assert (found.runs, found.float64) == (2, None)


def test_amplified_rounding_of_folded_weights_is_no_difference() -> None:
    found = prove_preparation(*prepared(standardized(18)), FEEDS, OPTIONS)
    assert found is not None
    assert found.relative > TOLERANCE
    assert found.float64 is not None
    assert found.float64 < TOLERANCE_EXACT
    assert found.passed


@pytest.mark.parametrize("steps", [0, 18])
def test_a_wrongly_folded_weight_is_seen(steps: int) -> None:
    given, channels, removals = prepared(standardized(steps))
    variance = next(node for node in channels.graph.nodes if node.op == "Sqrt").inputs[0]
    assert isinstance(variance, gs.Constant)
    write_values(variance, read_values(variance) * np.float32(1.001))
    found = prove_preparation(given, channels, removals, FEEDS, OPTIONS)
    assert found is not None
    assert not found.passed
    assert found.untried == "its stored tensors are not those that float64 finds"


def test_a_run_ends_where_the_preparation_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = normalize.normalize

    def wrong(graph: gs.Graph, shapes: object) -> bool:
        changed = right(graph, shapes)
        gather = next(node for node in graph.nodes if node.op == "Gather")
        write_values(gather.inputs[1], read_values(gather.inputs[1])[::-1].copy())
        return changed

    assert onnxprune.slim(shuffled(), 0.5, round_to=1, data=FEEDS[0], no_latency=True).report.proof.passed
    monkeypatch.setattr(normalize, "normalize", wrong)
    message = (
        "the graph prepared for pruning differs from the model as given by .* in float64 by .*: nothing was written"
    )
    with pytest.raises(ValidationError, match=message) as found:
        onnxprune.slim(shuffled(), 0.5, round_to=1, data=FEEDS[0], no_latency=True)
    assert found.value.exit_code == 7


def test_a_run_says_that_float64_decided_about_the_preparation() -> None:
    report = onnxprune.slim(standardized(18), 0.5, round_to=1, data=FEEDS[0], no_latency=True).report
    assert any("the graph as given and as prepared for pruning differ by" in note for note in report.warnings)
