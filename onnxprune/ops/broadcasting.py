"""What operators with broadcasting have in common."""

from collections.abc import Iterable, Sequence

from onnxprune.channels.facts import Facts, Tie, free
from onnxprune.channels.registry import Value


def broadcast(inputs: Sequence[Value], result: Value, dims: Iterable[int] | None = None, tail: int = 0) -> Facts:
    """Ties the axes of inputs to those of the result as NumPy broadcasting aligns them; size 1 stretches and is free.

    ``dims`` are the dimensions of the result to look at, all by default; ``tail`` the trailing dimensions of the inputs
    that do not take part.
    """
    dims = range(result.rank) if dims is None else dims
    batch = len(list(dims))
    for value in inputs:
        leading = max(value.rank - tail, 0)
        for dim in range(leading):
            target = batch - leading + dim
            if value.shape[dim] == result.shape[target] and target >= 0:
                yield Tie(value.axis(dim), result.axis(target))
            elif value.shape[dim] == 1:
                yield free(value.axis(dim))
