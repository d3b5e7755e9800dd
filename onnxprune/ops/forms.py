"""Linear operators with stored weights as matrix products: rows [R, n] times a matrix [n, m], in each of their groups.

A row is what one output position reads: a patch of a convolution (Chellapilla et al. 2006), a token of a matrix
product. Scores, repairs and quantization see every linear operator this way.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_graphsurgeon as gs
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[Any]
Index = NDArray[np.int64]

ROWS = 20_000
"""Rows that are read where there are as many; more where an operator has more inputs."""

ROWS_PER_INPUT = 10

FEW_ROWS = 1_000, 3
"""The same for a first look."""


class Form(Protocol):
    """How a node multiplies."""

    @property
    def data(self) -> int:
        """Slot of the data."""

    @property
    def weight(self) -> int:
        """Slot of the weights."""

    @property
    def groups(self) -> int:
        """Number of products side by side."""

    @property
    def channel(self) -> int:
        """Dimension of the data that is summed over."""

    @property
    def output(self) -> int:
        """Dimension of the channels of the result."""

    def matrix(self, weights: Array) -> Array:
        """Returns the weights as [groups, n, m]; the rows of one channel are consecutive."""

    def weights(self, matrix: Array, like: Array) -> Array:
        """Returns a matrix in the layout and type of the weights that it stands for."""

    def places(self, result: Array) -> int:
        """Returns the number of rows that made a result."""

    def rows(self, data: Array, result: Array, chosen: Index) -> tuple[Array, Array]:
        """Returns the chosen rows [groups, R, n], and what they made of the result [groups, R, m]."""

    def outputs(self, result: Array, chosen: Index) -> Array:
        """Returns what the chosen rows made of the result alone, [groups, R, m]."""


@dataclass(frozen=True, slots=True)
class Product:
    """``x @ w``, ``w @ x`` or Gemm: rows are vectors along the summed dimension of the data, -1 or -2.

    ``transposed`` are weights [m, n], and ``scale`` is what the product is multiplied with.
    """

    data: int
    weight: int
    transposed: bool = False
    scale: float = 1.0
    channel: int = -1
    output: int = -1
    groups: int = 1

    def matrix(self, weights: Array) -> Array:
        """Returns the weights as [1, n, m]."""
        flat = weights.T if self.transposed else weights
        return flat[None] * self.scale if self.scale != 1 else flat[None]

    def weights(self, matrix: Array, like: Array) -> Array:
        """Returns the weights of a matrix."""
        flat = matrix[0] / self.scale if self.scale != 1 else matrix[0]
        return np.ascontiguousarray(flat.T if self.transposed else flat, like.dtype)

    def places(self, result: Array) -> int:
        """Returns the number of vectors."""
        return int(result.size // result.shape[self.output])

    def rows(self, data: Array, result: Array, chosen: Index) -> tuple[Array, Array]:
        """Returns vectors."""
        return _vectors(data, self.channel, chosen)[None], self.outputs(result, chosen)

    def outputs(self, result: Array, chosen: Index) -> Array:
        """Returns vectors of the result."""
        return _vectors(result, self.output, chosen)[None]


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """BatchNormalization as a product for every channel, of one row and one column: what is normalized, times the gain.

    ``mean`` and ``deviation`` are stored statistics, so that rows times matrix plus the stored shift is the result.
    """

    mean: Array
    deviation: Array
    data: int = 0
    weight: int = 1
    channel: int = 1
    output: int = 1

    @property
    def groups(self) -> int:
        """Number of channels."""
        return int(self.mean.size)

    def matrix(self, weights: Array) -> Array:
        """Returns the gains [C] as [C, 1, 1]."""
        return weights[:, None, None]

    def weights(self, matrix: Array, like: Array) -> Array:
        """Returns [C]."""
        return np.ascontiguousarray(matrix.reshape(like.shape), like.dtype)

    def places(self, result: Array) -> int:
        """Returns samples times positions."""
        return int(result.size // result.shape[1])

    def rows(self, data: Array, result: Array, chosen: Index) -> tuple[Array, Array]:
        """Returns normalized numbers."""
        inputs = (_vectors(data, 1, chosen).astype(np.float64) - self.mean) / self.deviation
        return inputs.T[:, :, None], self.outputs(result, chosen)

    def outputs(self, result: Array, chosen: Index) -> Array:
        """Returns numbers of the result."""
        return _vectors(result, 1, chosen).T[:, :, None]


@dataclass(frozen=True, slots=True)
class Convolution:
    """Conv over any number of spatial dimensions: rows are patches, channel by channel."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int
    data: int = 0
    weight: int = 1
    channel: int = 1
    output: int = 1

    def matrix(self, weights: Array) -> Array:
        """Returns [g, C/g * kernel, O/g] of weights [O, C/g, kernel]."""
        return weights.reshape(self.groups, weights.shape[0] // self.groups, -1).transpose(0, 2, 1)

    def weights(self, matrix: Array, like: Array) -> Array:
        """Returns [O, C/g, kernel]."""
        return np.ascontiguousarray(matrix.transpose(0, 2, 1).reshape(like.shape), like.dtype)

    def places(self, result: Array) -> int:
        """Returns samples times positions."""
        return int(result.size // result.shape[1])

    def rows(self, data: Array, result: Array, chosen: Index) -> tuple[Array, Array]:
        """Returns patches."""
        sample, *position = np.unravel_index(chosen, (result.shape[0], *result.shape[2:]))
        starts = [p * stride for p, stride in zip(position, self.strides, strict=True)]
        patches = _patches(_padded(data, self.pads), self.kernel, self.dilations, sample, starts)
        inputs = patches.reshape(len(chosen), self.groups, -1).transpose(1, 0, 2)
        return inputs, self.outputs(result, chosen)

    def outputs(self, result: Array, chosen: Index) -> Array:
        """Returns the channels at every place."""
        return _vectors(result, 1, chosen).reshape(len(chosen), self.groups, -1).transpose(1, 0, 2)


class TransposedConvolution(Convolution):
    """ConvTranspose: a convolution of the data with zeros between its elements by the flipped kernel."""

    __slots__ = ()

    def matrix(self, weights: Array) -> Array:
        """Returns [g, C/g * kernel, O/g] of weights [C, O/g, kernel], the kernel flipped."""
        flipped = np.flip(weights, tuple(range(2, weights.ndim)))
        split = flipped.reshape(self.groups, -1, *weights.shape[1:])
        return np.moveaxis(split, 2, -1).reshape(self.groups, -1, weights.shape[1])

    def weights(self, matrix: Array, like: Array) -> Array:
        """Returns [C, O/g, kernel]."""
        split = matrix.reshape(self.groups, like.shape[0] // self.groups, *like.shape[2:], like.shape[1])
        flipped = np.moveaxis(split, -1, 2).reshape(like.shape)
        return np.ascontiguousarray(np.flip(flipped, tuple(range(2, like.ndim))), like.dtype)

    def rows(self, data: Array, result: Array, chosen: Index) -> tuple[Array, Array]:
        """Returns patches of the data with zeros between its elements."""
        rank = len(self.kernel)
        spread = [(size - 1) * stride + 1 for size, stride in zip(data.shape[2:], self.strides, strict=True)]
        wide = np.zeros((*data.shape[:2], *spread), data.dtype)
        every: Any = (..., *(slice(None, None, stride) for stride in self.strides))
        wide[every] = data
        reach = [dilation * (size - 1) for dilation, size in zip(self.dilations, self.kernel, strict=True)]
        before = [reach[dim] - self.pads[dim] for dim in range(rank)]
        after = [result.shape[2 + dim] + reach[dim] - before[dim] - spread[dim] for dim in range(rank)]
        sample, *position = np.unravel_index(chosen, (result.shape[0], *result.shape[2:]))
        patches = _patches(_padded(wide, (*before, *after)), self.kernel, self.dilations, sample, position)
        inputs = patches.reshape(len(chosen), self.groups, -1).transpose(1, 0, 2)
        return inputs, self.outputs(result, chosen)


def form_of(
    node: gs.Node, data: Sequence[int], weights: Sequence[int], result: Sequence[int], slot: int | None = None
) -> Form | None:
    """Returns the form of a node that reads its stored weights at slot 1 (or 0), ``None`` where it has none.

    Args:
        node: Conv, ConvTranspose, Gemm or MatMul; BatchNormalization has its form from :func:`scaling_of`.
        data: Shape of the data.
        weights: Shape of the weights.
        result: Shape of the result.
        slot: Where it reads the weights, if that is known; else it is told by what is a stored tensor.
    """
    stored = isinstance(node.inputs[0], gs.Constant), isinstance(node.inputs[1], gs.Constant)
    left = stored == (True, False) if slot is None else slot == 0
    if node.op in ("Conv", "ConvTranspose") and node.domain in (None, "", "ai.onnx") and len(weights) > 2:
        return _convolution(node, data, weights, result)
    if node.op == "Gemm" and len(weights) == 2:
        scale = float(node.attrs.get("alpha", 1.0))
        if not (left or stored[0]) and scale != 0:
            channel = -2 if node.attrs.get("transA", 0) else -1
            return Product(0, 1, bool(node.attrs.get("transB", 0)), scale, channel)
    if node.op == "MatMul" and len(weights) == 2 and len(data) > 1:
        return Product(1, 0, True, 1.0, -2, -2) if left and len(result) > 1 else Product(0, 1)
    return None


def scaling_of(node: gs.Node, vectors: Sequence[Array | None]) -> Scaling | None:
    """Returns the form of a BatchNormalization from gain, shift, mean and variance, where all are stored by channel.

    In training the statistics would be those of the data.
    """
    if node.op != "BatchNormalization" or node.attrs.get("training_mode", 0) or len(node.outputs) > 1:
        return None
    stored = [vector.astype(np.float64) for vector in vectors if vector is not None and vector.ndim == 1]
    if len(stored) != 4:
        return None
    variance = stored[3] + float(node.attrs.get("epsilon", 1e-5))
    return Scaling(stored[2], np.sqrt(variance)) if variance.min(initial=np.inf) > 0 else None


def _convolution(node: gs.Node, data: Sequence[int], weights: Sequence[int], result: Sequence[int]) -> Form:
    rank = len(weights) - 2
    kernel = tuple(int(size) for size in weights[2:])
    strides = tuple(node.attrs.get("strides", [1] * rank))
    dilations = tuple(node.attrs.get("dilations", [1] * rank))
    groups = int(node.attrs.get("group", 1))
    auto = node.attrs.get("auto_pad", "NOTSET")
    pads = tuple(node.attrs.get("pads", [0] * 2 * rank))
    transposed = node.op == "ConvTranspose"
    if auto == "VALID":
        pads = (0,) * (2 * rank)
    elif auto in ("SAME_UPPER", "SAME_LOWER") or (transposed and "output_shape" in node.attrs):
        whole, part = (data, result) if transposed else (result, data)
        totals = [
            max((whole[2 + i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - part[2 + i], 0)
            for i in range(rank)
        ]
        first = [total // 2 if auto == "SAME_UPPER" else -(-total // 2) for total in totals]
        pads = (*first, *(total - one for total, one in zip(totals, first, strict=True)))
    kind = TransposedConvolution if transposed else Convolution
    return kind(kernel, strides, pads, dilations, groups)


def _vectors(values: Array, dim: int, chosen: Index) -> Array:
    """Returns the chosen vectors along a dimension, [R, length]."""
    along = np.moveaxis(values, dim, -1)
    return np.asarray(along.reshape(-1, along.shape[-1])[chosen])


def _padded(values: Array, pads: Sequence[int]) -> Array:
    """Pads, or crops where a pad is negative."""
    rank = len(pads) // 2
    crop = tuple(slice(max(-pads[dim], 0), values.shape[2 + dim] - max(-pads[rank + dim], 0)) for dim in range(rank))
    values = values[(slice(None), slice(None), *crop)]
    width = [(max(pads[dim], 0), max(pads[rank + dim], 0)) for dim in range(rank)]
    return np.pad(values, [(0, 0), (0, 0), *width]) if any(map(any, width)) else values


def _patches(
    values: Array, kernel: Sequence[int], dilations: Sequence[int], sample: Index, starts: Sequence[Index]
) -> Array:
    """Returns [R, C, kernel...] at the given samples and first elements."""
    rank = len(kernel)
    reach = tuple(dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True))
    windows = sliding_window_view(values, reach, tuple(range(2, 2 + rank)))
    every: Any = (..., *(slice(None, None, dilation) for dilation in dilations))
    return np.asarray(np.moveaxis(windows[every], 1, 1 + rank)[(sample, *starts)])


def rows_per_channel(form: Form, weights: Sequence[int]) -> int:
    """Returns how many rows of the matrix belong to one channel of the data."""
    return 1 if isinstance(form, Product) else math.prod(weights[2:])


def rows_per_run(inputs: int, runs: int, *, few: bool = False) -> int:
    """Returns how many rows of each run are enough for statistics over this many inputs, or a few for a first look."""
    least, each = FEW_ROWS if few else (ROWS, ROWS_PER_INPUT)
    return -(-max(least, each * inputs) // runs)


def finite(rows: Array, targets: Array) -> NDArray[np.bool_]:
    """Returns which of the rows [g, R, n] and targets [g, R, m] hold numbers alone: [R]."""
    return np.asarray(np.isfinite(rows).all(axis=(0, 2)) & np.isfinite(targets).all(axis=(0, 2)))


def draw(form: Form, result: Array, share: int, random: np.random.Generator) -> Index:
    """Returns the places of all rows of a result, or of ``share`` of them at random, in order."""
    places = form.places(result)
    if share >= places:
        return np.arange(places)
    return np.sort(random.choice(places, share, replace=False))
