"""Channels against layers: what is left of the accuracy, and of the time, where equal multiply-accumulates are gone.

    python bench/grains.py [--nets FOLDER] [--shares 0.9,0.75,0.5] [--save [NAME]]

For every share, as many blocks go as come nearest to it; channels then go down to the multiply-accumulates that these
blocks leave. Both are repaired by default, and timed in turns with the original. The plot shows what is left of the
accuracy over the ratio of latencies; with --save it is kept in bench/results/NAME.svg.

The verdict is formed on samples of their own, never on those that calibrate.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from accuracy import numbers, whole_numbers, words
from accuracy_sheet import Sheet, Sizes, Subject, float_accuracy, mean, spread
from collection import ROOT
from grains_chart import Curve, chart
from grains_made import SMALL_SAMPLES, Ladder, Made, Timing, draws, interval, made, outcomes, subjects, timed, without

from onnxprune.report.schema import LatencyRatio
from onnxprune.slim import Recipe

FAR = 0.1
"""Distance from a share from which on the row says that blocks do not come nearer."""


@dataclass(frozen=True)
class Options:
    """What is run."""

    sizes: Sizes
    timing: Timing
    nets: Path | None
    depths: tuple[int, ...]
    models: tuple[str, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Pair:
    """Both grains at the same multiply-accumulates, one result for each draw."""

    share: float
    blocks: int
    layers: list[Made]
    channels: list[Made]
    round_to: int | str


def head(sheet: Sheet, options: Options) -> None:
    """Adds what the table says."""
    sizes, timing = options.sizes, options.timing
    sheet.add(
        f"{sizes.samples} unlabelled images ({SMALL_SAMPLES} at most for networks of models/), {sizes.verdict:,} "
        "validation images",
        f"top-1 in percent after repair, mean ± half of the range over {sizes.seeds} draws; MACs: what is left",
        "blocks come as near to the asked MACs as they can, channels go down to the same, at --round-to "
        f"{sizes.round_to}, or 1 where that does not come so far",
        f"latency: after / before with its 95 % interval, one sample at a time on {timing.provider}, {timing.threads} "
        "threads, models in turns",
        f"{'':<10} {'':>5} | {'layers':<47} | channels",
        f"{'network':<10} {'asked':>5} | {'blocks':>6} {'MACs':>5} {'accuracy':>10} {'latency':>22} | round "
        f"{'MACs':>5} {'accuracy':>10} {'latency':>22} | better, faster",
    )


def compared(sheet: Sheet, subject: Subject, options: Options) -> list[Curve]:
    """Adds the rows of a network, and returns its curves."""
    whole = float_accuracy(subject)
    sheet.add(f"{subject.name:<10} float {whole:.1f}")
    ladder = Ladder(subject, options.sizes)
    if not ladder.order:
        sheet.add(f"{subject.name:<10} has no block that can be dropped")
        return []
    pairs: dict[int, Pair] = {}
    for share in options.shares:
        count = ladder.nearest(share)
        if count in pairs:
            sheet.add(f"{subject.name:<10} {share:>5.2f} | {count:>6} blocks, as at {pairs[count].share:.2f}")
            continue
        pairs[count] = _pair(subject, share, ladder, options.sizes)
    found = list(pairs.values())
    models = [subject.proto(), *(one.model for pair in found for one in (pair.layers[0], pair.channels[0]))]
    times, ratios = timed(models, options.timing)
    sheet.add(f"{subject.name:<10} {times[0]:.3f} ms for one sample of the original")
    for pair, layers, channels in zip(found, ratios[1::2], ratios[2::2], strict=True):
        sheet.add(_line(subject, pair, layers, channels))
    return [
        Curve(subject.name, "layers", whole, _points([pair.layers for pair in found], ratios[1::2])),
        Curve(subject.name, "channels", whole, _points([pair.channels for pair in found], ratios[2::2])),
    ]


def _pair(subject: Subject, share: float, ladder: Ladder, sizes: Sizes) -> Pair:
    count = ladder.nearest(share)
    macs = ladder.macs[count]
    layers = draws(sizes, lambda seed: without(subject, sizes, ladder.names(count), seed=seed))
    round_to = reaching(subject, macs, sizes.round_to)
    finer = replace(sizes, round_to=round_to)
    channels = draws(sizes, lambda seed: made(subject, replace(subject.recipe(finer, seed), max_macs=macs)))
    return Pair(share, count, layers, channels, round_to)


def reaching(subject: Subject, macs: float, round_to: int | str) -> int | str:
    """Returns the rounding that is asked for, or 1 where channels do not come down so far with it."""
    found = made(subject, Recipe(max_macs=macs, round_to=round_to, dry_run=True))
    return round_to if found.outcome.macs <= macs else 1


def _line(subject: Subject, pair: Pair, layers: LatencyRatio, channels: LatencyRatio) -> str:
    deep, wide = outcomes(pair.layers), outcomes(pair.channels)
    better = "layers" if mean(deep) > mean(wide) else "channels"
    faster = "layers" if (layers.median or 1) < (channels.median or 1) else "channels"
    far = abs(deep[0].macs - pair.share) > FAR
    return (
        f"{subject.name:<10} {pair.share:>5.2f} | {pair.blocks:>6} {deep[0].macs:>5.3f} {spread(deep):>10} "
        f"{interval(layers):>22} | {pair.round_to:>5} {np.mean([one.macs for one in wide]):>5.3f} {spread(wide):>10} "
        f"{interval(channels):>22} | {better}, {faster}{'  (blocks come no nearer)' if far else ''}"
    )


def _points(found: list[list[Made]], ratios: list[LatencyRatio]) -> tuple[tuple[float, float], ...]:
    return tuple((ratio.median or 1.0, mean(outcomes(made))) for made, ratio in zip(found, ratios, strict=True))


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--nets", type=Path, help="folder with the trained CIFAR-10 networks and images")
    result.add_argument("--seeds", type=int, default=3, help="draws of the calibration samples")
    result.add_argument("--samples", type=int, default=512, help="calibration samples")
    result.add_argument("--verdict", type=int, default=2000, help="samples for the verdict")
    result.add_argument("--depths", type=whole_numbers, default=(20, 56), help="trained CIFAR-10 networks")
    result.add_argument("--models", type=words, default=("resnet", "mobilenet", "vit"), help="of models/")
    result.add_argument("--shares", type=numbers, default=(0.9, 0.75, 0.5), help="what is left of the MACs")
    result.add_argument("--round-to", default="auto", help="multiple for the channels that stay")
    result.add_argument("--threads", type=int, default=1)
    result.add_argument("--seconds", type=float, default=3.0, help="to time each model for")
    result.add_argument("--ep", default="cpu", help="execution provider to time on, cpu or cuda")
    result.add_argument(
        "--save", nargs="?", const="grains", metavar="NAME", help="keep the table and the plot in bench/results/"
    )
    result.add_argument("--plot", type=Path, metavar="FILE", help="write the plot into this file")
    return result


def main() -> int:
    given = parser().parse_args()
    round_to = given.round_to if given.round_to == "auto" else int(given.round_to)
    options = Options(
        Sizes(given.seeds, given.samples, given.verdict, round_to), Timing(given.threads, given.seconds, given.ep),
        given.nets, given.depths, given.models, given.shares,
    )  # fmt: skip
    sheet = Sheet("equal_macs")
    head(sheet, options)
    curves: list[Curve] = []
    for subject, sizes in subjects(given.nets, options.depths, options.models, options.sizes):
        try:
            curves += compared(sheet, subject, replace(options, sizes=sizes))
        except Exception as error:  # one must not end the others
            sheet.failed = True
            sheet.add(f"{subject.name:<10} ERROR {type(error).__name__}: {error}"[:200].splitlines()[0])
    sheet.end(given.save)
    plots = [given.plot] if given.plot else []
    plots += [ROOT / "bench" / "results" / f"{given.save}.svg"] if given.save else []
    for path in plots if curves else []:
        path.write_text(chart(curves, options.timing.threads, options.timing.provider), encoding="utf-8")
    return 1 if sheet.failed else 0


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
