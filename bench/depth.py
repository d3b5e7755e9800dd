"""Dropping whole blocks: which are found, what is left of the accuracy, and what of the latency.

    python bench/depth.py [--table NAME ...] [--nets FOLDER] [--zoo FOLDER] [--save [NAME]]

blocks: every block of networks whose blocks are known, removed alone: does ONNX Runtime run the result, does the proof
hold, and is it what the original computes whose file was edited by hand?
accuracy: trained CIFAR-10 networks of a folder (as for bench/accuracy.py) with more and more blocks gone.
rankings: the ways to rank blocks against each other, with a third and two thirds of the blocks gone.
latency: time against the number of blocks that are gone, models in turns, one sample at a time.

The verdict is formed on samples of their own, never on those that calibrate.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from accuracy import whole_numbers, words
from accuracy_sheet import Sheet, Sizes, Subject, float_accuracy, mean, seconds, spread
from depth_blocks import blocks_table
from grains_made import SMALL_SAMPLES, Ladder, Made, Timing, draws, interval, made, outcomes, subjects, timed, without

from onnxprune.recover.depth import METHODS

GOALS = {("ResNet-56", 6): 80.0}
"""What repair is to reach, in percent."""

BEND = 0.1
"""Largest distance of a latency ratio from the straight line through the original."""


@dataclass(frozen=True)
class Options:
    """What is run."""

    sizes: Sizes
    timing: Timing
    nets: Path | None
    zoo: Path | None
    depths: tuple[int, ...]
    models: tuple[str, ...]
    counts: tuple[int, ...]
    only: tuple[str, ...]


def blocks(sheet: Sheet, options: Options) -> None:
    """What is found, and what it is worth."""
    blocks_table(sheet, options.nets, options.zoo, options.only)


def accuracy(sheet: Sheet, options: Options) -> None:
    """More and more blocks."""
    sizes = options.sizes
    sheet.add(
        f"trained CIFAR-10 networks, {sizes.samples} unlabelled images, {sizes.verdict:,} validation images; blocks "
        "ranked by divergence, again after every drop",
        f"top-1 in percent, mean ± half of the range over {sizes.seeds} draws of the calibration images; s: seconds of "
        "ranking and repair; no repair: the same blocks",
        f"{'network':<10} {'gone':>5} {'MACs':>6} {'params':>6} {'goal':>5} {'no repair':>12} {'repaired':>12} "
        f"{'s':>5}",
    )
    for subject, _ in subjects(options.nets, options.depths, (), sizes):
        sheet.add(f"{subject.name:<10} float {float_accuracy(subject):.1f}")
        for count in options.counts or range(1, 10):
            sheet.row(f"{subject.name:<10} {count:>5}", partial(_dropped, subject, count, sizes))


def _dropped(subject: Subject, count: int, sizes: Sizes) -> str:
    best = draws(sizes, lambda seed: made(subject, replace(subject.recipe(sizes, seed), layers=count)))
    plain = [without(subject, sizes, one.plan.blocks, recover="none") for one in best]
    found = outcomes(best)
    goal = GOALS.get((subject.name, count))
    return (
        f"{subject.name:<10} {count:>5} {np.mean([one.outcome.macs for one in best]):>6.3f} {_parameters(best):>6.3f} "
        f"{goal or '-':>5} {spread(outcomes(plain)):>12} {spread(found):>12} {seconds(found):>5.0f}"
        f"{'  MISSED' if goal and mean(found) < goal else ''}"
    )


def _parameters(found: Sequence[Made]) -> float:
    return float(np.mean([one.report.ratios.parameters or 1.0 for one in found]))


def rankings(sheet: Sheet, options: Options) -> None:
    """What decides which blocks go."""
    sizes = options.sizes
    sheet.add(
        f"top-1 in percent after repair, by ranking, mean ± half of the range over {sizes.seeds} draws of "
        f"{sizes.samples} unlabelled images ({SMALL_SAMPLES} at most for networks of models/)",
        f"{'network':<10} {'gone':>5} " + " ".join(f"{name:>12}" for name in METHODS),
    )
    for subject, own in subjects(options.nets, options.depths, options.models, sizes):
        for amount in options.counts or (1 / 3, 2 / 3):
            sheet.row(f"{subject.name:<10} {amount:>5.2f}", partial(_ranked, subject, amount, own))


def _ranked(subject: Subject, amount: float, sizes: Sizes) -> str:
    cells, gone = [], 0
    for name in METHODS:
        first = replace(subject.recipe(sizes), layers=amount, layer_score=name)
        found = draws(sizes, lambda seed, first=first: made(subject, replace(first, seed=seed)))
        cells.append(f"{spread(outcomes(found)):>12}")
        gone = len(found[0].plan.blocks)
    return f"{subject.name:<10} {gone:>5} " + " ".join(cells)


def latency(sheet: Sheet, options: Options) -> None:
    """Time against blocks."""
    timing = options.timing
    sheet.add(
        f"one sample at a time on {timing.provider}, {timing.threads} threads, models in turns, {timing.seconds:g} s "
        "for each; ratio to the original with its 95 % interval",
        "line: ratio on the straight line through the original that fits best, all blocks alike; MACs: what is left "
        "of them, for blocks are not alike",
        f"{'network':<10} {'gone':>5} {'MACs':>6} {'ms':>8} {'ratio':>22} {'line':>6}",
    )
    for subject, sizes in subjects(options.nets, options.depths, options.models, options.sizes):
        try:
            sheet.add(*_times(subject, replace(options, sizes=sizes)))
        except Exception as error:  # one must not end the others
            sheet.failed = True
            sheet.add(f"{subject.name:<10} ERROR {type(error).__name__}: {error}"[:200].splitlines()[0])


def _times(subject: Subject, options: Options) -> Iterator[str]:
    counts = options.counts or tuple(range(1, 10))
    ladder = Ladder(subject, options.sizes, most=max(counts))
    counts = tuple(count for count in counts if count <= len(ladder.order))
    results = [without(subject, options.sizes, ladder.names(count), recover="none") for count in counts]
    times, ratios = timed([subject.proto(), *(one.model for one in results)], options.timing)
    gone = np.array([0, *counts])
    found = np.array([ratio.median for ratio in ratios], np.float64)
    slope = float(gone @ (1 - found) / max(gone @ gone, 1))
    line = 1 - slope * gone
    rows = zip(gone, (1.0, *(one.outcome.macs for one in results)), times, ratios, line, strict=True)
    for count, macs, ms, ratio, at in rows:
        yield f"{subject.name:<10} {count:>5} {macs:>6.3f} {ms:>8.3f} {interval(ratio):>22} {at:>6.3f}"
    bend = float(np.abs(found - line).max())
    yield (
        f"{subject.name:<10} each block takes {slope:.1%} of the time; at most {bend:.3f} off the line"
        f"{'  MISSED' if bend > BEND else ''}"
    )


TABLES = {"blocks": blocks, "accuracy": accuracy, "rankings": rankings, "latency": latency}


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--table", choices=list(TABLES), nargs="+", default=list(TABLES))
    result.add_argument("--nets", type=Path, help="folder with the trained CIFAR-10 networks and images")
    result.add_argument(
        "--zoo", type=Path, help="folder with exports of bench/zoo.py, of which BERT and Llama are read"
    )
    result.add_argument("--seeds", type=int, default=3, help="draws of the calibration samples")
    result.add_argument("--samples", type=int, default=512, help="calibration samples")
    result.add_argument("--verdict", type=int, default=2000, help="samples for the verdict")
    result.add_argument("--depths", type=whole_numbers, default=(56,), help="trained CIFAR-10 networks")
    result.add_argument("--models", type=words, default=("resnet", "vit"), help="of models/, for rankings and latency")
    result.add_argument("--counts", type=whole_numbers, default=(), help="numbers of blocks, not 1 to 9 or thirds")
    result.add_argument(
        "--only", type=words, default=(), help="of the table of blocks, networks with one of these words"
    )
    result.add_argument("--threads", type=int, default=1)
    result.add_argument("--seconds", type=float, default=3.0, help="to time each model for")
    result.add_argument("--ep", default="cpu", help="execution provider to time on, cpu or cuda")
    result.add_argument(
        "--save", nargs="?", const="depth", metavar="NAME", help="keep tables in bench/results/NAME_<table>.txt"
    )
    return result


def main() -> int:
    given = parser().parse_args()
    options = Options(
        Sizes(given.seeds, given.samples, given.verdict, "auto"), Timing(given.threads, given.seconds, given.ep),
        given.nets, given.zoo, given.depths, given.models, given.counts, given.only,
    )  # fmt: skip
    failed = False
    for name in given.table:
        if name == "accuracy" and given.nets is None:
            print("accuracy: left out, give --nets FOLDER with the trained networks", flush=True)
            continue
        sheet = Sheet(name)
        TABLES[name](sheet, options)
        sheet.end(given.save)
        failed |= sheet.failed
    return 1 if failed else 0


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
