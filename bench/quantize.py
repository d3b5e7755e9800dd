"""Int8 on the CPU against ONNX Runtime's own quantizer: speed, likeness, accuracy, size, fusion.

    python bench/quantize.py [--table int8,combined,calibration,tensorrt] [--nets FOLDER] [--exports FOLDER]
                             [--only WORD,...] [--save [NAME]]

Trained CIFAR-10 networks of a folder (as for bench/accuracy.py), the networks of models/ and of installed packages on
real samples; exports of full size with random weights (as of bench/zoo.py) on smooth random images and random words.
Both quantizers calibrate on the same samples. All files of a network are timed in turns, one sample at a time; the
rival's best time and its best likeness may be those of different settings.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parent))

from accuracy import words
from accuracy_real import real
from accuracy_sheet import Sheet, Sizes, Subject, cifar, small
from quantize_calibration import memory_rows, time_rows
from quantize_combined import combined
from quantize_entry import Entry, accuracies, likeness, timed
from quantize_rival import Feeds, rivals
from quantize_tensorrt import lines as tensorrt_lines

from onnxprune.commands.compare import compare
from onnxprune.commands.slim import run
from onnxprune.model.io import model_bytes
from onnxprune.report.schema import NOISE
from onnxprune.runtime.session import input_specs
from onnxprune.slim import Recipe

EXPORTS = ("resnet50", "mobilenet_v2", "yolo", "vit_b_16", "bert_base")
OCR = ("PP-OCRv4 rec", "PP-OCR cls", "PP-OCRv4 det")
CONTENDERS = 256
"""Most samples that calibrate."""


def row(subject: Subject, options: argparse.Namespace) -> Iterator[str]:
    """Yields the lines of one network."""
    recipe = Recipe(
        int8=True, data=subject.data, eval=subject.verdict, preprocess=subject.preprocess, samples=options.samples,
        no_latency=True, threads=1, max_drop=options.max_drop,
    )  # fmt: skip
    made = run(str(subject.path), recipe)
    original = subject.proto()
    inputs = subject.inputs(recipe)
    assert inputs.given is not None
    feeds: list[Feeds] = [dict(feed) for feed in inputs.given.split()[0].batches(1)]
    entries = [Entry("ours", made.model, made.report)]
    for name, model in rivals(subject.path, feeds[: options.rival_samples]):
        report = compare(original, model, subject.verdict, preprocess=subject.preprocess, no_latency=True, threads=1)
        entries.append(Entry(name, model, report))
    speeds = timed([original, *(entry.model for entry in entries)], dict(inputs.timing), options.seconds)
    quickest = max(range(1, len(entries)), key=lambda place: speeds[place])
    closest = max(range(1, len(entries)), key=lambda place: likeness(entries[place]))
    ours, fast, close = entries[0], entries[quickest], entries[closest]
    found = made.report.quantization
    lead = speeds[0] / speeds[quickest]
    verdicts = "SLOWER" if lead < 1 - NOISE else "faster" if lead > 1 + NOISE else "equal"
    gain = likeness(ours) - likeness(close)
    yield (
        f"{subject.name:<14} {speeds[0]:>5.2f} {speeds[quickest]:>5.2f} {verdicts:<6} {likeness(ours):>6.1f} "
        f"{likeness(close):>6.1f} {gain:>+5.1f} {accuracies(ours):>14} {accuracies(close):>14} "
        f"{model_bytes(ours.model) / model_bytes(original):>5.2f} {found.fusion.fused:>3}/{found.eligible:<3} "
        f"{made.report.seconds['quantize']:>6.0f}  {fast.name}; {close.name}"
    )


def exports(folder: Path, names: Sequence[str], sizes: Sizes) -> Iterator[Subject]:
    """Yields exports of full size with random weights, with inputs that have some structure."""
    for name in names:
        for path in sorted(folder.glob(f"*{name}*.onnx"))[:1]:
            specs = input_specs(onnx.load(path, load_external_data=False))
            calibration, held = ({spec.name: made_up(spec, count, seed) for spec in specs} for count, seed in (
                (sizes.samples, 1), (sizes.verdict, 2)
            ))  # fmt: skip
            yield Subject(name, path, calibration, held)


def made_up(spec: object, count: int, seed: int) -> np.ndarray:
    """Returns smooth images for floats of four axes, words of a small vocabulary for integers."""
    random = np.random.default_rng(seed)
    shape = (count, *(size if isinstance(size, int) else 128 for size in spec.shape[1:]))
    if np.issubdtype(spec.dtype, np.integer):
        return np.minimum(random.geometric(0.01, shape), 999).astype(spec.dtype)
    values = random.standard_normal(shape)
    if len(shape) == 4:
        coarse = random.standard_normal((*shape[:2], 8, 8)).repeat(-(-shape[2] // 8), 2).repeat(-(-shape[3] // 8), 3)
        values = coarse[:, :, : shape[2], : shape[3]] + 0.2 * values
    return values.astype(spec.dtype)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--table", type=words, default=("int8",), help=f"of {', '.join(TABLES)}")
    result.add_argument("--layers", type=int, default=9, help="blocks to drop where all means are used")
    result.add_argument("--channels", type=float, default=0.2, help="channels to remove where all means are used")
    result.add_argument("--nets", type=Path, help="folder with the trained CIFAR-10 networks and images")
    result.add_argument("--exports", type=Path, help="folder with exports of full size")
    result.add_argument("--only", type=words, default=(), help="networks with one of these words in their names")
    result.add_argument("--samples", type=int, default=CONTENDERS, help="calibration samples")
    result.add_argument("--rival-samples", type=int, default=CONTENDERS, help="of these, for the rival")
    result.add_argument("--export-samples", type=int, default=16, help="calibration samples for exports of full size")
    result.add_argument("--verdict", type=int, default=2000, help="samples for the verdict")
    result.add_argument("--max-drop", type=float, help="what each network may lose: more of it stays float")
    result.add_argument("--seconds", type=float, default=3.0, help="to time each file for")
    result.add_argument("--save", nargs="?", const="quantize", metavar="NAME", help="keep in bench/results/")
    return result


def speed(options: argparse.Namespace) -> Sheet:
    """Returns the table of one line for each network."""
    sizes = Sizes(1, options.samples, options.verdict, "auto")
    few = Sizes(1, options.export_samples, 8, "auto")
    subjects = [
        *(cifar(options.nets, (20, 56), sizes) if options.nets else ()),
        *small(("resnet", "mobilenet", "vit"), sizes),
        *real(OCR[:2], Sizes(1, 64, 128, "auto")),
        *real(OCR[2:], Sizes(1, 16, 16, "auto")),
        *(exports(options.exports, EXPORTS, few) if options.exports else ()),
    ]
    sheet = Sheet("int8")
    sheet.add(
        "x: times as fast as float32, one thread, files of a network in turns; dB: signal to noise of the outputs",
        "accuracy: labels or agreement, of ours and of the rival's most alike; fused: of the operators with weights",
        f"{'network':<14} {'x':>5} {'rival':>5} {'':<6} {'dB':>6} {'rival':>6} {'gain':>5} {'accuracy':>14} "
        f"{'rival':>14} {'size':>5} {'fused':>7} {'s':>6}  rival's quickest; most alike",
    )
    for subject in subjects:
        if not options.only or any(word in subject.name for word in options.only):
            sheet.row(subject.name, lambda subject=subject: "\n".join(row(subject, options)))
    return sheet


def all_means(options: argparse.Namespace) -> Sheet:
    """Returns the table of int8 alone and of all means in one call, for the deepest of the trained networks."""
    sheet = Sheet("combined")
    sheet.add(
        "times as fast as float32, one thread, at batch 1 and 32, files of a network in turns",
        f"{'network':<12} {'x, 1':>8} {'x, 32':>8} {'accuracy':>14} {'size':>6}  made by",
    )
    for subject in cifar(options.nets, (56,), Sizes(1, options.samples, 10**9, "auto")):
        sheet.row(subject.name, lambda subject=subject: "\n".join(combined(subject, options)))
    return sheet


def calibration(options: argparse.Namespace) -> Sheet:
    """Returns memory and time of calibration, on a network of full size."""
    sheet = Sheet("calibration")
    for path in sorted(options.exports.glob("*resnet50*.onnx"))[:1]:
        sheet.add(*memory_rows(path), "")
        sheet.add(*time_rows(path, fitted=False))
    return sheet


def for_tensorrt(options: argparse.Namespace) -> Sheet:
    """Returns what the rules of TensorRT say of its files, ours and others, and what they compute."""
    sheet = Sheet("tensorrt")
    sizes = Sizes(1, options.samples, options.verdict, "auto")
    for line in tensorrt_lines(options.nets, options.exports, sizes, options.only):
        sheet.add(line)
    return sheet


TABLES = {"int8": speed, "combined": all_means, "calibration": calibration, "tensorrt": for_tensorrt}


def main() -> int:
    options = parser().parse_args()
    for name in options.table:
        sheet = TABLES[name](options)
        sheet.end(options.save)
        if sheet.failed:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
