"""Initializers in sparse form: smaller files for weights with many zeros, bit for bit the same values.

ONNX Runtime writes the zeros out when it loads a model, so that a sparse file gains size and no speed. It takes sparse
initializers of every type and rank, in the graph and for whatever reads them, at every opset; ONNX has them from IR
version 6 on. A graph output would come out as an object that is no array, and a default value of a graph input is
declared as a dense tensor: those stay dense.

Indices are places in the flattened tensor, in a field of integers of variable length: protobuf takes one byte for
places below 128, two below 16,384, three below 2,097,152. A float32 weight of usual size gains from 43 % of zeros on.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxprune.errors import ModelError, UsageError
from onnxprune.model import external
from onnxprune.model.exporter import copy_fields
from onnxprune.model.importer import all_tensors, densified
from onnxprune.model.values import bits, byte_count

CHOICES = ("auto", "never", "always")
READERS = ("ort-cpu", "ort-cuda")
"""The targets that read sparse initializers."""

FIRST_IR = 6  # "Add sparse initializers", onnx.proto
SMALLEST = 1024  # bytes of a dense tensor below which the form does not matter
TYPES = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
    | {TensorProto.INT8, TensorProto.UINT8}
)
LIMITS = 1 << np.arange(7, 63, 7, dtype=np.int64)
"""From each of these numbers on, protobuf takes a byte more."""
CHUNK = 1 << 20  # bytes compressed at a time


def storage_for(choice: str, target: str) -> str:
    """Return what a choice means on a target: a program that cannot read sparse initializers gets none.

    Args:
        choice: One of ``CHOICES``.
        target: The target of the command line.

    Raises:
        UsageError: the choice is unknown, or asks for what the target cannot read.
    """
    _check_choice(choice)
    if target in READERS:
        return choice
    if choice == "always":
        known = " and ".join(READERS)
        message = f"--store-sparse always makes a file that only {known} read, and the target is {target}"
        raise UsageError(f"{message}: give --store-sparse auto or another target")
    return "never"


def stored(model: onnx.ModelProto, choice: str) -> onnx.ModelProto:
    """Return a model as it is to be written: ``auto`` the form of each weight that is smaller, the same bits in all.

    Weights in sparse form stay in the model file, also where the others go into a file of their own; ``auto`` takes no
    more of them than the model file can hold.

    Args:
        model: The model, which is not changed; it is returned itself where nothing in it changes.
        choice: ``auto``, ``never`` (all dense) or ``always`` (all weights that can be sparse, larger or not).

    Raises:
        UsageError: the choice is unknown, or ``always`` meets a model whose IR version has no sparse initializers.
        ModelError: a sparse initializer of the model does not hold what its dimensions promise.
    """
    _check_choice(choice)
    dense = densified(model)
    if choice == "never":
        return dense
    if dense.ir_version < FIRST_IR:
        if choice == "auto":
            return dense
        message = f"the model has IR version {dense.ir_version}, and sparse initializers came with {FIRST_IR}"
        raise UsageError(f"{message}: export it with a newer opset, or give --store-sparse auto")
    room = external.INLINE_LIMIT - external.size_in_attributes(dense)
    found: dict[str, onnx.SparseTensorProto] = {}
    for tensor in _candidates(dense.graph):
        numbers = _numbers(tensor)
        sparse = _sparse(tensor, numbers) if choice == "always" else _smaller(tensor, numbers, room)
        if sparse is not None:
            found[tensor.name] = sparse
            room -= _size(sparse)
    return _with_sparse(dense, found) if found else dense


def compressed_size(model: onnx.ModelProto | str | os.PathLike[str]) -> int:
    """Return how many bytes gzip makes of a model; of a file, those with its weights are counted with it.

    Raises:
        ModelError: the file cannot be read.
    """
    if isinstance(model, onnx.ModelProto):
        return _gzip_size(_message_chunks(model))
    path = Path(model)
    try:
        return sum(_gzip_size(_file_chunks(file)) for file in (path, *external.weights_files(path)))
    except OSError as error:
        raise ModelError(f"'{error.filename}' cannot be read ({error.strerror}): check the path") from error


def _check_choice(choice: str) -> None:
    if choice not in CHOICES:
        raise UsageError(f"--store-sparse {choice!r} is unknown: choose one of {', '.join(CHOICES)}")


def _candidates(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the weights that may be sparse."""
    ends = {value.name for value in (*graph.input, *graph.output)}
    for tensor in graph.initializer:
        is_weight = tensor.data_type in TYPES and byte_count(tensor) >= SMALLEST
        if is_weight and tensor.name not in ends and not _may_signal(tensor):
            yield tensor


