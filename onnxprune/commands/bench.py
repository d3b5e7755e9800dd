"""Latency of one or more models, interleaved."""

import os
import time
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune import arguments
from onnxprune.commands.inputs import input_form
from onnxprune.data.preprocess import parse_preprocess
from onnxprune.data.random import find_running_sizes, random_feeds
from onnxprune.data.samples import load_samples
from onnxprune.errors import UsageError
from onnxprune.model.io import read
from onnxprune.report.build import describe_side, environment_of
from onnxprune.report.schema import Latency, LatencyRatio, ModelRow, Ratios, Report
from onnxprune.runtime.latency import LatencyComparison, LatencyOptions, measure
from onnxprune.runtime.session import Session, SessionOptions, input_specs, open_session
from onnxprune.slim import Progress


def bench(
    models: object,
    *,
    data: Any = None,
    preprocess: Any = None,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    ep: str = "cpu",
    threads: int | None = None,
    seconds: float = 3.0,
    seed: int = 0,
    external_root: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Returns the latency of models that take turns in one process; the first is the baseline of the ratios.

    Args:
        models: Paths, ``ModelProto`` or graphs; a single one stands for a list of one.
        data: Samples to run on, one of which is drawn by ``seed``; seeded random inputs by default.
        preprocess: What is done to the samples: text such as ``mean=0.5;std=0.5``, a dict or a YAML file.
        input_shape: Concrete shapes of inputs with free dimensions.
        ep: Execution provider.
        threads: Threads; the available cores by default.
        seconds: Time to measure each model for.
        seed: Seed of random inputs and of the confidence interval.
        external_root: Folder into which links to weight files may lead.
        progress: Called with the stage and the fraction of it that is done.

    Raises:
        UsageError: there is no model, or an option is out of range.
        ModelError: a model is invalid or does not run.
    """
    start = time.perf_counter()
    models = list(models) if isinstance(models, list | tuple) else [models]
    if not models:
        raise UsageError("bench needs at least one model: give the path of an .onnx file")
    seconds, seed = arguments.positive(seconds, "--seconds"), arguments.whole(seed, "--seed")
    overrides = arguments.shapes(input_shape, "--input-shape")
    options = SessionOptions(arguments.word(ep, "--ep"), arguments.optional(arguments.count, threads, "--threads"))
    steps = arguments.optional(parse_preprocess, preprocess, "--preprocess")
    if steps is not None and data is None:
        raise UsageError("--preprocess needs samples: give --data")
    names, feeds, protos = [], {}, []
    told: dict[str, None] = {}
    sessions: dict[str, Session] = {}
    for number, model in enumerate(models):
        proto = read(model, external_root=external_root)[1]
        name = _name(model, number, sessions)
        if data is not None:
            form = input_form(proto, steps, overrides)
            loaded = load_samples(data, input_specs(proto), limit=1, seed=seed, form=form)
            feeds[name] = next(loaded.batches(1))
            told |= dict.fromkeys(loaded.notes)
        else:
            feeds[name] = random_feeds(proto, find_running_sizes(proto, overrides, options).shapes, seed)
        sessions[name] = open_session(proto, options)
        names.append(name)
        protos.append(proto)
    timed = measure(sessions, feeds, LatencyOptions(seconds=seconds, seed=seed), progress)
    rows = [_row(name, timed) for name in names]
    paths = [Path(model) if isinstance(model, str | os.PathLike) else None for model in models]
    sides = [describe_side(protos[i], None, paths[i], rows[i].latency_ms) for i in range(min(2, len(rows)))]
    after = sides[1] if len(sides) > 1 else None
    note = tuple(told) if data is not None else (f"no data was given: measured on random inputs of seed {seed}",)
    return Report(
        command="bench",
        options={"ep": options.provider, "threads": options.threads, "seconds": seconds},
        environment=environment_of(options, seed, sessions[names[0]].provider, sessions[names[0]].threads),
        before=sides[0],
        after=after,
        ratios=Ratios.between(sides[0], after, rows[1].ratio if len(rows) > 1 else None),
        models=tuple(rows),
        warnings=note,
        seconds={"total": time.perf_counter() - start},
        latency_samples={
            label: list(timed.latencies[name].samples_ms)
            for label, name in zip(("before", "after"), names, strict=False)
        },
    )


def _name(model: object, number: int, taken: Container[str]) -> str:
    path = str(model) if isinstance(model, str | os.PathLike) else f"model {number + 1}"
    return path if path not in taken else f"{path} ({number + 1})"


def _row(name: str, timed: LatencyComparison) -> ModelRow:
    ratio = timed.ratios.get(name)
    against = LatencyRatio(ratio.median, ratio.low, ratio.high) if ratio is not None else LatencyRatio()
    return ModelRow(name, Latency(**timed.latencies[name].to_dict()), against)
