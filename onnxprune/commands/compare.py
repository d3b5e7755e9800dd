"""Two models side by side on samples: accuracy or likeness, and latency."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune import arguments
from onnxprune.arguments import optional
from onnxprune.commands.evidence import measure_models
from onnxprune.commands.inputs import Inputs, input_form
from onnxprune.commands.stopwatch import Stopwatch
from onnxprune.data.preprocess import parse_preprocess
from onnxprune.data.samples import load_samples
from onnxprune.errors import UsageError
from onnxprune.model.cost import cost
from onnxprune.model.io import load, read, to_proto
from onnxprune.report.build import counted_at, describe_side, environment_of, node_rows
from onnxprune.report.schema import Ratios, Report
from onnxprune.runtime.session import SessionOptions, check_provider, input_specs
from onnxprune.slim import Progress, Recipe


def compare(
    base: object,
    candidate: object,
    data: Any,
    *,
    metric: str | None = None,
    preprocess: Any = None,
    samples: int | None = None,
    ep: str = "cpu",
    threads: int | None = None,
    no_latency: bool = False,
    seed: int = 0,
    external_root: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Returns a report with metrics, fidelity and interleaved latency of two models on the same samples.

    Args:
        base: The original: a path, a ``ModelProto`` or a graph.
        candidate: The model that is held against it.
        data: Samples, with labels for accuracy.
        metric: ``top1``, ``top5``, ``agreement``, ``cosine`` or ``mse``; by default what the samples allow.
        preprocess: What is done to the samples: text such as ``mean=0.5;std=0.5``, a dict or a YAML file.
        samples: Largest number of samples; all by default. Of more, that many are drawn by ``seed``.
        ep: Execution provider.
        threads: Threads; the available cores by default.
        no_latency: Skip timing.
        seed: Seed of the draw of samples and of the confidence interval.
        external_root: Folder into which links to weight files may lead.
        progress: Called with the stage and the fraction of it that is done.

    Raises:
        ModelError: a model is invalid, or their outputs differ in name.
        CalibrationError: the samples do not fit.
    """
    if data is None:
        raise UsageError("compare needs samples: give --data SRC")
    recipe = Recipe(
        metric=optional(arguments.word, metric, "--metric"),
        preprocess=optional(parse_preprocess, preprocess, "--preprocess"),
        ep=arguments.word(ep, "--ep"),
        threads=optional(arguments.count, threads, "--threads"),
        no_latency=arguments.flag(no_latency, "--no-latency"),
        seed=arguments.whole(seed, "--seed"),
    )
    limit = optional(arguments.count, samples, "--samples") or 10**9
    options = SessionOptions(recipe.ep, recipe.threads)
    check_provider(options)
    watch = Stopwatch(progress)
    (graph, proto), (other_graph, other) = (read(model, external_root=external_root) for model in (base, candidate))
    graphs, protos = (graph, other_graph), (proto, other)
    form = input_form(proto, recipe.preprocess, {})
    loaded = load_samples(data, input_specs(proto), limit=limit, seed=recipe.seed, form=form)
    one = next(loaded.batches(1))
    inputs = Inputs({}, (), one, loaded, loaded.count, False, ())
    with watch.stage("measure"):
        evidence = measure_models(protos, inputs, recipe, watch)
    sizes = {name: tuple(int(size) for size in array.shape) for name, array in one.items()}
    costs = cost(graphs[0], sizes), cost(graphs[1], sizes)
    latencies = evidence.latencies or (None, None)
    paths = [Path(model) if isinstance(model, str | os.PathLike) else None for model in (base, candidate)]
    compress = graph.sparse or other_graph.sparse
    sides = [
        describe_side(
            protos[i], costs[i], paths[i], latencies[i], evidence.metrics[i], sparse=graphs[i].sparse, compress=compress
        )
        for i in range(2)
    ]
    return Report(
        command="compare",
        options={
            **{name: getattr(recipe, name) for name in ("metric", "ep", "threads", "no_latency")},
            "samples": loaded.count,
            "preprocess": None if recipe.preprocess is None else str(recipe.preprocess),
        },
        environment=environment_of(options, recipe.seed, evidence.provider, evidence.threads),
        before=sides[0],
        after=sides[1],
        ratios=Ratios.between(sides[0], sides[1], evidence.ratio),
        fidelity=evidence.fidelity,
        input_shapes=counted_at(graph, sizes),
        nodes=node_rows(costs, evidence.per_node),
        warnings=loaded.notes,
        seconds=watch.total(),
        latency_samples=evidence.times,
    )


def validate(graph: gs.Graph, candidate: gs.Graph, data: Any, labels: np.ndarray | None = None) -> Report:
    """Returns the report of :func:`compare` for two graphs, without latency.

    Raises:
        CalibrationError: the samples or labels do not fit.
    """
    source = data
    if labels is not None:
        specs = input_specs(to_proto(load(graph)))
        loaded = load_samples(data, specs, limit=10**9)
        arrays = {**loaded.arrays, **loaded.constants, "labels": np.asarray(labels)}
        source = load_samples(arrays, specs, limit=10**9)
    return compare(graph, candidate, source, no_latency=True)
