"""What speaks for a result: checks, the proof, metrics and times."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from onnxprune.channels.groups import Channels
from onnxprune.commands.inputs import Inputs
from onnxprune.commands.stopwatch import Stopwatch
from onnxprune.errors import ModelError, ValidationError
from onnxprune.model.cost import weight_tensors
from onnxprune.model.external import without_weights
from onnxprune.report.schema import Fidelity, Latency, LatencyRatio
from onnxprune.runtime.latency import LatencyOptions, measure
from onnxprune.runtime.profile import profile
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.slim import Recipe
from onnxprune.validate.compare import compare
from onnxprune.validate.proof import TOLERANCE_EXACT, ProofResult

REPEATS = 8
"""Runs that show whether a model draws random numbers."""


@dataclass(slots=True)
class Evidence:
    """What was measured, and where; ``None`` where it was not."""

    proof: ProofResult | None = None
    preparation: ProofResult | None = None
    provider: str | None = None
    threads: int | None = None
    latencies: tuple[Latency, Latency] | None = None
    ratio: LatencyRatio = field(default_factory=LatencyRatio)
    times: dict[str, list[float]] = field(default_factory=dict)
    per_node: tuple[dict[str, float], dict[str, float]] = field(default_factory=lambda: ({}, {}))
    metrics: tuple[dict[str, float | None], dict[str, float | None]] = field(default_factory=lambda: ({}, {}))
    fidelity: Fidelity = field(default_factory=Fidelity)


def exact_removals(channels: Channels, removals: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Returns the removals of which the slicing law speaks: those of exact groups."""
    exact = {group.name for group in channels.groups if group.exact}
    return {name: units for name, units in removals.items() if name in exact}


def check_proofs(proof: ProofResult, preparation: ProofResult | None) -> None:
    """Checks that the proof passed, and that of the prepared graph where there is one.

    Raises:
        ValidationError: the models differ by more than rounding.
    """
    whole = (preparation, "the graph prepared for pruning differs from the model as given")
    for found, what in (whole, (proof, "the pruned model differs from the masked original")):
        if found is None or found.passed:
            continue
        again = f"float64 could not judge it: {found.untried}"
        if found.float64 is not None:
            again = f"in float64 by {found.float64:.1e} with the limit {TOLERANCE_EXACT:.0e}"
        raise ValidationError(
            f"{what} by {found.relative:.1e} of the largest value of {found.output!r} (limit {found.limit:.0e}; "
            f"{again}): nothing was written; please report the model and the options"
        )


def rounding_note(found: ProofResult | None, what: str) -> tuple[str, ...]:
    """Returns a note where rounding reaches beyond the limit, so that float64 had to decide."""
    if found is None or found.float64 is None:
        return ()
    return (
        f"the network amplifies rounding: in float32 {what} differ by {found.relative:.1e} of the largest value of "
        f"{found.output!r}, repeated in float64 by {found.float64:.1e}",
    )


def check_provable(channels: Channels, proto: onnx.ModelProto, inputs: Inputs, options: SessionOptions) -> None:
    """Checks that a failed proof is not the model's own doing.

    Raises:
        ModelError: weights are not finite, so that zeros do not silence them, or the outputs are random.
    """
    for name, values in weight_tensors(channels.graph):
        if not np.isfinite(values.astype(np.float64)).all():
            raise ModelError(f"the weight {name!r} holds values that are not finite: repair the model first")
    plain = open_session(proto, replace(options, optimize=False))
    for feeds in inputs.proof:
        first = plain.run(feeds)
        again = [plain.run(feeds) for _ in range(REPEATS)]
        if any(not np.array_equal(first[name], other[name], equal_nan=True) for other in again for name in first):
            raise ModelError("the model draws random numbers, no two runs agree: export it for inference, not training")


def check_model(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Runs the full ONNX check on the structure of the result, where the original passes it.

    Raises:
        ValidationError: the result is not valid ONNX though the original is.
    """
    try:
        onnx.checker.check_model(without_weights(after), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        try:
            onnx.checker.check_model(without_weights(before), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
            return
        reason = str(error).splitlines()[0]
        raise ValidationError(f"the pruned model is not valid ONNX ({reason}): please report the model") from error


def measure_models(
    models: tuple[onnx.ModelProto, onnx.ModelProto],
    inputs: Inputs,
    recipe: Recipe,
    watch: Stopwatch,
    *,
    fake: bool = False,
) -> Evidence:
    """Returns metrics, fidelity, latency and the time of every node; sessions are open no longer than they measure.

    The integers of a ``fake`` model are for another runtime: it is computed in floats, and its time means nothing.
    """
    evidence = Evidence()
    options = SessionOptions(recipe.ep, recipe.threads)
    base, small = open_session(models[0], options), open_session(models[1], replace(options, integers=not fake))
    evidence.provider, evidence.threads = base.provider, base.threads
    if inputs.verdict is not None:
        comparison = compare(base, small, inputs.verdict, metric=recipe.metric, progress=watch.progress)
        evidence.metrics = comparison.before, comparison.after
        found = comparison.fidelity
        evidence.fidelity = Fidelity(found.agreement, found.cosine, found.sqnr_db, found.max_abs)
    if recipe.no_latency or fake:
        return evidence
    timed = measure(
        {"before": base, "after": small}, {"before": inputs.timing, "after": inputs.timing},
        LatencyOptions(seed=recipe.seed), watch.progress,
    )  # fmt: skip
    before, after = timed.latencies["before"], timed.latencies["after"]
    evidence.latencies = Latency(**before.to_dict()), Latency(**after.to_dict())
    ratio = timed.ratios["after"]
    evidence.ratio = LatencyRatio(ratio.median, ratio.low, ratio.high)
    evidence.times = {"before": list(before.samples_ms), "after": list(after.samples_ms)}
    del base, small  # profiling opens sessions of its own
    plain = SessionOptions(recipe.ep, recipe.threads, optimize=False)
    evidence.per_node = profile(models[0], inputs.timing, plain), profile(models[1], inputs.timing, plain)
    return evidence
