"""What the channel engine covers: one row for every real model that can be found.

    python bench/coverage.py [--only TEXT] [--ratio 0.5] [--round-to 1] [--save]

Columns: prunable groups and units; parameters and MACs removed at the ratio; the largest difference between the masked
original and the sliced model relative to the output's largest magnitude, over seeds and ratios with random scores;
seconds for analysis, planning and surgery. Below a row: why groups are frozen.
"""

import argparse
import collections
import platform
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from collection import Entry, collection, keep

from onnxprune.channels.groups import Channels, analyze
from onnxprune.commands.inputs import choose_inputs
from onnxprune.errors import OnnxPruneError
from onnxprune.model.cost import cost
from onnxprune.model.io import load, to_proto
from onnxprune.plan.plan import plan, why_nothing
from onnxprune.report.build import worth_telling
from onnxprune.score.scores import score
from onnxprune.slim import Recipe
from onnxprune.surgery.slice import slice_channels
from onnxprune.validate.proof import prove

RATIOS = (0.25, 0.5, 0.75)
SEEDS = (0, 1, 2)


def row(entry: Entry, ratio: float, round_to: int | str) -> tuple[str, list[str], bool]:
    """Returns the line of one model, the reasons for what is frozen, and whether all went well."""
    model = entry.open()
    graph = load(model)
    inputs = choose_inputs(to_proto(graph), Recipe(channels=ratio))
    start = time.perf_counter()
    channels = analyze(graph, inputs.sizes)
    reasons = frozen(channels)
    if not channels.prunable:
        return f"{entry.name:<48} {why_nothing(channels)}", reasons, True
    chosen = plan(channels, score(channels, "l2"), ratio, round_to)
    small = slice_channels(channels, chosen.removals)
    seconds = time.perf_counter() - start
    before, after = cost(graph, inputs.sizes), cost(small, inputs.sizes)
    worst, passed = 0.0, True
    for one in RATIOS:
        for seed in SEEDS:
            removals = plan(channels, score(channels, "random", seed=seed), one, 1).removals
            proof = prove(channels, removals, slice_channels(channels, removals), inputs.proof)
            worst, passed = max(worst, proof.relative), passed and proof.passed
    units = sum(group.units for group in channels.prunable)
    macs, parameters = 1 - after.macs / max(before.macs, 1), 1 - after.parameters / before.parameters
    line = (
        f"{entry.name:<48} {len(channels.prunable):>6} {units:>6} {parameters:>7.1%} {macs:>7.1%} {worst:>9.1e} "
        f"{seconds:>6.2f} {'' if passed else 'DIFFERS'}"
    )
    return line, reasons, passed


def frozen(channels: Channels) -> list[str]:
    """Returns the reasons for frozen groups, most frequent first."""
    counts = collections.Counter(
        str(group.frozen) for group in channels.groups if group.frozen is not None and worth_telling(group)
    )
    return [f"{count:>12} x {reason}" for reason, count in counts.most_common(6)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--round-to", default="1")
    parser.add_argument("--save", action="store_true", help="keep the table in bench/results/coverage.txt")
    options = parser.parse_args()
    round_to = options.round_to if options.round_to == "auto" else int(options.round_to)
    head = f"{'model':<48} {'groups':>6} {'units':>6} {'params':>7} {'MACs':>7} {'largest':>9} {'s':>6}"
    lines = [f"removed at {options.ratio}, --round-to {round_to}; {platform.processor() or platform.machine()}", head]
    print("\n".join(lines))
    good = True
    for entry in collection():
        if options.only not in entry.name:
            continue
        try:
            line, reasons, passed = row(entry, options.ratio, round_to)
        except OnnxPruneError as error:
            line, reasons, passed = f"{entry.name:<48} ERROR {error}", [], False
        good &= passed
        lines += [line, *reasons]
        print("\n".join([line, *reasons]), flush=True)
    if options.save:
        keep("coverage", "\n".join(lines) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
