"""The whole line: load, analyze, score, plan, surgery, proof, measurement, report."""

import os
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnxprune.commands.choose import missed
from onnxprune.commands.cut import Cut, cut
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
from onnxprune.commands.masks import sparsity_of
from onnxprune.commands.quantizing import Quantized, failings, fallen, quantized_of
from onnxprune.commands.recipe import checked, shown
from onnxprune.commands.repair import Repair
from onnxprune.commands.stopwatch import Stopwatch
from onnxprune.commands.task import Task
from onnxprune.model.cost import Cost, cost
from onnxprune.model.inline import without_functions
from onnxprune.model.io import Graph, read, to_proto
from onnxprune.model.sizes import infer_shapes
from onnxprune.model.sparse import storage_for, stored
from onnxprune.plan.plan import Plan
from onnxprune.recover.recover import calibration
from onnxprune.recover.sequential import Calibration
from onnxprune.report.build import counted_at, describe_side, environment_of, group_rows, node_rows
from onnxprune.report.schema import Proof, Quantization, Ratios, RecoveredLayer, Recovery, Report, Sparsity
from onnxprune.runtime.session import SessionOptions, check_provider
from onnxprune.slim import Progress, Recipe, Result
from onnxprune.surgery.mask import mask_weights
from onnxprune.surgery.slice import slice_channels
from onnxprune.validate.dropped import prove_dropped
from onnxprune.validate.prepared import prove_preparation
from onnxprune.validate.proof import ProofResult, prove, worse


@dataclass(frozen=True, slots=True)
class Work:
    """What a run has made when its report is written: original first, result second in every pair.

    The second of the ``models`` is as it is stored; ``sparse`` says whether the original was stored sparse, and
    ``compress`` whether compressed sizes tell anything.
    """

    path: Path | None
    recipe: Recipe
    cut: Cut
    models: tuple[onnx.ModelProto, onnx.ModelProto]
    costs: tuple[Cost, Cost]
    inputs: Inputs
    evidence: Evidence
    repairs: Recovery
    sparsity: Sparsity
    notes: tuple[str, ...]
    sparse: bool
    compress: bool
    quantization: Quantization


Proofs = tuple[ProofResult | None, ProofResult | None]


def run(model: object, recipe: Recipe, progress: Progress | None = None) -> Result:
    """Returns the result of a recipe; see :func:`onnxprune.slim.slim` for arguments and errors."""
    recipe = checked(recipe)
    storage = storage_for(recipe.store_sparse, recipe.target)
    watch = Stopwatch(progress)
    options = SessionOptions(recipe.ep, recipe.threads)
    check_provider(options)
    with watch.stage("load"):
        graph, proto = read(model, external_root=recipe.external_root)
        if proto.functions:
            graph = without_functions(graph)
            proto = to_proto(graph)
        inputs = choose_inputs(proto, recipe)
        runs = None
        if inputs.given is not None:
            shapes = infer_shapes(graph, inputs.sizes)
            runs = calibration(inputs.given, graph, shapes, recipe.seed)
        whole = cost(graph, inputs.sizes)
    task = Task(graph, whole, recipe, stored_plan(recipe), inputs, runs)
    found = cut(task, watch)
    check_model(proto, to_proto(found.sliced))
    evidence, repairs, result = Evidence(), Recovery(), found.sliced
    if recipe.dry_run and found.masks is not None:
        result = mask_weights(result, found.masks)
    proofs: Proofs = (None, None)
    if not recipe.dry_run:
        with watch.stage("prove"):
            proofs = prove_cut(found, graph, proto, inputs, options)
        with watch.stage("recover"):
            result, repairs = repaired_cut(found, recipe, runs, watch)
    sparsity, notes = sparsity_of(result, infer_shapes(result, inputs.sizes), found.masks)
    with watch.stage("quantize"):
        numbers = Quantized(result, recipe.target)
        if not recipe.dry_run:
            numbers = quantized_of(graph if found.plan.empty else result, task, watch)
    small = to_proto(numbers.graph)
    if not recipe.dry_run:
        with watch.stage("measure"):
            evidence = measure_models((proto, small), inputs, recipe, watch, fake=numbers.fake)
            evidence.proof, evidence.preparation = proofs
    costs = whole, cost(numbers.graph, inputs.sizes)
    path = Path(model) if isinstance(model, str | os.PathLike) else None
    kept = stored(small, storage)
    compress = found.masks is not None or graph.sparse or kept is not small
    work = Work(
        path, recipe, found, (proto, kept), costs, inputs, evidence, repairs, sparsity,
        (*notes, *numbers.notes), graph.sparse, compress, numbers.report(small, options),
    )  # fmt: skip
    report = build_report(work, watch.total())
    met = not missed(recipe, *costs) and not fallen(recipe, *evidence.metrics)
    better = found.only_masks or not report.ratios.latency.slower
    better = better and not failings(report.ratios, report.quantization)
    return Result(small, report, found.plan, better, met, bool(numbers.forms), graph.external, storage)


