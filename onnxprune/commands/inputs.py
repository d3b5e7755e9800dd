"""What the models are run on: samples where given, else seeded random inputs in sizes that run."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxprune.arguments import shapes
from onnxprune.data.preprocess import InputForm, Preprocess
from onnxprune.data.random import choose_shapes, find_running_sizes, random_feeds, random_samples
from onnxprune.data.samples import Samples, load_samples
from onnxprune.errors import ModelError
from onnxprune.model.shapes import Shape
from onnxprune.runtime.session import Session, SessionOptions, input_specs, open_session
from onnxprune.slim import Recipe

PROOF_SAMPLES = 8
"""Samples in the larger of the two runs that the proof makes."""
RANDOM_SAMPLES = 32
"""Random samples for a verdict, where they are allowed."""


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
    given: Samples | None = None
    """Samples to estimate from, with the last fifth that is held out from every estimate."""


def choose_inputs(proto: onnx.ModelProto, recipe: Recipe) -> Inputs:
    """Returns real samples where given, else seeded random inputs in sizes that run."""
    overrides = shapes(recipe.input_shape, "--input-shape")
    specs = input_specs(proto)
    if overrides:
        choose_shapes(proto, overrides)
    form = input_form(proto, recipe.preprocess, overrides)
    verdict = load_samples(recipe.eval, specs, limit=10**9, form=form) if recipe.eval is not None else None
    told = () if verdict is None else verdict.notes
    if recipe.data is not None:
        samples = load_samples(recipe.data, specs, limit=recipe.samples, seed=recipe.seed, form=form)
        told = tuple(dict.fromkeys(samples.notes + told))
        if verdict is None:
            verdict = samples.split()[1]
        (start, stop), many = next(samples.slices(PROOF_SAMPLES)), next(samples.batches(PROOF_SAMPLES))
        one = next(samples.batches(1))
        sizes = {name: tuple(int(size) for size in array.shape) for name, array in one.items()}
        proof = (many,) if samples.fixed_batch or stop - start == 1 else (many, one)
        return Inputs(sizes, proof, one, verdict, stop - start, False, told, samples)
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
    notes = [*told, f"no data was given: proof and latency use random inputs of seed {recipe.seed}"]
    if verdict is None and recipe.allow_random:
        verdict = random_samples(proto, found.shapes, RANDOM_SAMPLES, recipe.seed)
        if len(feeds) < 3 and verdict.fixed_batch is None:  # a larger batch does not run
            verdict = replace(verdict, fixed_batch=1)
        notes.append("metrics and fidelity were taken on random inputs: they say little about real ones")
    free = {name: size for name, size in found.chosen.items() if size != 1}
    if free and not overrides:
        sizes_text = ", ".join(f"{name} = {size}" for name, size in free.items())
        notes.append(f"free dimensions were measured at {sizes_text}: set others with --input-shape")
    return Inputs(found.shapes, tuple(feeds), first, verdict, len(feeds), True, tuple(notes))


def input_form(proto: onnx.ModelProto, preprocess: Preprocess | None, shapes: Mapping[str, Shape]) -> InputForm:
    """Returns how the inputs of a model take samples.

    Raises:
        UsageError: the preprocessing is for other inputs.
    """
    form = InputForm(preprocess or Preprocess(), dict(shapes), classes_of(proto))
    form.preprocess.for_inputs(input_specs(proto))
    return form


def classes_of(proto: onnx.ModelProto) -> int | None:
    """Returns how many classes the first output of floats tells apart: 0 where that is open, ``None`` without any."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    for value in proto.graph.output:
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.elem_type in floats and len(dims) >= 2:
            return dims[1].dim_value if len(dims) == 2 else None
    return None


def _runs(session: Session, feeds: Mapping[str, np.ndarray]) -> bool:
    try:
        session.run(feeds)
    except ModelError:
        return False
    return True
