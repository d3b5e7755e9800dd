"""Zeros in the weights: what is left of the accuracy, which criterion is best, and how small files get.

    python bench/masks.py [--table NAME ...] [--nets FOLDER] [--save [NAME]]

accuracy: trained CIFAR-10 networks of a folder (as for bench/accuracy.py) at 50, 70 and 90 % and at 2:4, with the
seconds that score and repair take, beside magnitude in onnxsim.
criteria: which weights become zero, each criterion with the repair.
sizes: bytes of the file at 50 to 90 %: dense, in the form that ``--store-sparse auto`` takes, and both through gzip;
the file is read back bit for bit, and ONNX Runtime computes the same from it.

The verdict is formed on samples of their own, never on those that calibrate. onnxsim is measured where it is installed.
"""

import argparse
import importlib.util
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from accuracy import numbers, whole_numbers, words
from accuracy_rival import version
from accuracy_sheet import Sheet, Sizes, Subject, float_accuracy, mean, seconds, spread, verdict
from grains_made import SMALL_SAMPLES, draws, made, outcomes, subjects

from onnxprune.model.cost import weight_tensors
from onnxprune.model.io import load, save
from onnxprune.model.sparse import compressed_size
from onnxprune.recover.masking import CRITERIA
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.slim import Recipe

GOALS = {
    ("ResNet-20", "50 %"): 80.2, ("ResNet-20", "70 %"): 78.0, ("ResNet-20", "90 %"): 58.0, ("ResNet-20", "2:4"): 79.0,
    ("ResNet-56", "50 %"): 82.4, ("ResNet-56", "70 %"): 81.2, ("ResNet-56", "90 %"): 68.0, ("ResNet-56", "2:4"): 82.2,
}  # fmt: skip
"""What the default is to reach, in percent."""

SECONDS = {"ResNet-56": 90.0}
"""What score and repair may take, on two cores."""

SMALLER = 0.8
"""Fraction of zeros from which on the sparse form has to be smaller."""


@dataclass(frozen=True)
class Options:
    """What is run."""

    sizes: Sizes
    nets: Path | None
    depths: tuple[int, ...]
    models: tuple[str, ...]
    amounts: tuple[str, ...]
    fractions: tuple[float, ...]


def amount(text: str) -> tuple[str, dict[str, float | str]]:
    """Returns the name of an amount of zeros, ``0.5`` or ``2:4``, and the fields of a recipe that ask for it."""
    return (text, {"nm": text}) if ":" in text else (f"{float(text):.0%}".replace("%", " %"), {"sparsity": float(text)})


def accuracy(sheet: Sheet, options: Options) -> None:
    """The default against its goals."""
    sizes = options.sizes
    sheet.add(
        f"trained CIFAR-10 networks, {sizes.samples} unlabelled images, {sizes.verdict:,} validation images",
        f"top-1 in percent, mean ± half of the range over {sizes.seeds} draws of the calibration images; zeros: of all "
        "weights that may become zero",
        f"no repair: magnitude, without samples; onnxsim: magnitude ({version()}); s: seconds of score and repair",
        f"{'network':<10} {'asked':>5} {'zeros':>6} {'goal':>5} {'no repair':>9} {'onnxsim':>9} {'default':>12} "
        f"{'s':>5}",
    )
    for subject, _ in subjects(options.nets, options.depths, (), sizes):
        sheet.add(f"{subject.name:<10} float {float_accuracy(subject):.1f}")
        for text in options.amounts:
            sheet.row(f"{subject.name:<10} {text:>5}", partial(_masked, subject, text, sizes))


def _masked(subject: Subject, text: str, sizes: Sizes) -> str:
    name, asked = amount(text)
    best = draws(sizes, lambda seed: made(subject, replace(subject.recipe(sizes, seed), **asked)))
    plain = made(subject, replace(subject.recipe(sizes), data=None, mask_score="magnitude", recover="none", **asked))
    found = outcomes(best)
    goal, limit = GOALS.get((subject.name, name)), SECONDS.get(subject.name, np.inf)
    missed = "  MISSED" if goal and mean(found) < goal else ""
    slow = f"  MISSED: more than {limit:.0f} s" if seconds(found) > limit else ""
    return (
        f"{subject.name:<10} {name:>5} {best[0].report.sparsity.fraction or 0:>6.1%} {goal or '-':>5} "
        f"{plain.accuracy:>9.1f} {rival(subject, text):>9} {spread(found):>12} {seconds(found):>5.0f}{missed}{slow}"
    )


def rival(subject: Subject, text: str) -> str:
    """Returns the accuracy that magnitude leaves in onnxsim, or why there is none."""
    if importlib.util.find_spec("onnxsim") is None:
        return "-"
    from onnxsim.pruning import apply_magnitude_pruning

    _, asked = amount(text)
    pattern = [int(number) for number in text.split(":")] if "nm" in asked else [None, None]
    try:
        model = apply_magnitude_pruning(subject.proto(), asked.get("sparsity", 0.5), *pattern)
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
        return f"fails ({type(error).__name__})"
    return f"{verdict(subject, model, 1.0).accuracy:.1f}"


