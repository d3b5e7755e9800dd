"""Seeded random inputs, and sizes for free dimensions that ONNX Runtime accepts."""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from onnxprune.data.ranges import ValueUse, value_use
from onnxprune.data.samples import Samples
from onnxprune.errors import ModelError, UsageError
from onnxprune.runtime.session import Session, SessionOptions, open_session

Shape = tuple[int, ...]

_CANDIDATES: dict[str, tuple[int, ...]] = {
    "spatial": (64, 224, 320, 640, 128, 256, 32, 512, 299, 1024),
    "sequence": (16, 64, 128, 1024, 16000, 512, 576, 256, 480, 32, 8, 4, 1, 3000),
    "channel": (3, 1, 4),
}
_LONGEST_TOKENS = 1024  # attention over longer token sequences would ask for more memory than a trial is worth
_BATCH_NAME = re.compile(r"(?i)^(n|b|bs|bsz|.*batch.*)$")
_SEQUENCE_NAME = re.compile(r"(?i)^(t|l|s|.*(seq|time|len|frame|token|sample|step|past|word|chunk).*)$")
_MASK_NAME = re.compile(r"(?i)mask")


@dataclass(frozen=True)
class Sizes:
    """Shapes of all inputs, and the size that each free dimension got, by its name or ``input[axis]``."""

    shapes: dict[str, Shape]
    chosen: dict[str, int]


@dataclass(frozen=True)
class _Input:
    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | str, ...]  # free dimensions without a name are called "input[axis]"


def choose_shapes(
    model: onnx.ModelProto, overrides: Mapping[str, Shape] | None = None, batch: int = 1
) -> dict[str, Shape]:
    """Returns the first guess at the shapes of all inputs, without running the model.

    Raises:
        UsageError: An override does not fit the model.
        ModelError: An input is no tensor of numbers, or has no shape.
    """
    return next(_size_candidates(model, overrides, batch)).shapes


def find_running_shapes(
    model: onnx.ModelProto, overrides: Mapping[str, Shape] | None = None, options: SessionOptions | None = None
) -> dict[str, Shape]:
    """Returns the shapes of ``find_running_sizes``."""
    return find_running_sizes(model, overrides, options).shapes


def find_running_sizes(
    model: onnx.ModelProto,
    overrides: Mapping[str, Shape] | None = None,
    options: SessionOptions | None = None,
    session: Session | None = None,
) -> Sizes:
    """Returns the first sizes with which ONNX Runtime runs the model on random inputs (batch 1).

    A ``session`` of the model, where there is one, spares opening another.

    Raises:
        UsageError: An override does not fit the model.
        ModelError: The model cannot be loaded, or runs with none of the sizes that are tried.
    """
    candidates = _size_candidates(model, overrides, batch=1)
    session = session or open_session(model, replace(options or SessionOptions(), optimize=False))
    failure: ModelError | None = None
    tried: Sizes | None = None
    for sizes in candidates:
        tried = tried or sizes
        try:
            session.run(random_feeds(model, sizes.shapes, seed=0))
        except ModelError as error:
            failure = failure or error
        else:
            return sizes
    raise _never_ran(tried, failure)


