"""The whole line: load, analyze, score, plan, surgery, proof, measurement, report."""

import os
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnxprune.channels.groups import Channels, analyze
from onnxprune.commands.choose import Choice, choose_plan, missed
from onnxprune.commands.evidence import (
    Evidence,
    check_model,
    check_proofs,
    check_provable,
    exact_removals,
    measure_models,
    rounding_note,
)
from onnxprune.commands.inputs import Inputs, choose_inputs
from onnxprune.commands.recipe import checked, shown
from onnxprune.commands.repair import Repair
from onnxprune.commands.stopwatch import Stopwatch
from onnxprune.model.cost import Cost, cost
from onnxprune.model.inline import without_functions
from onnxprune.model.io import read, to_proto
from onnxprune.plan.plan import Plan
from onnxprune.recover.recover import calibration
from onnxprune.report.build import counted_at, describe_side, environment_of, group_rows, node_rows
from onnxprune.report.schema import Proof, Ratios, RecoveredLayer, Recovery, Report, Side
from onnxprune.runtime.session import SessionOptions, check_provider
from onnxprune.slim import Progress, Recipe, Result
from onnxprune.surgery.slice import slice_channels
from onnxprune.validate.prepared import prove_preparation
from onnxprune.validate.proof import prove


@dataclass(frozen=True, slots=True)
class Work:
    """What a run has made when its report is written: original first, result second in every pair."""

    path: Path | None
    recipe: Recipe
    channels: Channels
    choice: Choice
    models: tuple[onnx.ModelProto, onnx.ModelProto]
    costs: tuple[Cost, Cost]
    inputs: Inputs
    evidence: Evidence
    repairs: Recovery


def run(model: object, recipe: Recipe, progress: Progress | None = None) -> Result:
    """Returns the result of a recipe; see :func:`onnxprune.slim.slim` for arguments and errors."""
    recipe = checked(recipe)
    watch = Stopwatch(progress)
    options = SessionOptions(recipe.ep, recipe.threads)
    check_provider(options)
    with watch.stage("load"):
        graph, proto = read(model, external_root=recipe.external_root)
        if proto.functions:
            graph = without_functions(graph)
            proto = to_proto(graph)
        inputs = choose_inputs(proto, recipe)
    with watch.stage("analyze"):
        stored = stored_plan(recipe)
        inexact = recipe.inexact or (stored is not None and bool(stored.options.get("inexact")))
        channels = analyze(graph, inputs.sizes, inexact=inexact)
    with watch.stage("plan"):
        whole = cost(graph, inputs.sizes)
        choice = Choice(stored) if stored is not None else choose_plan(channels, recipe, inputs, whole, watch.progress)
        chosen = choice.plan
        chosen.check(channels)
    with watch.stage("surgery"):
        sliced = slice_channels(channels, chosen.removals)
        check_model(proto, to_proto(sliced))
    evidence = Evidence()
    result, repairs = sliced, Recovery()
    if not recipe.dry_run:
        with watch.stage("prove"):
            exact = exact_removals(channels, chosen.removals)
            provable = sliced if len(exact) == len(chosen.removals) else slice_channels(channels, exact)
            preparation = prove_preparation(graph, channels, exact, inputs.proof, options)
            proof = prove(channels, exact, provable, inputs.proof, options)
            if not (proof.passed and (preparation is None or preparation.passed)):
                check_provable(channels, proto, inputs, options)
            check_proofs(proof, preparation)
        with watch.stage("recover"):
            repair = Repair.of(recipe, watch.progress)
            runs = None if inputs.given is None else calibration(inputs.given, recipe.seed)
            result, layers = repair.apply(sliced, channels, chosen.removals, runs)
            if layers:
                rows = (RecoveredLayer(one.node, one.before, one.after, one.kept) for one in layers)
                repairs = Recovery(repair.name, tuple(rows))
        with watch.stage("measure"):
            evidence = measure_models((proto, to_proto(result)), inputs, recipe, watch)
            evidence.proof, evidence.preparation = proof, preparation
    costs = whole, cost(result, inputs.sizes)
    path = Path(model) if isinstance(model, str | os.PathLike) else None
    small = to_proto(result)
    work = Work(path, recipe, channels, choice, (proto, small), costs, inputs, evidence, repairs)
    report = build_report(work, watch.total())
    met = not missed(recipe, *costs)
    return Result(small, report, chosen, not report.ratios.latency.slower, met, graph.external)


