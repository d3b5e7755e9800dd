"""The values of constants: read when asked for, for every element type and layout that ONNX has."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from onnxprune.errors import ModelError

LARGEST_DENSE = 2**31 - 1  # bytes; a field of protobuf holds no more


class TensorValues(LazyValues):  # type: ignore[misc]
    """Values of a TensorProto that are read when asked for, for every element type that ONNX has."""

    def __init__(self, tensor: onnx.TensorProto) -> None:
        self.tensor = tensor
        self.shape = list(tensor.dims)
        self.dtype = numpy_type(tensor.data_type)
        self.nbytes = byte_count(tensor)

    def load(self) -> np.ndarray[Any, Any]:
        """Return a new array with the values.

        Raises:
            ModelError: the data does not fit the type and the dimensions.
        """
        return np.array(_array(self.tensor))


@functools.cache
def numpy_type(element_type: int) -> np.dtype[Any] | int | None:
    """Return the NumPy (or ml_dtypes) type of an ONNX element type; None if undefined, the number if unknown."""
    if element_type == onnx.TensorProto.UNDEFINED:
        return None
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(element_type))
    except KeyError:
        return element_type


def element_type(dtype: np.dtype[Any] | type | int | None) -> int:
    """Return the ONNX element type of a NumPy type; 0 where there is none; a number is passed through."""
    if dtype is None:
        return onnx.TensorProto.UNDEFINED
    return dtype if isinstance(dtype, int) else int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def is_float(element_type: int) -> bool:
    """Return whether an ONNX element type holds floating-point numbers of at least 8 bits."""
    return element_type in _FLOATS


_FLOATS = frozenset(
    onnx.TensorProto.DataType.Value(name)
    for name in ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2")
)


@functools.cache
def bits(element_type: int) -> int:
    """Return how many bits an element takes in ``raw_data``; 0 for strings and unknown types."""
    name = onnx.TensorProto.DataType.Name(element_type) if element_type in _KNOWN_TYPES else ""
    if name in ("", "UNDEFINED", "STRING"):
        return 0
    packed = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
    return packed.get(name, 8 * np.dtype(helper.tensor_dtype_to_np_dtype(element_type)).itemsize)


_KNOWN_TYPES = frozenset(onnx.TensorProto.DataType.values())


def is_known_type(element_type: int) -> bool:
    """Return whether ONNX defines the element type."""
    return element_type in _KNOWN_TYPES


def byte_count(tensor: onnx.TensorProto) -> int:
    """Return the bytes that the values of a tensor take in ``raw_data``; strings count what they hold."""
    width = bits(tensor.data_type)
    if width:
        return (_element_count(tensor.dims) * width + 7) // 8
    return sum(map(len, tensor.string_data))


def _element_count(dims: Any) -> int:
    count = 1
    for dim in dims:
        count *= dim
    return count


def _array(tensor: onnx.TensorProto) -> np.ndarray[Any, Any]:
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        message = f"the values of tensor '{tensor.name}' cannot be read ({error}): export the model again"
        raise ModelError(message) from error


def densify(sparse: onnx.SparseTensorProto) -> np.ndarray[Any, Any]:
    """Return a dense array with the values of a sparse tensor, in either of the two index layouts of ONNX.

    Raises:
        ModelError: the indices do not fit the dimensions, or the array would not fit into a message.
    """
    what = f"sparse tensor '{sparse.values.name}'"
    width, dims = bits(sparse.values.data_type), tuple(sparse.dims)
    if not width:
        raise ModelError(f"{what} holds strings or an unknown type: export it dense")
    if _element_count(dims) * width > 8 * LARGEST_DENSE:
        raise ModelError(f"{what} takes more than 2 GiB where zeros are written out: export it dense in parts")
    values, indices = _array(sparse.values).reshape(-1), _array(sparse.indices)
    # One column for each dimension, or a single column of places in the flattened array.
    sizes = np.array(dims if indices.ndim == 2 else [_element_count(dims)], np.int64)
    columns = indices if indices.ndim == 2 else indices[..., np.newaxis]
    fits = np.issubdtype(indices.dtype, np.integer) and columns.shape == (len(values), len(sizes))
    if not fits or min(dims, default=0) < 0 or (columns < 0).any() or (columns >= sizes).any():
        raise ModelError(f"the indices of {what} do not fit its dimensions: export it dense")
    dense = np.zeros(dims, values.dtype)
    if indices.ndim == 2:
        dense[tuple(columns.T)] = values
    else:
        dense.reshape(-1)[indices] = values
    return dense


def read_values(constant: gs.Constant) -> np.ndarray[Any, Any]:
    """Return the values of a constant without keeping them in it; the array may be read-only.

    Types that NumPy lacks (int4, bfloat16, float8 ...) come as ml_dtypes types, sparse tensors come dense.

    Raises:
        ModelError: the data does not fit the type and the dimensions.
    """
    values = constant._values
    if isinstance(values, SparseValues):
        return densify(values.tensor)
    if isinstance(values, LazyValues):
        return _array(values.tensor)
    return np.asarray(values)


def write_values(constant: gs.Constant, values: np.ndarray[Any, Any]) -> None:
    """Replace the values of a constant; shape and type follow the array."""
    constant._values = np.asarray(values, order="C")
    constant._export_dtype = None
    constant.data_location = None


def write_tensor(constant: gs.Constant, original: onnx.TensorProto | None, target: onnx.TensorProto) -> None:
    """Write a constant into an empty message; values that did not change keep the form they were stored in.

    Args:
        constant: The constant; its name is written, except where it is empty in both.
        original: What the model that was read holds under this name; gives doc string and metadata.
        target: The message to fill.

    Raises:
        ModelError: the values lie in a file of which no more than the name is known.
    """
    values = constant._values
    if isinstance(values, LazyValues) and not isinstance(values, SparseValues):
        if values.tensor.data_location == onnx.TensorProto.EXTERNAL:
            message = f"tensor '{constant.name}' refers to a weights file, and a model in memory has no folder"
            raise ModelError(f"{message}: give the path of the model instead")
        target.CopyFrom(values.tensor)
    else:
        array = read_values(constant)
        if original is not None and same_values(original, array):
            target.CopyFrom(original)
        else:
            target.CopyFrom(numpy_helper.from_array(array))
            if original is not None and original.HasField("doc_string"):
                target.doc_string = original.doc_string
            if original is not None:
                target.metadata_props.extend(original.metadata_props)
    if target.name != constant.name:
        target.name = constant.name


def same_values(tensor: onnx.TensorProto, array: np.ndarray[Any, Any]) -> bool:
    """Return whether a message holds exactly this array: type, shape and every bit."""
    if tuple(tensor.dims) != array.shape or tensor.data_type != element_type(array.dtype):
        return False
    stored = _array(tensor)
    if tensor.data_type == onnx.TensorProto.STRING:
        return [_text(item) for item in stored.reshape(-1)] == [_text(item) for item in array.reshape(-1)]
    return stored.tobytes() == array.tobytes()


def _text(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
