"""The whole line: load, analyze, score, plan, surgery, proof, measurement, report."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.channels.groups import Channels, analyze
from onnxprune.commands.stopwatch import Stopwatch
from onnxprune.data.random import find_running_sizes, random_feeds
from onnxprune.data.samples import Samples, load_samples
from onnxprune.errors import ModelError, UsageError, ValidationError
from onnxprune.model.cost import Cost, cost, weight_tensors
from onnxprune.model.io import model_bytes, read, to_proto
from onnxprune.model.shapes import Shape
from onnxprune.plan.plan import Plan, plan
from onnxprune.report.build import describe_side, environment_of, group_rows, node_rows
from onnxprune.report.schema import Fidelity, Latency, LatencyRatio, Proof, Ratios, Report, Side
from onnxprune.runtime.latency import LatencyOptions, measure
from onnxprune.runtime.profile import profile
from onnxprune.runtime.session import Session, SessionOptions, open_session
from onnxprune.score.scores import score
from onnxprune.slim import Progress, Recipe, Result
from onnxprune.surgery.slice import slice_channels
from onnxprune.validate.compare import compare
from onnxprune.validate.proof import ProofResult, prove

PROOF_SAMPLES = 8
"""Samples in the larger of the two runs that the proof makes."""


REPEATS = 8
"""Runs that show whether a model draws random numbers."""

NOISE = 0.02
"""Ratios of a file to itself were seen up to 1.016, beyond the confidence interval."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the models are run on: feeds for the proof, feeds for timing, samples for the verdict."""

    sizes: dict[str, Shape]
    proof: tuple[Mapping[str, np.ndarray], ...]
    timing: Mapping[str, np.ndarray]
    verdict: Samples | None
    samples: int
    random: bool
    notes: tuple[str, ...]


def run(model: object, recipe: Recipe, progress: Progress | None = None) -> Result:
    """Returns the result of a recipe; see :func:`onnxprune.slim.slim` for arguments and errors."""
    check_recipe(recipe)
    watch = Stopwatch(progress)
    options = SessionOptions(recipe.ep, recipe.threads)
    with watch.stage("load"):
        graph, proto = read(model, external_root=recipe.external_root)
        base = open_session(proto, options)
        inputs = choose_inputs(proto, base, recipe)
    with watch.stage("analyze"):
        channels = analyze(graph, inputs.sizes, inexact=recipe.inexact)
    with watch.stage("plan"):
        chosen = choose_plan(channels, recipe)
    with watch.stage("surgery"):
        sliced = slice_channels(channels, chosen.removals)
        result = to_proto(sliced)
        check_model(proto, result)
    evidence = Evidence()
    if not recipe.dry_run:
        with watch.stage("prove"):
            exact = exact_removals(channels, chosen.removals)
            provable = sliced if len(exact) == len(chosen.removals) else slice_channels(channels, exact)
            proof = prove(channels, exact, provable, inputs.proof, options)
            if not proof.passed:
                check_provable(channels, proto, inputs, options)
            evidence.proof = checked_proof(proof)
        with watch.stage("measure"):
            measure_models(evidence, (proto, result), base, inputs, recipe, watch)
    costs = cost(graph, shapes=channels.shapes), cost(sliced, inputs.sizes)
    report = build_report(model, recipe, channels, chosen, (proto, result), costs, inputs, evidence, base, watch)
    ratio = report.ratios.latency
    better = not is_slower(ratio)
    return Result(result, report, chosen, better, graph.external)


def is_slower(ratio: LatencyRatio) -> bool:
    """Returns whether a result is slower by more than one file is than itself, run to run."""
    return ratio.low is not None and ratio.low > 1 + NOISE


def check_recipe(recipe: Recipe) -> None:
    """Checks what can be checked before any work.

    Raises:
        UsageError: nothing is asked for, or an option is out of range.
    """
    if recipe.channels is None and recipe.plan is None:
        raise UsageError("nothing is asked for: give --channels R (the fraction of channels to remove) or --plan FILE")
    if recipe.channels is not None and recipe.plan is not None:
        raise UsageError("--channels and --plan exclude each other: a plan says already what goes")
    decided = {"score": None, "allocation": None, "round_to": "auto", "include": (), "exclude": ()}
    for name, default in decided.items() if recipe.plan is not None else ():
        if getattr(recipe, name) != default:
            raise UsageError(f"--{name.replace('_', '-')} and --plan exclude each other: a plan says already what goes")
    ratio = recipe.channels
    if ratio is not None and not (isinstance(ratio, int | float) and 0 <= ratio < 1):
        raise UsageError(f"--channels is {ratio}: give the fraction to remove, from 0 up to but not including 1")
    if recipe.metric is not None and recipe.data is None and recipe.eval is None:
        raise UsageError(f"the metric {recipe.metric!r} needs samples: give --data or --eval")
    if recipe.samples < 1:
        raise UsageError(f"--samples is {recipe.samples}: give at least 1")