def criteria(sheet: Sheet, options: Options) -> None:
    """What decides which weights become zero."""
    sizes = options.sizes
    sheet.add(
        f"top-1 in percent after repair, by criterion, mean ± half of the range over {sizes.seeds} draws of "
        f"{sizes.samples} unlabelled images ({SMALL_SAMPLES} at most for networks of models/); s: seconds of score "
        "and repair",
        f"{'network':<10} {'asked':>5} " + " ".join(f"{name + ', s':>17}" for name in CRITERIA),
    )
    for subject, own in subjects(options.nets, options.depths, options.models, sizes):
        for text in options.amounts:
            sheet.row(f"{subject.name:<10} {text:>5}", partial(_judged_by, subject, text, own))


def _judged_by(subject: Subject, text: str, sizes: Sizes) -> str:
    name, asked = amount(text)
    cells = []
    for criterion in CRITERIA:
        first = replace(subject.recipe(sizes), mask_score=criterion, **asked)
        found = outcomes(draws(sizes, lambda seed, first=first: made(subject, replace(first, seed=seed))))
        cells.append(f"{spread(found):>12} {seconds(found):>4.0f}")
    return f"{subject.name:<10} {name:>5} " + " ".join(cells)


def sizes(sheet: Sheet, options: Options) -> None:
    """What the zeros are worth on disk."""
    sheet.add(
        "bytes, unstructured zeros by magnitude; dense: --store-sparse never; auto: the smaller form of each weight",
        "same: the file in sparse form is read back bit for bit, and ONNX Runtime computes the same from both",
        f"{'network':<10} {'zeros':>6} {'original':>11} {'dense':>11} {'auto':>11} {'ratio':>6} {'dense, gzip':>11} "
        f"{'auto, gzip':>11} {'ratio':>6} same",
    )
    for subject, _ in subjects(options.nets, options.depths, options.models, options.sizes):
        for fraction in options.fractions:
            sheet.row(f"{subject.name:<10} {fraction:>6.0%}", partial(_stored, subject, fraction))


def _stored(subject: Subject, fraction: float) -> str:
    result = made(subject, Recipe(sparsity=fraction, no_latency=True))
    with tempfile.TemporaryDirectory() as folder:
        dense, auto = (Path(folder) / f"{name}.onnx" for name in ("dense", "auto"))
        save(result.model, dense, store_sparse="never")
        save(result.model, auto, store_sparse="auto")
        before, bytes_dense, bytes_auto = (path.stat().st_size for path in (subject.path, dense, auto))
        packed_dense, packed_auto = compressed_size(dense), compressed_size(auto)
        same = same_weights(dense, auto) and same_outputs(dense, auto, subject)
    missed = bytes_auto > bytes_dense or (fraction >= SMALLER and bytes_auto >= bytes_dense) or not same
    return (
        f"{subject.name:<10} {result.report.sparsity.fraction or 0:>6.1%} {before:>11,} {bytes_dense:>11,} "
        f"{bytes_auto:>11,} {bytes_auto / bytes_dense:>6.3f} {packed_dense:>11,} {packed_auto:>11,} "
        f"{packed_auto / packed_dense:>6.3f} {'yes' if same else 'no':>4}{'  MISSED' if missed else ''}"
    )


def same_weights(dense: Path, auto: Path) -> bool:
    """Whether both files hold the same weights, bit for bit."""
    found = [dict(weight_tensors(load(str(path)))) for path in (dense, auto)]
    same = found[0].keys() == found[1].keys()
    return same and all(found[0][name].tobytes() == found[1][name].tobytes() for name in found[0])


def same_outputs(dense: Path, auto: Path, subject: Subject) -> bool:
    """Whether ONNX Runtime computes the same from both files."""
    feeds = subject.inputs(Recipe()).proof
    options = SessionOptions(optimize=False)
    first, second = open_session(str(dense), options), open_session(str(auto), options)
    pairs = ((first.run(feed), second.run(feed)) for feed in feeds)
    return all(np.array_equal(left[name], right[name]) for left, right in pairs for name in left)


TABLES = {"accuracy": accuracy, "criteria": criteria, "sizes": sizes}


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--table", choices=list(TABLES), nargs="+", default=list(TABLES))
    result.add_argument("--nets", type=Path, help="folder with the trained CIFAR-10 networks and images")
    result.add_argument("--seeds", type=int, default=3, help="draws of the calibration samples")
    result.add_argument("--samples", type=int, default=512, help="calibration samples")
    result.add_argument("--verdict", type=int, default=2000, help="samples for the verdict")
    result.add_argument("--depths", type=whole_numbers, default=(20, 56), help="trained CIFAR-10 networks")
    result.add_argument("--models", type=words, default=("resnet", "mobilenet", "vit"), help="of models/")
    result.add_argument("--amounts", type=words, default=("0.5", "0.7", "0.9", "2:4"), help="fractions, and N:M")
    result.add_argument("--fractions", type=numbers, default=(0.5, 0.7, 0.8, 0.9), help="for the table of sizes")
    result.add_argument(
        "--save", nargs="?", const="masks", metavar="NAME", help="keep tables in bench/results/NAME_<table>.txt"
    )
    return result


def main() -> int:
    given = parser().parse_args()
    options = Options(
        Sizes(given.seeds, given.samples, given.verdict, "auto"), given.nets, given.depths, given.models,
        given.amounts, given.fractions,
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