def prove_cut(
    found: Cut, given: Graph, proto: onnx.ModelProto, inputs: Inputs, options: SessionOptions
) -> tuple[ProofResult, ProofResult | None]:
    """Returns the proof that what is left computes what it did: without blocks, and without channels.

    Raises:
        ValidationError: it does not.
        ModelError: that is the model's own doing.
    """
    channels, removals = found.channels, found.choice.plan.removals
    exact = exact_removals(channels, removals)
    provable = found.sliced if len(exact) == len(removals) else slice_channels(channels, exact)
    blocks = found.depth.blocks
    preparation = prove_preparation(given, found.original, {} if blocks else exact, inputs.proof, options)
    proof = prove(channels, exact, provable, inputs.proof, options)
    if blocks:
        proof = worse(proof, prove_dropped(found.original, blocks, found.shallow, inputs.proof, options))
    if not (proof.passed and (preparation is None or preparation.passed)):
        check_provable(found.original, proto, inputs, options)
    check_proofs(proof, preparation)
    return proof, preparation


def repaired_cut(found: Cut, recipe: Recipe, runs: Calibration | None, watch: Stopwatch) -> tuple[Graph, Recovery]:
    """Returns the result, repaired toward the original, with the weights that go at zero."""
    repair = Repair.of(recipe, watch.progress)
    removals, original = found.choice.plan.removals, found.original.graph
    result, layers = repair.apply(found.sliced, found.channels, removals, runs, original, found.masks)
    rows = tuple(RecoveredLayer(one.node, one.before, one.after, one.kept) for one in layers)
    return result, Recovery(repair.name, rows) if rows else Recovery()


def stored_plan(recipe: Recipe) -> Plan | None:
    """Returns the plan that the recipe brings, if any.

    Raises:
        UsageError: its file cannot be read.
    """
    return recipe.plan if recipe.plan is None or isinstance(recipe.plan, Plan) else Plan.load(recipe.plan)


def build_report(work: Work, seconds: dict[str, float]) -> Report:
    """Returns the report of a run."""
    recipe, evidence, inputs = work.recipe, work.evidence, work.inputs
    channels, choice = work.cut.channels, work.cut.choice
    removals = choice.plan.removals
    latencies = evidence.latencies or (None, None)
    sides = [
        describe_side(
            proto, total, work.path if number == 0 else None, latencies[number], evidence.metrics[number],
            sparse=work.sparse and number == 0, compress=work.compress,
        )
        for number, (proto, total) in enumerate(zip(work.models, work.costs, strict=True))
    ]  # fmt: skip
    proof = Proof()
    if evidence.proof is not None:
        found = evidence.proof
        inexact = tuple(group.name for group in channels.groups if group.name in removals and not group.exact)
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
        allocations=choice.rivals,
        input_shapes=counted_at(channels.graph, inputs.sizes),
        groups=group_rows(channels, removals),
        blocks=work.cut.depth.rows(),
        sparsity=work.sparsity,
        quantization=work.quantization,
        nodes=node_rows(work.costs, evidence.per_node),
        warnings=(
            *inputs.notes,
            *uncounted(work.costs[0]),
            *missed(recipe, *work.costs),
            *choice.notes,
            *work.notes,
            *failings(Ratios.between(sides[0], sides[1], evidence.ratio), work.quantization),
            *fallen(recipe, *evidence.metrics),
            *held_out_note(work),
            *_warnings(work.cut, evidence, proof, quantized=work.quantization.target is not None),
        ),
        seconds=seconds,
        latency_samples=evidence.times,
    )


def held_out_note(work: Work) -> tuple[str, ...]:
    """Returns a note where too few samples were given to hold any out of what was fitted and judged."""
    given = work.inputs.given
    if given is None or not (work.repairs.method or work.cut.choice.rivals) or len(set(map(id, given.split()))) == 2:
        return ()
    return ("too few samples to hold any out: what was fitted to them was judged on the same ones; give more",)


def uncounted(total: Cost) -> tuple[str, ...]:
    """Returns a note where multiply-accumulates could not be counted."""
    if not total.uncounted:
        return ()
    return (f"MACs are unknown: {total.uncounted} nodes that multiply have unknown shapes; try --input-shape",)


def _warnings(cut: Cut, evidence: Evidence, proof: Proof, *, quantized: bool) -> tuple[str, ...]:
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
    if evidence.ratio.slower and not cut.only_masks and not quantized:
        notes.append("the result is slower than the original on this machine: prune more, or round to another multiple")
    if cut.plan.empty and not quantized:
        notes.append("nothing was removed: the plan is empty")
    return tuple(notes)