def random_samples(model: onnx.ModelProto, shapes: Mapping[str, Shape], count: int, seed: int) -> Samples:
    """Returns ``count`` seeded random samples; ``shapes`` are the shapes of one run.

    Images are uniform in [0, 1), other floats normal with deviation 0.5. Integers stay inside the tables that they
    index. Inputs without a batch axis are constants.
    """
    inputs = _inputs(model)
    uses = _integer_uses(model, inputs)
    batched, fixed_batch = _batched(inputs, shapes)
    if fixed_batch is not None:
        count = max(count // fixed_batch, 1) * fixed_batch
    generator = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    constants: dict[str, np.ndarray] = {}
    for item in inputs:
        shape = shapes[item.name]
        if item.name in batched:
            arrays[item.name] = _draw(item, (count, *shape[1:]), uses.get(item.name, ValueUse()), generator)
        else:
            constants[item.name] = _draw(item, shape, uses.get(item.name, ValueUse()), generator)
    return Samples(arrays, origin="random", seed=seed, constants=constants, fixed_batch=fixed_batch)


def random_feeds(model: onnx.ModelProto, shapes: Mapping[str, Shape], seed: int) -> dict[str, np.ndarray]:
    """Returns seeded random inputs of exactly these shapes, for one run."""
    inputs = _inputs(model)
    uses = _integer_uses(model, inputs)
    generator = np.random.default_rng(seed)
    return {item.name: _draw(item, shapes[item.name], uses.get(item.name, ValueUse()), generator) for item in inputs}


def _integer_uses(model: onnx.ModelProto, inputs: list[_Input]) -> dict[str, ValueUse]:
    names = [item.name for item in inputs if item.dtype.kind in "iu"]
    return value_use(model, names) if names else {}


def _inputs(model: onnx.ModelProto) -> list[_Input]:
    initializers = {tensor.name for tensor in model.graph.initializer}
    return [_input(value) for value in model.graph.input if value.name not in initializers]


def _input(value: onnx.ValueInfoProto) -> _Input:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        words = (kind or "unknown").removesuffix("_type")
        raise ModelError(f"input {value.name!r} is a {words}, which is not supported: only tensors can be drawn")
    tensor = value.type.tensor_type
    dtype = np.dtype(np.object_)
    known = tensor.elem_type in onnx.TensorProto.DataType.values()
    if known and tensor.elem_type not in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if dtype.kind not in "fiub":
        words = onnx.TensorProto.DataType.Name(tensor.elem_type) if known else "no known type"
        raise ModelError(
            f"input {value.name!r} holds {words}, which is not supported: only tensors of numbers can be drawn"
        )
    dims = [
        dim.dim_value if dim.dim_value > 0 else dim.dim_param.strip("?") or f"{value.name}[{axis}]"
        for axis, dim in enumerate(tensor.shape.dim)
    ]
    return _Input(value.name, dtype, tuple(dims))


def _size_candidates(model: onnx.ModelProto, overrides: Mapping[str, Shape] | None, batch: int) -> Iterator[Sizes]:
    """Returns the sizes to try; the overrides are checked at once, not when the first candidate is asked for."""
    inputs = _inputs(model)
    given = _checked_overrides(inputs, overrides or {})
    sized = _sizes_of_overrides(inputs, given)
    ranked = {value.name for value in model.graph.input if value.type.tensor_type.HasField("shape")}
    for item in inputs:
        if item.name not in ranked and item.name not in given:
            raise ModelError(
                f"input {item.name!r} has no shape in the model: give --input-shape {item.name}:1x3x224x224"
            )
    readings = [{name: role for name, role in roles.items() if name not in sized} for roles in _readings(inputs)]
    return (sizes for roles in readings for sizes in _combinations(inputs, given, sized, roles, batch))


def _combinations(
    inputs: list[_Input], given: dict[str, Shape], sized: dict[str, int], roles: dict[str, str], batch: int
) -> Iterator[Sizes]:
    used = [role for role in ("channel", "sequence", "spatial") if role in roles.values()]
    tokens = any(item.dtype.kind in "iu" and len(item.dims) >= 2 for item in inputs)
    longest = _LONGEST_TOKENS if tokens else max(_CANDIDATES["sequence"])
    lists = [[size for size in _CANDIDATES[role] if role != "sequence" or size <= longest] for role in used]
    for sizes in itertools.product(*lists):
        by_role = dict(zip(used, sizes, strict=True)) | {"batch": batch}
        chosen = {name: by_role[role] for name, role in roles.items()}
        known = sized | chosen
        shapes = {item.name: given.get(item.name) or _resolve(item, known) for item in inputs}
        yield Sizes(shapes, chosen | {name: size for name, size in sized.items() if name not in chosen})


def _resolve(item: _Input, known: Mapping[str, int]) -> Shape:
    return tuple(dim if isinstance(dim, int) else sum(_term(part, known) for part in _terms(dim)) for dim in item.dims)


def _terms(dim: str) -> list[str]:
    """Returns the summands of a dimension such as ``past_length + 1``."""
    return [part.strip() for part in dim.split("+")] if re.fullmatch(r"\w+(\s*\+\s*\w+)+", dim) else [dim]


def _term(part: str, known: Mapping[str, int]) -> int:
    return int(part) if part.isdigit() else known[part]


def _readings(inputs: list[_Input]) -> list[dict[str, str]]:
    """Returns what each free dimension may mean, the likeliest reading first."""
    roles = _roles(inputs)
    doubtful = {name for name in _state_axes(inputs) if roles.get(name) == "batch"}
    return [roles, roles | dict.fromkeys(doubtful, "sequence")] if doubtful else [roles]


def _state_axes(inputs: list[_Input]) -> set[str]:
    """Returns the free second axes behind a fixed first one: the batch of a recurrent state (layers, batch, width)."""
    counted = any(item.dims and isinstance(item.dims[0], str) for item in inputs)
    found = [item.dims[1] for item in inputs if len(item.dims) == 3 and isinstance(item.dims[0], int)]
    return {name for name in found if isinstance(name, str)} if counted else set()


def _roles(inputs: list[_Input]) -> dict[str, str]:
    """Returns what each free dimension means; where a name occurs at several places, batch wins over the rest."""
    roles: dict[str, str] = {}
    states = _state_axes(inputs)
    leading = {item.dims[0] for item in inputs if len(item.dims) >= 2}
    for item in inputs:
        for axis, dim in enumerate(item.dims):
            for name in _terms(dim) if isinstance(dim, str) else []:
                if name.isdigit():
                    continue
                role = "batch" if name in states and not _is_sequence(item, name) else None
                role = role or _role(item, axis, name, name in leading)
                if role == "batch" or name not in roles:
                    roles[name] = role
    return roles


def _role(item: _Input, axis: int, name: str, leading: bool) -> str:
    rank = len(item.dims)
    named = _is_named(item, name)
    if named and _BATCH_NAME.match(name):
        return "batch"
    if _is_sequence(item, name):
        return "sequence"
    if axis == 0 and (rank >= 2 or leading or not named):
        return "batch"
    if rank < 4:
        return "sequence"
    channel_axis = rank - 1 if item.dims[-1] in (1, 3, 4) and not isinstance(item.dims[1], int) else 1
    return "channel" if axis == channel_axis else "spatial"


def _is_named(item: _Input, name: str) -> bool:
    return not name.startswith(f"{item.name}[")


def _is_sequence(item: _Input, name: str) -> bool:
    return _is_named(item, name) and _SEQUENCE_NAME.match(name) is not None


def _checked_overrides(inputs: list[_Input], overrides: Mapping[str, Shape]) -> dict[str, Shape]:
    by_name = {item.name: item for item in inputs}
    for name, shape in overrides.items():
        if name not in by_name:
            known = ", ".join(repr(item.name) for item in inputs)
            raise UsageError(f"--input-shape names {name!r}, but the inputs are {known}: use one of them")
        dims = by_name[name].dims
        words = "x".join(map(str, dims))
        if dims and len(shape) != len(dims):
            raise UsageError(f"--input-shape gives {name!r} {len(shape)} axes, but the model has {len(dims)} ({words})")
        for axis, (size, dim) in enumerate(zip(shape, dims, strict=False)):
            if size < 1:
                raise UsageError(f"--input-shape gives axis {axis} of {name!r} the size {size}: sizes start at 1")
            if isinstance(dim, int) and size != dim:
                raise UsageError(
                    f"--input-shape gives axis {axis} of {name!r} the size {size}, but the model fixes it to {dim}"
                    f" ({words}): keep fixed sizes"
                )
    return {name: tuple(shape) for name, shape in overrides.items()}


def _sizes_of_overrides(inputs: list[_Input], given: Mapping[str, Shape]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for item in inputs:
        for dim, size in zip(item.dims, given.get(item.name, ()), strict=False):
            if isinstance(dim, str) and sizes.setdefault(dim, size) != size:
                raise UsageError(
                    f"--input-shape gives the dimension {dim!r} the sizes {sizes[dim]} and {size}: give it one size"
                )
    return sizes


def _never_ran(tried: Sizes | None, failure: ModelError | None) -> ModelError:
    shapes = tried.shapes if tried else {}
    words = ", ".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
    reason = str(failure).removeprefix("ONNX Runtime cannot run the model: ")
    if tried is None or not tried.chosen:
        return ModelError(f"the model does not run on inputs of its own shapes ({words}): {reason}")
    return ModelError(
        f"the model runs with none of the sizes that were tried for its free dimensions, first {words} ({reason}):"
        f" give --input-shape, such as {words.split(',')[0]}"
    )


def _batched(inputs: list[_Input], shapes: Mapping[str, Shape]) -> tuple[set[str], int | None]:
    """Returns the inputs whose first axis counts samples, and the batch where the model fixes it."""
    roles = _roles(inputs)
    free = {item.name: str(item.dims[0]) for item in inputs if item.dims and roles.get(str(item.dims[0])) == "batch"}
    if free:
        elsewhere = any(roles.get(str(dim)) == "batch" for item in inputs for dim in item.dims[1:])
        bound = [shapes[name][0] for name in free] if elsewhere else []
        return set(free), bound[0] if bound else None
    fixed = {item.name: item.dims[0] for item in inputs if item.dims and isinstance(item.dims[0], int)}
    if not fixed:
        return set(), None
    sizes = [size for size in fixed.values() if isinstance(size, int)]
    batch = 1 if 1 in sizes else sizes[0]
    return {name for name, size in fixed.items() if size == batch}, batch


def _draw(item: _Input, shape: Shape, use: ValueUse, generator: np.random.Generator) -> np.ndarray:
    if item.dtype.kind == "b":
        return np.asarray(generator.integers(0, 2, shape)).astype(np.bool_)
    if item.dtype.kind == "f":
        image = len(shape) == 4 and bool({shape[1], shape[-1]} & {1, 3, 4})
        values = generator.random(shape) if image else generator.standard_normal(shape) * 0.5
        return np.asarray(values).astype(item.dtype)
    if int(np.prod(shape)) == 1 and not any(isinstance(dim, str) for dim in item.dims) and len(shape) < 2:
        single = use.equals[0] if use.equals else min(1, 1 if use.bound is None else use.bound)
        return np.full(shape, single, dtype=item.dtype)
    return _draw_integers(item, shape, use, generator)


def _draw_integers(item: _Input, shape: Shape, use: ValueUse, generator: np.random.Generator) -> np.ndarray:
    limits = np.iinfo(item.dtype)
    if use.bound is not None:
        return generator.integers(0, min(use.bound, int(limits.max)) + 1, shape).astype(item.dtype)
    if _MASK_NAME.search(item.name) or (use.to_float and item.dtype.itemsize > 1):
        mask = generator.integers(0, 2, shape)
        mask[..., 0] = 1  # a row that masks everything has no defined softmax
        return np.asarray(mask).astype(item.dtype)
    if item.dtype.itemsize == 1:
        return generator.integers(limits.min, int(limits.max) + 1, shape).astype(item.dtype)
    return generator.integers(0, 10, shape).astype(item.dtype)
