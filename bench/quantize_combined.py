"""All means at once: blocks dropped, channels removed, repaired, quantized, in one call; against int8 alone."""

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from accuracy_sheet import Subject
from quantize_entry import Entry, accuracies, timed
from quantize_rival import Feeds, rivals

from onnxprune.commands.compare import compare
from onnxprune.commands.slim import run
from onnxprune.model.io import model_bytes
from onnxprune.slim import Recipe

BATCHES = (1, 32)


def combined(subject: Subject, options: argparse.Namespace) -> Iterator[str]:
    """Yields a line for int8 alone, of the rival and ours, and one for all means, with the options that it took."""
    plain = Recipe(
        int8=True, data=subject.data, eval=subject.verdict, preprocess=subject.preprocess, samples=options.samples,
        no_latency=True, threads=1,
    )  # fmt: skip
    whole = replace(plain, layers=options.layers, channels=options.channels)
    original, inputs = subject.proto(), subject.inputs(plain)
    assert inputs.given is not None
    feeds: list[Feeds] = [dict(feed) for feed in inputs.given.split()[0].batches(1)]
    entries = [Entry("float32", original, compare_with(subject, original))]
    for name, model in rivals(subject.path, feeds[: options.rival_samples]):
        entries.append(Entry(f"rival, {name}", model, compare_with(subject, model)))
    for name, recipe in (("--int8", plain), (f"--layers {whole.layers} --channels {whole.channels} --int8", whole)):
        made = run(str(subject.path), recipe)
        entries.append(Entry(name, made.model, made.report))
    speeds = []
    for batch in BATCHES:
        feed = {key: np.concatenate([one[key] for one in feeds[:batch]]) for key in feeds[0]}
        speeds.append(timed([original, *(entry.model for entry in entries)], feed, options.seconds))
    for number, entry in enumerate(entries):
        times = " ".join(f"{found[number]:>8.2f}" for found in speeds)
        size = model_bytes(entry.model) / model_bytes(original)
        yield f"{subject.name:<12} {times} {accuracies(entry):>14} {size:>6.2f}  {entry.name}"


def compare_with(subject: Subject, model: object) -> object:
    """Returns the verdict on a model that was made in another way."""
    return compare(
        subject.proto(), model, subject.verdict, preprocess=subject.preprocess, no_latency=True, threads=1
    )  # fmt: skip
