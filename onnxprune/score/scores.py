"""Scores by name, and what all of them share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune import arguments
from onnxprune.channels.groups import Channels
from onnxprune.errors import UsageError

Vector = NDArray[np.float64]
Criterion = Callable[[Channels, int], dict[str, Vector]]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Importance of every unit of every prunable group, by group name; the mean of a group is 1."""

    name: str
    values: Mapping[str, Vector]


def score(channels: Channels, name: str | None = None, data: object = None, seed: int = 0) -> Scores:
    """Returns the scores of all prunable groups under a criterion.

    Args:
        channels: Analysis of the model.
        name: ``random``, ``l1``, ``l2`` or ``batchnorm``; ``l2`` by default.
        data: Calibration samples; no criterion so far uses them.
        seed: Seed of the random criterion.

    Raises:
        UsageError: there is no such criterion.
    """
    from onnxprune.score.magnitude import batchnorm, l1, l2
    from onnxprune.score.random import uniform

    criteria: dict[str, Criterion] = {"l1": l1, "l2": l2, "batchnorm": batchnorm, "random": uniform}
    chosen = "l2" if name is None else arguments.word(name, "--score")
    seed = arguments.whole(seed, "--seed")
    if chosen not in criteria:
        raise UsageError(f"there is no score {chosen!r}: choose one of {', '.join(sorted(criteria))}")
    values = criteria[chosen](channels, seed)
    return Scores(chosen, {group: normalized(vector) for group, vector in values.items()})


def normalized(vector: Vector) -> Vector:
    """Returns the scores of a group divided by their mean, so that groups can be compared."""
    mean = float(vector.mean())
    return vector / mean if 0 < mean < np.inf else np.ones_like(vector)