def choose_inputs(proto: onnx.ModelProto, session: Session, recipe: Recipe) -> Inputs:
    """Returns real samples where given, else seeded random inputs in sizes that run."""
    overrides = {name: tuple(int(size) for size in shape) for name, shape in recipe.input_shape.items()}
    verdict = load_samples(recipe.eval, session.inputs, limit=10**9) if recipe.eval is not None else None
    if recipe.data is not None:
        samples = load_samples(recipe.data, session.inputs, limit=recipe.samples)
        if verdict is None:
            verdict = samples.split()[1]
        many, one = (next(samples.batches(size)) for size in (PROOF_SAMPLES, 1))
        sizes = {name: tuple(int(size) for size in array.shape) for name, array in one.items()}
        return Inputs(sizes, (many, one), one, verdict, len(next(iter(many.values()))) + 1, False, ())
    found = find_running_sizes(proto, overrides, SessionOptions(recipe.ep, recipe.threads, optimize=False))
    first = random_feeds(proto, found.shapes, recipe.seed)
    feeds = [first, random_feeds(proto, found.shapes, recipe.seed + 1)]
    double = {
        spec.name: (2 * found.shapes[spec.name][0], *found.shapes[spec.name][1:])
        for spec in session.inputs
        if spec.shape and not isinstance(spec.shape[0], int)
    }
    if double:
        larger = random_feeds(proto, {**found.shapes, **double}, recipe.seed + 2)
        if _runs(session, larger):
            feeds.append(larger)
    notes = [f"no data was given: proof and latency use random inputs of seed {recipe.seed}"]
    free = {name: size for name, size in found.chosen.items() if size != 1}
    if free and not overrides:
        sizes_text = ", ".join(f"{name} = {size}" for name, size in free.items())
        notes.append(f"free dimensions were measured at {sizes_text}: set others with --input-shape")
    return Inputs(found.shapes, tuple(feeds), first, verdict, len(feeds), True, tuple(notes))


def choose_plan(channels: Channels, recipe: Recipe) -> Plan:
    """Returns the stored plan, or a new one.

    Raises:
        PlanError: the stored plan does not fit, or nothing can be removed.
    """
    if recipe.plan is None:
        scores = score(channels, recipe.score, seed=recipe.seed)
        return plan(
            channels, scores, recipe.channels or 0.0, recipe.round_to, recipe.allocation or "uniform", recipe.target,
            recipe.include, recipe.exclude,
        )  # fmt: skip
    stored = recipe.plan if isinstance(recipe.plan, Plan) else Plan.load(recipe.plan)
    stored.check(channels)
    return stored


@dataclass(slots=True)
class Evidence:
    """What was measured; ``None`` where it was not."""

    proof: ProofResult | None = None
    latencies: tuple[Latency, Latency] | None = None
    ratio: LatencyRatio = field(default_factory=LatencyRatio)
    times: dict[str, list[float]] = field(default_factory=dict)
    per_node: tuple[dict[str, float], dict[str, float]] = field(default_factory=lambda: ({}, {}))
    metrics: tuple[dict[str, float | None], dict[str, float | None]] = field(default_factory=lambda: ({}, {}))
    fidelity: Fidelity = field(default_factory=Fidelity)


def checked_proof(proof: ProofResult) -> ProofResult:
    """Returns the proof if it passed.

    Raises:
        ValidationError: the models differ by more than rounding.
    """
    if proof.passed:
        return proof
    raise ValidationError(
        f"the pruned model differs from the masked original by {proof.relative:.1e} of the largest value of "
        f"{proof.output!r} (limit {proof.limit:.0e}): nothing was written; please report the model and the options"
    )