def stored_plan(recipe: Recipe) -> Plan | None:
    """Returns the plan that the recipe brings, if any.

    Raises:
        UsageError: its file cannot be read.
    """
    return recipe.plan if recipe.plan is None or isinstance(recipe.plan, Plan) else Plan.load(recipe.plan)


def build_report(work: Work, seconds: dict[str, float]) -> Report:
    """Returns the report of a run."""
    recipe, evidence, inputs = work.recipe, work.evidence, work.inputs
    latencies = evidence.latencies or (None, None)
    sides = [
        describe_side(proto, total, work.path if number == 0 else None, latencies[number], evidence.metrics[number])
        for number, (proto, total) in enumerate(zip(work.models, work.costs, strict=True))
    ]
    proof = Proof()
    if evidence.proof is not None:
        found = evidence.proof
        inexact = tuple(
            group.name for group in work.channels.groups if group.name in work.choice.plan.removals and not group.exact
        )
        proof = Proof(
            True, found.max_abs, found.relative, found.passed, inexact, found.limit, inputs.samples, inputs.random,
            found.float64,
        )  # fmt: skip
    return Report(
        command="slim",
        options=shown(recipe),
        environment=environment_of(
            SessionOptions(recipe.ep, recipe.threads), recipe.seed, evidence.provider, evidence.threads
        ),
        before=sides[0],
        after=sides[1],
        ratios=Ratios.between(sides[0], sides[1], evidence.ratio),
        fidelity=evidence.fidelity,
        proof=proof,
        recovery=work.repairs,
        allocations=work.choice.rivals,
        input_shapes=counted_at(work.channels.graph, inputs.sizes),
        groups=group_rows(work.channels, work.choice.plan.removals),
        nodes=node_rows(work.costs, evidence.per_node),
        warnings=(
            *inputs.notes,
            *uncounted(work.costs[0]),
            *missed(recipe, *work.costs),
            *work.choice.notes,
            *held_out_note(work),
            *_warnings(sides, evidence, proof),
        ),
        seconds=seconds,
        latency_samples=evidence.times,
    )


def held_out_note(work: Work) -> tuple[str, ...]:
    """Returns a note where too few samples were given to hold any out of what was fitted and judged."""
    given = work.inputs.given
    if given is None or not (work.repairs.method or work.choice.rivals) or len(set(map(id, given.split()))) == 2:
        return ()
    return ("too few samples to hold any out: what was fitted to them was judged on the same ones; give more",)


def uncounted(total: Cost) -> tuple[str, ...]:
    """Returns a note where multiply-accumulates could not be counted."""
    if not total.uncounted:
        return ()
    return (f"MACs are unknown: {total.uncounted} nodes that multiply have unknown shapes; try --input-shape",)


def _warnings(sides: list[Side], evidence: Evidence, proof: Proof) -> tuple[str, ...]:
    notes = [
        *rounding_note(evidence.preparation, "the graph as given and as prepared for pruning"),
        *rounding_note(evidence.proof, "the masked original and the pruned model"),
    ]
    if proof.inexact_groups:
        names = ", ".join(map(repr, proof.inexact_groups[:3])) + (" ..." if len(proof.inexact_groups) > 3 else "")
        notes.append(
            "a normalization takes a statistic over the channels of inexact groups, "
            f"which stand outside the proof: {names}"
        )
    if evidence.ratio.slower:
        notes.append("the result is slower than the original on this machine: prune more, or round to another multiple")
    if sides[0].macs == sides[1].macs and sides[0].parameters == sides[1].parameters:
        notes.append("nothing was removed: the plan is empty")
    return tuple(notes)
