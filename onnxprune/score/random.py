"""The baseline that every criterion has to beat."""

import numpy as np

from onnxprune.channels.groups import Channels
from onnxprune.score.scores import Vector


def uniform(channels: Channels, seed: int) -> dict[str, Vector]:
    """Returns seeded random scores."""
    generator = np.random.default_rng(seed)
    return {group.name: generator.random(group.units) for group in channels.prunable}