def exact_removals(channels: Channels, removals: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Returns the removals of which the slicing law speaks: those of exact groups."""
    exact = {group.name for group in channels.groups if group.exact}
    return {name: units for name, units in removals.items() if name in exact}


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
    """Runs the full ONNX check on the result, where the original passes it and both fit into one message.

    Raises:
        ValidationError: the result is not valid ONNX though the original is.
    """
    if model_bytes(before) >= onnx.checker.MAXIMUM_PROTOBUF // 2:
        return
    try:
        onnx.checker.check_model(after, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        try:
            onnx.checker.check_model(before, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
            return
        reason = str(error).splitlines()[0]
        raise ValidationError(f"the pruned model is not valid ONNX ({reason}): please report the model") from error


def measure_models(
    evidence: Evidence,
    models: tuple[onnx.ModelProto, onnx.ModelProto],
    base: Session,
    inputs: Inputs,
    recipe: Recipe,
    watch: Stopwatch,
) -> None:
    """Fills in metrics, fidelity, latency and the time of every node."""
    options = SessionOptions(recipe.ep, recipe.threads)
    small = open_session(models[1], options)
    if inputs.verdict is not None:
        comparison = compare(base, small, inputs.verdict, metric=recipe.metric, progress=watch.progress)
        evidence.metrics = comparison.before, comparison.after
        found = comparison.fidelity
        evidence.fidelity = Fidelity(found.agreement, found.cosine, found.sqnr_db, found.max_abs)
    if recipe.no_latency:
        return
    timed = measure(
        {"before": base, "after": small}, {"before": inputs.timing, "after": inputs.timing},
        LatencyOptions(seed=recipe.seed), watch.progress,
    )  # fmt: skip
    before, after = timed.latencies["before"], timed.latencies["after"]
    evidence.latencies = Latency(**before.to_dict()), Latency(**after.to_dict())
    ratio = timed.ratios["after"]
    evidence.ratio = LatencyRatio(ratio.median, ratio.low, ratio.high)
    evidence.times = {"before": list(before.samples_ms), "after": list(after.samples_ms)}
    plain = SessionOptions(recipe.ep, recipe.threads, optimize=False)
    evidence.per_node = profile(models[0], inputs.timing, plain), profile(models[1], inputs.timing, plain)


def build_report(
    model: object,
    recipe: Recipe,
    channels: Channels,
    chosen: Plan,
    models: tuple[onnx.ModelProto, onnx.ModelProto],
    costs: tuple[Cost, Cost],
    inputs: Inputs,
    evidence: Evidence,
    session: Session,
    watch: Stopwatch,
) -> Report:
    """Returns the report of a run."""
    latencies = evidence.latencies or (None, None)
    path = Path(model) if isinstance(model, str | os.PathLike) else None
    sides = [
        describe_side(proto, total, path if number == 0 else None, latencies[number], evidence.metrics[number])
        for number, (proto, total) in enumerate(zip(models, costs, strict=True))
    ]
    proof = Proof()
    if evidence.proof is not None:
        found = evidence.proof
        inexact = tuple(name for name in chosen.removals if not channels.group(name).exact)
        proof = Proof(
            True, found.max_abs, found.relative, found.passed, inexact, found.limit, inputs.samples, inputs.random
        )
    return Report(
        command="slim",
        options=_options(recipe),
        environment=environment_of(session, recipe.seed, SessionOptions(recipe.ep, recipe.threads)),
        before=sides[0],
        after=sides[1],
        ratios=Ratios.between(sides[0], sides[1], evidence.ratio),
        fidelity=evidence.fidelity,
        proof=proof,
        groups=group_rows(channels, chosen.removals),
        nodes=node_rows(costs, evidence.per_node),
        warnings=inputs.notes + _warnings(sides, evidence, proof),
        seconds=watch.total(),
        latency_samples=evidence.times,
    )


def _warnings(sides: list[Side], evidence: Evidence, proof: Proof) -> tuple[str, ...]:
    notes = []
    if proof.inexact_groups:
        names = ", ".join(map(repr, proof.inexact_groups[:3])) + (" ..." if len(proof.inexact_groups) > 3 else "")
        notes.append(
            f"{len(proof.inexact_groups)} groups are inexact, a normalization takes a statistic over their channels, "
            f"and stand outside the proof: {names}"
        )
    if is_slower(evidence.ratio):
        notes.append("the result is slower than the original on this machine: prune more, or round to another multiple")
    if sides[0].macs == sides[1].macs and sides[0].parameters == sides[1].parameters:
        notes.append("nothing was removed: the plan is empty")
    return tuple(notes)


def _options(recipe: Recipe) -> dict[str, Any]:
    """The options as they were given; arrays and plans by their kind."""
    shown: dict[str, Any] = {}
    for item in fields(recipe):
        value = getattr(recipe, item.name)
        simple = value is None or isinstance(value, str | int | float | bool | tuple | dict)
        shown[item.name] = value if simple else str(value) if isinstance(value, os.PathLike) else type(value).__name__
    if isinstance(recipe.data, dict):
        shown["data"] = "dict"
    if isinstance(recipe.eval, dict):
        shown["eval"] = "dict"
    return shown


def _runs(session: Session, feeds: Mapping[str, np.ndarray]) -> bool:
    try:
        session.run(feeds)
    except ModelError:
        return False
    return True
