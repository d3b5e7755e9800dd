"""How much accuracy is left without training: budgets, scores and repairs, fidelity, samples, time and memory.

    python bench/accuracy.py [--table NAME ...] [--nets FOLDER] [--save [NAME]]

budgets: trained CIFAR-10 networks of a folder (cifar_resnet20.onnx, cifar_resnet56.onnx, cifar10_calibration.npz and
cifar10_validation.npz with uint8 images and labels), at shares of their multiply-accumulates, beside onnxsim.
models: every score with every repair on the networks of models/, and the default.
fidelity: networks of installed packages on rendered text and on files, beside onnxsim.
samples: few to many samples, weak to strong ridge; nothing may be worse than without repair.
time: seconds and peak memory as networks get deeper.

The verdict is formed on samples of their own, never on those that calibrate. onnxsim is measured where it is installed.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from accuracy_real import REAL, real
from accuracy_rival import rival, version
from accuracy_sheet import (
    Outcome,
    Sheet,
    Sizes,
    Subject,
    cifar,
    float_accuracy,
    mean,
    outcome,
    over_seeds,
    seconds,
    small,
    spread,
    verdict,
)
from accuracy_time import Job, jobs, needed, time_table

from onnxprune.channels.groups import analyze
from onnxprune.commands.choose import Setting, choose_plan
from onnxprune.commands.recipe import checked
from onnxprune.model.cost import cost, weight_tensors
from onnxprune.model.io import Graph, to_proto
from onnxprune.recover.least_squares import solve
from onnxprune.recover.recover import calibration, repaired
from onnxprune.recover.sequential import Settings
from onnxprune.slim import Recipe
from onnxprune.surgery.slice import slice_channels

GOALS = {
    ("ResNet-20", 0.75): 78.5, ("ResNet-20", 0.51): 73.5, ("ResNet-20", 0.32): 64.0,
    ("ResNet-56", 0.75): 82.0, ("ResNet-56", 0.50): 80.0,
}  # fmt: skip
"""What the default is to reach, in percent."""

SHARES = {20: (0.75, 0.51, 0.32), 56: (0.75, 0.50)}
SCORES = ("l2", "activation", "variance", "obs")
REPAIRS = ("none", "fold", "statistics", "bias", "least-squares")
STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
REGAINED = 0.9
"""Share of the accuracy lost without repair that is to come back at half of the multiply-accumulates."""


@dataclass(frozen=True)
class Options:
    """What is run."""

    sizes: Sizes
    nets: Path | None
    depths: tuple[int, ...]
    shares: tuple[float, ...]
    models: tuple[str, ...]
    real: tuple[str, ...]
    counts: tuple[int, ...]
    images: int
    large_images: int
    time_depths: tuple[int, ...]


def budgets(sheet: Sheet, options: Options) -> None:
    """Networks of which the state of the art keeps little."""
    sizes = options.sizes
    depths = "/".join(map(str, options.depths))
    sheet.add(
        f"CIFAR-10 ResNet-{depths}, trained, {sizes.samples} unlabelled images, {sizes.verdict:,} validation images; "
        f"--round-to {sizes.round_to}",
        f"top-1 in percent, mean ± half of the range over {sizes.seeds} draws of the calibration images",
        f"{version()}: the better of L2 and Wanda, at the MACs that stand there, never fewer",
        "s: seconds of score, plan and repair",
        f"{'network':<10} {'asked':>5} {'MACs':>5} {'goal':>5} {'l2, no repair':>13} {'onnxsim':>13} "
        f"{'obs uniform':>12} {'s':>5} {'default':>12} {'s':>5}  allocations",
    )
    for subject in _cifar(options):
        sheet.add(f"{subject.name:<10} float {float_accuracy(subject):.1f}")
        for share in options.shares or SHARES[int(subject.name.split("-")[1])]:
            sheet.row(f"{subject.name:<10} {share:>5.2f}", partial(_budget, subject, share, sizes))


def _budget(subject: Subject, share: float, sizes: Sizes) -> str:
    first = replace(subject.recipe(sizes), max_macs=share)
    plain = outcome(subject, replace(first, data=None, score="l2", recover="none"))
    other = rival(subject, share, sizes)
    even = over_seeds(sizes, lambda seed: outcome(subject, replace(first, seed=seed, allocation="uniform")))
    best = over_seeds(sizes, lambda seed: outcome(subject, replace(first, seed=seed)))
    goal = GOALS.get((subject.name, share))
    return (
        f"{subject.name:<10} {share:>5.2f} {max(one.macs for one in best):>5.3f} {goal or '-':>5} "
        f"{plain.accuracy:>13.1f} {other.accuracy:>13} {spread(even):>12} {seconds(even):>5.0f} {spread(best):>12} "
        f"{seconds(best):>5.0f}  {_allocations(best)}"
        f"{'  MISSED' if goal and mean(best) < goal else ''}"
    )


def models(sheet: Sheet, options: Options) -> None:
    """Scores against repairs."""
    sizes = options.sizes
    sheet.add(
        f"networks of models/, {sizes.samples} of 512 unlabelled images, {sizes.verdict:,} validation images; "
        f"--round-to {sizes.round_to}, uniform allocation, 'default' is the best of all allocations",
        f"top-1 in percent, mean over {sizes.seeds} draws of the calibration images; regained: share of what is lost "
        f"without repair that least squares brings back (goal at 0.5: {REGAINED:.0%})",
        f"{'network':<10} {'asked':>5} {'score':<10} " + " ".join(f"{name:>13}" for name in REPAIRS) + "  regained",
    )
    for subject in small(options.models, sizes):
        whole = float_accuracy(subject)
        sheet.add(f"{subject.name:<10} float {whole:.1f}")
        for share in options.shares or (0.5, 0.3):
            for score in SCORES:
                label = f"{subject.name:<10} {share:>5.2f} {score:<10}"
                sheet.row(label, partial(_scored, subject, share, score, whole, sizes))
            sheet.row(f"{subject.name:<10} {share:>5.2f} default", partial(_default, subject, share, whole, sizes))


def _scored(subject: Subject, share: float, score: str, whole: float, sizes: Sizes) -> str:
    found = _repairs(subject, share, score, sizes)
    cells = " ".join(f"{mean(found[name]):>13.1f}" for name in REPAIRS)
    regained = _regained(whole, found["none"], found["least-squares"])
    return f"{subject.name:<10} {share:>5.2f} {score:<10} {cells} {regained:>8.1%}"


def _default(subject: Subject, share: float, whole: float, sizes: Sizes) -> str:
    first = replace(subject.recipe(sizes), max_macs=share)
    best = over_seeds(sizes, lambda seed: outcome(subject, replace(first, seed=seed)))
    plain = [outcome(subject, _again(subject, one, "none", seed, sizes)) for seed, one in enumerate(best)]
    regained = _regained(whole, plain, best)
    cells = f"{mean(plain):>13.1f} {'':>13} {'':>13} {'':>13} {spread(best):>13}"
    missed = "  MISSED" if share == 0.5 and regained < REGAINED else ""
    return f"{subject.name:<10} {share:>5.2f} {'default':<10} {cells} {regained:>8.1%}  {_allocations(best)}{missed}"


def _repairs(subject: Subject, share: float, score: str, sizes: Sizes) -> dict[str, list[Outcome]]:
    first = replace(subject.recipe(sizes), max_macs=share, score=score, allocation="uniform", recover="none")
    plain = over_seeds(sizes, lambda seed: outcome(subject, replace(first, seed=seed)))
    others = {
        name: [outcome(subject, _again(subject, one, name, seed, sizes)) for seed, one in enumerate(plain)]
        for name in REPAIRS[1:]
    }
    return {REPAIRS[0]: plain, **others}


def _again(subject: Subject, one: Outcome, repair: str, seed: int, sizes: Sizes) -> Recipe:
    return replace(subject.recipe(sizes, seed), plan=one.plan, recover=repair, round_to="auto")


def _allocations(found: Sequence[Outcome]) -> str:
    return ", ".join(dict.fromkeys(one.allocation for one in found))


def _regained(whole: float, plain: Sequence[Outcome], found: Sequence[Outcome]) -> float:
    return (mean(found) - mean(plain)) / max(whole - mean(plain), 1e-9)


def fidelity(sheet: Sheet, options: Options) -> None:
    """Networks of which only the outputs can be held against each other."""
    sizes = options.sizes
    sheet.add(
        f"networks of installed packages at 0.7 of their MACs; {sizes.samples} calibration samples, up to "
        f"{sizes.verdict} others for the verdict: rendered lines of text, and files; --round-to {sizes.round_to}",
        "agreement of the largest class in percent / cosine of the outputs; no repair and least squares: one plan "
        f"(obs, uniform); default: mean over {sizes.seeds} draws",
        f"{version()}: the better of L2 and Wanda, at the MACs that stand there, never fewer",
        f"{'network':<14} {'MACs':>5} {'no repair':>14} {'least squares':>14} {'default':>14} {'s':>5} "
        f"{'onnxsim':>23}  allocations",
    )
    for subject in real(options.real, sizes):
        for share in options.shares or (0.7,):
            sheet.row(f"{subject.name:<14}", partial(_likeness, subject, share, sizes))


def _likeness(subject: Subject, share: float, sizes: Sizes) -> str:
    first = replace(subject.recipe(sizes), max_macs=share)
    plain = outcome(subject, replace(first, allocation="uniform", recover="none"))
    even = outcome(subject, _again(subject, plain, "least-squares", 0, sizes))
    best = over_seeds(sizes, lambda seed: outcome(subject, replace(first, seed=seed)))
    return (
        f"{subject.name:<14} {max(one.macs for one in best):>5.3f} {plain.alike:>14} {even.alike:>14} "
        f"{_alike(best):>14} {seconds(best):>5.0f} {rival(subject, share, sizes).alike:>23}  {_allocations(best)}"
    )


def _alike(found: Sequence[Outcome]) -> str:
    likeness, cosine = (np.mean([getattr(one, name) for one in found]) for name in ("agreement", "cosine"))
    return f"{likeness:5.1f} / {cosine:.3f}"


def samples(sheet: Sheet, options: Options) -> None:
    """One strength of the ridge at a time, on plans whose scores come from the same samples."""
    strengths = " ".join(f"{one:>7.0e}" for one in STRENGTHS)
    sheet.add(
        f"one ridge at a time, half of the MACs, obs, uniform; {options.sizes.verdict:,} validation images",
        "top-1 in percent; '<' is worse than without repair, '!' is not finite; the last column tries several ridges",
        f"{'network':<10} {'samples':>7} {'no repair':>9} {strengths} default",
    )
    for subject in (*small(("resnet",), options.sizes), *_cifar(replace(options, depths=options.depths[:1]))):
        for count in options.counts:
            sheet.row(f"{subject.name:<10} {count:>7}", partial(_strengths, subject, count, options.sizes))


def _strengths(subject: Subject, count: int, sizes: Sizes) -> str:
    recipe = checked(replace(subject.recipe(replace(sizes, samples=count)), max_macs=0.5, allocation="uniform"))
    inputs = subject.inputs(recipe)
    channels = analyze(str(subject.path), inputs.sizes)
    given = inputs.given
    if given is None:
        raise ValueError(f"{subject.name} has no calibration samples")
    setting = Setting(channels.graph, cost(channels.graph, inputs.sizes))
    removals = choose_plan(channels, recipe, inputs, setting).plan.removals
    sliced = slice_channels(channels, removals)
    runs = calibration(given, channels.graph, channels.shapes, recipe.seed)

    def accuracy(graph: Graph) -> float:
        return verdict(subject, to_proto(graph), 0.0).accuracy

    plain = accuracy(sliced)
    cells = []
    for strengths in (*((one,) for one in STRENGTHS), None):
        method = solve if strengths is None else partial(solve, strengths=strengths)
        graph = repaired(sliced, channels, removals, runs, Settings(method, memory=int(recipe.max_memory)))[0]
        finite = all(np.isfinite(values).all() for _, values in weight_tensors(graph))
        found = accuracy(graph)
        cells.append(f"{found:>6.1f}{'!' if not finite else '<' if found < plain else ' '}")
    return f"{subject.name:<10} {given.count:>7} {plain:>9.1f} " + " ".join(cells)


def times(sheet: Sheet, options: Options) -> None:
    """Seconds and memory."""
    time_table(sheet, jobs(list(options.time_depths), options.images, options.large_images))


def _cifar(options: Options) -> list[Subject]:
    return [] if options.nets is None else list(cifar(options.nets, options.depths, options.sizes))


TABLES = {
    "budgets": (budgets, 512),
    "models": (models, 384),
    "fidelity": (fidelity, 256),
    "samples": (samples, 512),
    "time": (times, 512),
}
"""The tables, and how many calibration samples each takes by default."""


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(one) for one in text.split(",") if one)


def whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in text.split(",") if one)


def words(text: str) -> tuple[str, ...]:
    return tuple(one for one in text.split(",") if one)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--table", choices=list(TABLES), nargs="+", default=list(TABLES))
    made.add_argument("--nets", type=Path, help="folder with the trained CIFAR-10 networks and images")
    made.add_argument("--seeds", type=int, default=3, help="draws of the calibration samples")
    made.add_argument("--samples", type=int, help="calibration samples; 512, for models 384, for fidelity 256")
    made.add_argument("--verdict", type=int, default=2000, help="samples for the verdict")
    made.add_argument("--round-to", default="1")
    made.add_argument("--shares", type=numbers, default=(), help="shares of the MACs instead of those of each table")
    made.add_argument("--depths", type=whole_numbers, default=(20, 56), help="trained CIFAR-10 networks")
    made.add_argument("--models", type=words, default=("resnet", "mobilenet", "vit"))
    made.add_argument(
        "--real", type=words, default=("PP-OCRv4 rec", "PP-OCR cls", "magika"), help=f"of {', '.join(REAL)}"
    )
    made.add_argument("--counts", type=whole_numbers, default=(16, 64, 256, 1024), help="numbers of samples")
    made.add_argument("--images", type=int, default=512, help="images of 32x32 to time with")
    made.add_argument("--large-images", type=int, default=256, help="images of 224x224 to time with; 0 leaves that out")
    made.add_argument("--time-depths", type=whole_numbers, default=(20, 56, 110))
    made.add_argument(
        "--save", nargs="?", const="accuracy", metavar="NAME", help="keep tables in bench/results/NAME_<table>.txt"
    )
    made.add_argument("--job", help=argparse.SUPPRESS)
    return made


def main() -> int:
    given = parser().parse_args()
    if given.job:
        print(json.dumps(vars(needed(Job(**json.loads(given.job))))))
        return 0
    round_to = given.round_to if given.round_to == "auto" else int(given.round_to)
    failed = False
    for name in given.table:
        table, count = TABLES[name]
        held = min(given.verdict, 256) if name == "fidelity" else given.verdict
        sizes = Sizes(given.seeds, given.samples or count, held, round_to)
        options = Options(
            sizes, given.nets, given.depths, given.shares, given.models, given.real, given.counts, given.images,
            given.large_images, given.time_depths,
        )  # fmt: skip
        if name == "budgets" and given.nets is None:
            print("budgets: left out, give --nets FOLDER with the trained networks", flush=True)
            continue
        sheet = Sheet(name)
        table(sheet, options)
        sheet.end(given.save)
        failed |= sheet.failed
    return 1 if failed else 0


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
