"""What float16 holds of stored numbers, and which of them only say that nothing is larger."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = 65504.0
ROUNDED_TO_INFINITY = 65520.0
SMALLEST_NORMAL = 2.0**-14
STANDS_FOR_INFINITY = 1e9
"""From here on a constant means "more than anything", as 3.4e38 does; negative ones do from the end of float16 on."""

Array = NDArray[Any]


def outside(values: Array) -> Array:
    """Returns the finite values that float16 does not hold."""
    return np.asarray(values[np.isfinite(values) & (np.abs(values) >= ROUNDED_TO_INFINITY)])


def stand_for_infinity(values: Array) -> bool:
    """Returns whether values outside of float16 say no more than that nothing is larger, or smaller.

    Masks and open bounds do, and are known by one number for all their entries; positive ones are also as large as no
    factor is.
    """
    low, high = values[values < 0], values[values > 0]
    alike = np.unique(low).size <= 1 and np.unique(high).size <= 1
    return alike and (not high.size or bool(high[0] >= STANDS_FOR_INFINITY))


def misfit(values: Array, linear: bool) -> str | None:
    """Returns why float16 does not hold a constant; single entries that round to zero are no reason."""
    beyond = outside(values)
    if beyond.size and (linear or not stand_for_infinity(beyond)):
        return f"its constant reaches {np.abs(beyond).max():.3g}, and float16 ends at 65504"
    sizes = np.abs(values[np.isfinite(values)])
    largest = sizes.max(initial=0)
    if 0 < largest < SMALLEST_NORMAL:
        return f"its constant {largest:.3g} is below 6.1e-05, the smallest float16 with all digits"
    return None