def _may_signal(tensor: onnx.TensorProto) -> bool:
    """Return whether NaNs are stored as numbers: Python would make quiet ones of those that signal."""
    return len(tensor.float_data) > 0 and bool(np.isnan(tensor.float_data).any())


def _smaller(tensor: onnx.TensorProto, numbers: np.ndarray[Any, Any], room: int) -> onnx.SparseTensorProto | None:
    """Return the sparse form where it takes fewer bytes in the file, and no more than there is room for."""
    places = np.flatnonzero(numbers)
    if len(places) * numbers.itemsize + _varint_bytes(places) >= tensor.ByteSize():
        return None
    sparse = _sparse(tensor, numbers)
    return sparse if sparse.ByteSize() < tensor.ByteSize() and _size(sparse) <= room else None


def _size(sparse: onnx.SparseTensorProto) -> int:
    return byte_count(sparse.values) + byte_count(sparse.indices)


def _numbers(tensor: onnx.TensorProto) -> np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]:
    """Return the bits of every element as an integer: -0.0 is not zero, and a NaN keeps its payload."""
    raw = tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()
    return np.frombuffer(raw, np.dtype(f"u{bits(tensor.data_type) // 8}"))


def _sparse(tensor: onnx.TensorProto, numbers: np.ndarray[Any, Any]) -> onnx.SparseTensorProto:
    places = np.flatnonzero(numbers)
    result = onnx.SparseTensorProto(dims=tensor.dims)
    copy_fields(tensor, result.values, ("dims", "raw_data", "float_data", "int32_data", "double_data"))
    result.values.dims.append(len(places))
    result.values.raw_data = numbers[places].tobytes()
    result.indices.data_type = TensorProto.INT64
    result.indices.dims.append(len(places))
    # As it stands in a file, which is much faster than to give protobuf one Python integer after the other.
    field = onnx.TensorProto.DESCRIPTOR.fields_by_name["int64_data"].number
    length = np.array([_varint_bytes(places)])
    result.indices.MergeFromString(b"".join((bytes([field << 3 | 2]), *_varints(length), *_varints(places))))
    return result


def _varint_bytes(numbers: np.ndarray[Any, np.dtype[np.int64]]) -> int:
    """Return the bytes that ascending numbers take: one each, and one more for every limit that they reach."""
    return len(numbers) + sum(len(numbers) - int(end) for end in np.searchsorted(numbers, LIMITS))


def _varints(numbers: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[bytes]:
    """Yield ascending numbers as protobuf writes them: seven bits a byte, the lowest first, a flag on all but the last.

    Numbers of equal length stand together, and become the rows of a table of bytes.
    """
    for length, part in enumerate(np.split(numbers, np.searchsorted(numbers, LIMITS)), start=1):
        table = np.empty((len(part), length), np.uint8)
        for place in range(length):
            table[:, place] = part >> (7 * place) & 0x7F
        table[:, :-1] |= 0x80
        yield table.tobytes()


def _with_sparse(model: onnx.ModelProto, found: dict[str, onnx.SparseTensorProto]) -> onnx.ModelProto:
    result = onnx.ModelProto()
    copy_fields(model, result, ("graph",))
    copy_fields(model.graph, result.graph, ("initializer",))
    result.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in found)
    result.graph.sparse_initializer.extend(found.values())
    return result


def _gzip_size(chunks: Iterator[bytes]) -> int:
    packer = zlib.compressobj(wbits=31)  # the header and the checksum of gzip
    return sum(len(packer.compress(chunk)) for chunk in chunks) + len(packer.flush())


def _file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _message_chunks(model: onnx.ModelProto) -> Iterator[bytes]:
    """Yield the model as it would be written, or above the limit of protobuf its weights alone."""
    if external.inline_size(model) < external.INLINE_LIMIT:
        yield model.SerializeToString(deterministic=True)
        return
    for tensor in all_tensors([model]):
        yield tensor.raw_data if tensor.HasField("raw_data") else tensor.SerializeToString(deterministic=True)
