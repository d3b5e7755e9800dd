"""Scores by name, and what all of them share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxprune import arguments
from onnxprune.channels.groups import Channels
from onnxprune.errors import UsageError

if TYPE_CHECKING:
    from onnxprune.score.readings import Runs

Vector = NDArray[np.float64]
Criterion = Callable[[Channels, int], dict[str, Vector]]
Measured = Callable[[Channels, "Runs"], dict[str, Vector]]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Importance of every unit of every prunable group, by group name; comparable between groups."""

    name: str
    values: Mapping[str, Vector]


def score(
    channels: Channels, name: str | None = None, data: object = None, seed: int = 0, max_memory: int | str = "2GB"
) -> Scores:
    """Returns the scores of all prunable groups under a criterion.

    Args:
        channels: Analysis of the model.
        name: ``random``, ``l1``, ``l2`` or ``batchnorm``, from the weights alone, or ``activation``, ``variance`` or
            ``obs`` from samples; by default ``obs`` with samples and ``l2`` without.
        data: Calibration samples, in any form that ``slim`` takes, or runs of the model.
        seed: Seed of the random criterion, and of the rows of samples that are read.
        max_memory: Bytes that may be used for what the model computes; the rest goes to files.

    Raises:
        UsageError: there is no such criterion, or it needs samples.
        CalibrationError: the samples do not fit the model.
    """
    from onnxprune.score.activation import activation, variance
    from onnxprune.score.magnitude import batchnorm, l1, l2
    from onnxprune.score.obs import obs
    from onnxprune.score.random import uniform
    from onnxprune.score.readings import runs_of

    stored: dict[str, Criterion] = {"l1": l1, "l2": l2, "batchnorm": batchnorm, "random": uniform}
    measured: dict[str, Measured] = {"activation": activation, "variance": variance, "obs": obs}
    default = "l2" if data is None else "obs"
    chosen = default if name is None else arguments.word(name, "--score")
    seed = arguments.whole(seed, "--seed")
    if chosen in stored:
        values = stored[chosen](channels, seed)
        return Scores(chosen, {group: normalized(vector) for group, vector in values.items()})
    if chosen not in measured:
        raise UsageError(f"there is no score {chosen!r}: choose one of {', '.join(sorted([*stored, *measured]))}")
    if data is None:
        raise UsageError(f"the score {chosen!r} is measured on samples: give --data, or choose l2")
    found = measured[chosen](channels, runs_of(channels, data, seed, arguments.size(max_memory, "--max-memory")))
    return Scores(chosen, _completed(found, l2(channels, seed)))


def normalized(vector: Vector) -> Vector:
    """Returns the scores of a group divided by their mean, so that groups can be compared."""
    mean = float(vector.mean())
    return vector / mean if 0 < mean < np.inf else np.ones_like(vector)


def _completed(found: Mapping[str, Vector], magnitudes: Mapping[str, Vector]) -> dict[str, Vector]:
    """Returns measured scores; groups that no linear operator reads go by magnitude, at the level of the others."""
    level = float(np.median(np.concatenate(list(found.values())))) if found else 1.0
    return {name: found.get(name, normalized(vector) * level) for name, vector in magnitudes.items()}
