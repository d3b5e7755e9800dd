"""What the models are run on: samples where given, else seeded random inputs in sizes that run."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.arguments import shapes
from onnxprune.data.random import choose_shapes, find_running_sizes, random_feeds
from onnxprune.data.samples import Samples, load_samples
from onnxprune.errors import ModelError
from onnxprune.model.shapes import Shape
from onnxprune.runtime.session import Session, SessionOptions, input_specs, open_session
from onnxprune.slim import Recipe

PROOF_SAMPLES = 8
"""Samples in the larger of the two runs that the proof makes."""


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


def choose_inputs(proto: onnx.ModelProto, recipe: Recipe) -> Inputs:
    """Returns real samples where given, else seeded random inputs in sizes that run."""
    overrides = shapes(recipe.input_shape, "--input-shape")
    specs = input_specs(proto)
    verdict = load_samples(recipe.eval, specs, limit=10**9) if recipe.eval is not None else None
    if overrides:
        choose_shapes(proto, overrides)
    if recipe.data is not None:
        samples = load_samples(recipe.data, specs, limit=recipe.samples)
        if verdict is None:
            verdict = samples.split()[1]
        (start, stop), many = next(samples.slices(PROOF_SAMPLES)), next(samples.batches(PROOF_SAMPLES))
        one = next(samples.batches(1))
        sizes = {name: tuple(int(size) for size in array.shape) for name, array in one.items()}
        proof = (many,) if samples.fixed_batch or stop - start == 1 else (many, one)
        return Inputs(sizes, proof, one, verdict, stop - start, False, ())
    session = open_session(proto, SessionOptions(recipe.ep, recipe.threads, optimize=False))
    found = find_running_sizes(proto, overrides, session=session)
    first = random_feeds(proto, found.shapes, recipe.seed)
    feeds = [first, random_feeds(proto, found.shapes, recipe.seed + 1)]
    double = {
        spec.name: (2 * found.shapes[spec.name][0], *found.shapes[spec.name][1:])
        for spec in specs
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


def _runs(session: Session, feeds: Mapping[str, np.ndarray]) -> bool:
    try:
        session.run(feeds)
    except ModelError:
        return False
    return True
