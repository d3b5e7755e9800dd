"""Scores from what units carry on samples: the variance of what they send, weighted by what reads it or not."""

import numpy as np

from onnxprune.channels.groups import Channels
from onnxprune.score.readings import Runs, readings
from onnxprune.score.scores import Vector


def activation(channels: Channels, runs: Runs) -> dict[str, Vector]:
    """Returns the norm of the weights reading a unit times the deviation of what they read (Wanda, Sun et al. 2023)."""
    totals = {group.name: np.zeros(group.units) for group in channels.prunable}
    for one in readings(channels, runs):
        power = np.square(one.weights).sum(axis=1) * np.diagonal(one.covariance)
        np.add.at(totals[one.group], one.units, power[one.rows].sum(axis=1) / max(one.energy, 1e-30))
    return {name: np.sqrt(total) for name, total in totals.items() if total.any()}


def variance(channels: Channels, runs: Runs) -> dict[str, Vector]:
    """Returns the variance of what operators read of a unit, behind its activation function."""
    totals = {group.name: np.zeros(group.units) for group in channels.prunable}
    for one in readings(channels, runs):
        spread = np.diagonal(one.covariance)
        mean = max(float(spread.mean()), 1e-30)
        np.add.at(totals[one.group], one.units, spread[one.rows].mean(axis=1) / mean)
    return {name: total for name, total in totals.items() if total.any()}
