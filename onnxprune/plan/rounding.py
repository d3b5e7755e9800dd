"""How many units stay: widths that the runtime likes."""

import math

from onnxprune.channels.groups import ChannelGroup
from onnxprune.errors import UsageError

BLOCKS = {"ort-cpu": 16, "ort-cuda": 8, "tensorrt": 8, "generic": 1}
"""Channels that kernels of a target take at once (AVX-512: 16; tensor cores in float16: 8)."""

SMALL = 8
"""Block for groups that are narrower than the target's own."""


def block(group: ChannelGroup, round_to: int | str, target: str) -> int:
    """Returns the number of units in which a group shrinks, such that its channels are multiples of ``round_to``.

    Groups with blocks shrink by as many units in each. What ``auto`` takes for a group whose units are not single
    channels, or has blocks, is halved until something can go: 6 groups of 8 channels have no smaller multiple of 16.

    Raises:
        UsageError: ``round_to`` is neither ``auto`` nor a positive number, or the target is unknown.
    """
    channels = group.width * group.units
    if target not in BLOCKS:
        raise UsageError(f"there is no target {target!r}: choose one of {', '.join(BLOCKS)}")
    if round_to == "auto":
        multiple = BLOCKS[target] if channels >= BLOCKS[target] else min(SMALL, BLOCKS[target])
    elif isinstance(round_to, int) and round_to >= 1:
        multiple = round_to
    else:
        raise UsageError(f"--round-to is {round_to!r}: give 'auto' or a whole number from 1 on")
    step = _step(group, multiple)
    single = group.width == group.block_count == 1
    while round_to == "auto" and not single and step >= group.units and multiple > 1:
        multiple //= 2
        step = _step(group, multiple)
    return step


def _step(group: ChannelGroup, multiple: int) -> int:
    return math.lcm(group.block_count, multiple // math.gcd(multiple, group.width))


def kept(group: ChannelGroup, wanted: float, units: int) -> int:
    """Returns how many units stay: the multiple of ``units`` nearest to ``wanted``, ties up, at least one block.

    It is the original number where rounding leaves nothing to remove.
    """
    blocks = max(1, math.floor(wanted / units + 0.5 + 1e-9))
    return min(group.units, blocks * units)
