"""Optimal Brain Surgeon for channels: what the operators that read a unit lose when the others make up for it.

Removing the rows S of a weight W whose inputs have the second moments H raises the squared error of the operator by
``tr(W_S' [H^-1]_SS^-1 W_S)``, with the other rows changed to fit best (Hassibi and Stork 1993). Units go greedily, a
few at a time, with weights and H^-1 brought up to date in between, as in OSSCAR (Meng et al. 2024).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels.groups import Channels
from onnxprune.model.linear import Array
from onnxprune.score.blocks import Index
from onnxprune.score.readings import Reading, Runs, readings_by_group
from onnxprune.score.scores import Vector

DAMPING = 1e-2
"""Ridge on the second moments, as a fraction of their mean."""

SHARE = 1 / 16
"""Fraction of the units that are left that goes in one step."""


@dataclass(slots=True)
class Site:
    """A product that reads units: ``rows[i]`` are the rows of ``units[i]``.

    Losses are relative to the ``energy`` of the operator's result.
    """

    weights: Array
    inverse: Array
    units: Index
    rows: Index
    energy: float

    def losses(self, count: int) -> Array:
        """Returns what the removal of each unit alone costs, for all units of the group."""
        total = np.zeros(count)
        blocks = self.inverse[self.rows[:, :, None], self.rows[:, None, :]]
        weights = self.weights[self.rows]
        solved = np.linalg.solve(blocks + _tiny(blocks), weights)
        np.add.at(total, self.units, 0.5 * np.einsum("urm,urm->u", weights, solved) / self.energy)
        return total

    def remove(self, gone: NDArray[np.bool_]) -> None:
        """Takes units out and lets the other rows make up for them."""
        chosen = gone[self.units]
        if not chosen.any():
            return
        out = self.rows[chosen].ravel()
        stay = np.delete(np.arange(len(self.weights)), out)
        block = self.inverse[np.ix_(out, out)]
        across = self.inverse[np.ix_(stay, out)]
        made_up = across @ np.linalg.solve(block + _tiny(block), np.hstack([self.weights[out], across.T]))
        width = self.weights.shape[1]
        self.weights = self.weights[stay] - made_up[:, :width]
        self.inverse = self.inverse[np.ix_(stay, stay)] - made_up[:, width:]
        places = np.cumsum(np.bincount(stay, minlength=len(stay) + len(out))) - 1
        self.units, self.rows = self.units[~chosen], places[self.rows[~chosen]]


def obs(channels: Channels, runs: Runs) -> dict[str, Vector]:
    """Returns the loss at which every unit goes; units that no linear operator reads go by magnitude alone."""
    groups = {group.name: group for group in channels.prunable}
    return {
        name: removal_losses([_site(one) for one in found], groups[name].units, groups[name].blocks)
        for name, found in readings_by_group(channels, runs)
    }


def _site(reading: Reading) -> Site:
    covariance = reading.covariance
    damping = DAMPING * max(float(np.trace(covariance)) / len(covariance), 1e-30)
    inverse = np.asarray(np.linalg.inv(covariance + damping * np.eye(len(covariance))), np.float64)
    return Site(reading.weights.copy(), inverse, reading.units, reading.rows, max(reading.energy, 1e-30))


def removal_losses(sites: Sequence[Site], count: int, blocks: Index | None = None) -> Array:
    """Returns the loss at which every unit goes, in the order of a greedy removal: later ones have more."""
    block = np.zeros(count, np.int64) if blocks is None else blocks
    number = int(block.max()) + 1
    alive = np.ones(count, bool)
    found = np.zeros(count)
    reached = 0.0
    while alive.sum() > number:
        losses = np.sum([one.losses(count) for one in sites], axis=0)
        left = int(alive.sum()) // number
        step = min(max(int(left * SHARE), 1), left - 1)
        order = np.lexsort((losses, ~alive, block)).reshape(number, -1)
        chosen = order[:, :step]
        for column in chosen.T:
            reached = max(float(losses[column].mean()), np.nextafter(reached, np.inf))
            found[column] = reached
        gone = np.zeros(count, bool)
        gone[chosen] = True
        alive &= ~gone
        for one in sites:
            one.remove(gone)
    found[alive] = np.nextafter(max(reached * 2, 1e-30), np.inf)
    return found


def _tiny(blocks: Array) -> Array:
    size = blocks.shape[-1]
    scale = np.trace(blocks, axis1=-2, axis2=-1) / size
    return np.asarray(scale)[..., None, None] * 1e-10 * np.eye(size)
