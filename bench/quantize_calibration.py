"""Memory and seconds of calibration, beside ONNX Runtime's own; every figure from a process of its own.

Images are drawn when they are read, so that what is measured is calibration and not the images. ONNX Runtime calibrates
as its quantizer does, without graph optimization, with the number of threads that ours has.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parent))

from speed import peak

from onnxprune.data.samples import load_samples
from onnxprune.model.io import load, to_proto
from onnxprune.model.sizes import infer_shapes
from onnxprune.quantize.calibrate import choose_ranges, read
from onnxprune.quantize.merge import merged
from onnxprune.quantize.opset import raised
from onnxprune.quantize.quantize import Settings, placed, quantize_graph
from onnxprune.quantize.targets import target_of
from onnxprune.recover.recover import calibration
from onnxprune.recover.sequential import Calibration
from onnxprune.runtime.session import SessionOptions, input_specs, open_session

COUNTS = (8, 32, 128, 512)
"""Images whose memory is compared."""
WITHIN = 0.05
"""How much more memory more images may take."""
GOAL = 1.3
"""Most seconds, as a multiple of what ONNX Runtime's own minimum and maximum take."""

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """What a process does: one of ``WAYS``, to a model, with images."""

    way: str
    model: str
    images: int
    ranges: str = "minmax"
    threads: int = 1


@dataclass(frozen=True)
class Needed:
    """What it took: memory at most; seconds that passed, and those of the processor, reading the model included."""

    megabytes: float
    seconds: float
    processor: float


class Images(Sequence[Feeds]):
    """Feeds of one image each, drawn when they are read."""

    def __init__(self, model: str, count: int) -> None:
        (spec,) = input_specs(onnx.load(model, load_external_data=False))
        self._name, self._count = spec.name, count
        self._shape = (1, *(size if isinstance(size, int) else 224 for size in spec.shape[1:]))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Feeds:
        if not 0 <= number < self._count:
            raise IndexError(number)
        random = np.random.default_rng(number)
        coarse = random.standard_normal((*self._shape[:2], 8, 8), np.float32)
        repeats = [-(-size // 8) for size in self._shape[2:]]
        wide = coarse.repeat(repeats[0], 2).repeat(repeats[1], 3)[:, :, : self._shape[2], : self._shape[3]]
        return {self._name: wide + np.float32(0.2) * random.standard_normal(self._shape, np.float32)}


def only_run(job: Job, images: Sequence[Feeds]) -> None:
    """Runs the model as it is."""
    session = open_session(job.model, SessionOptions(threads=job.threads))
    for feed in images:
        session.run(feed)


def our_ranges(job: Job, images: Sequence[Feeds]) -> None:
    """Chooses the ranges of all tensors."""
    target = target_of("ort-cpu")
    graph, placement = placed(merged(raised(load(job.model), target.opset)), target, None)
    readings = read(graph, placement, images, 2 << 30, SessionOptions(threads=job.threads))
    choose_ranges(readings, placement, target.activations, job.ranges)


def our_file(job: Job, images: Sequence[Feeds], *, rounding: bool = False) -> None:
    """Quantizes, in runs as ``quantize`` makes them; the last fifth of the images judges the rounding."""
    graph = load(job.model)
    given = {name: np.concatenate([feed[name] for feed in images]) for name in images[0]}
    runs = calibration(load_samples(given, input_specs(to_proto(graph))), graph, infer_shapes(graph), 0)
    settings = Settings(
        target_of("ort-cpu"), job.ranges, round=rounding, options=SessionOptions(threads=job.threads)
    )  # fmt: skip
    quantize_graph(graph, runs if rounding else Calibration([*runs.fitted, *runs.held_out], ()), settings)


def our_rounded_file(job: Job, images: Sequence[Feeds]) -> None:
    """Quantizes, and fits the weights."""
    our_file(job, images, rounding=True)


def their_ranges(job: Job, images: Sequence[Feeds]) -> None:
    """Has ONNX Runtime choose the ranges of all tensors."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator
    from quantize_rival import Reader

    _with_threads(job.threads)
    method = {"minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy}[job.ranges]
    with tempfile.TemporaryDirectory() as folder:
        made = create_calibrator(
            job.model, augmented_model_path=str(Path(folder) / "augmented.onnx"), calibrate_method=method
        )
        made.collect_data(Reader(images))
        made.compute_data()


def their_file(job: Job, images: Sequence[Feeds]) -> None:
    """Has ONNX Runtime quantize, by minimum and maximum."""
    from onnxruntime.quantization import QuantType, quantize_static
    from quantize_rival import Reader

    _with_threads(job.threads)
    with tempfile.TemporaryDirectory() as folder:
        quantize_static(
            job.model, str(Path(folder) / "out.onnx"), Reader(images), per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip


def _with_threads(threads: int) -> None:
    """Lets ONNX Runtime calibrate with a number of threads, for which it has no option."""
    import onnxruntime
    from onnxruntime.quantization.calibrate import CalibraterBase

    def create(self: CalibraterBase) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.infer_session = onnxruntime.InferenceSession(
            self.augmented_model_path, options, providers=["CPUExecutionProvider"]
        )

    CalibraterBase.create_inference_session = create


WAYS: Mapping[str, Callable[[Job, Sequence[Feeds]], None]] = {
    "run": only_run,
    "our ranges": our_ranges,
    "our file": our_file,
    "our rounded file": our_rounded_file,
    "their ranges": their_ranges,
    "their file": their_file,
}


def done(job: Job) -> Needed:
    """Does a job here, which should be a fresh process."""
    start, used = time.perf_counter(), time.process_time()
    WAYS[job.way](job, Images(job.model, job.images))
    return Needed(peak() / 1e6, time.perf_counter() - start, time.process_time() - used)


def apart(job: Job) -> Needed:
    """Does a job in a process of its own."""
    command = [sys.executable, __file__, json.dumps(asdict(job))]
    threads = {name: str(job.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}  # those of numpy
    printed = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **threads})
    if printed.returncode:
        raise RuntimeError(f"{job.way}: {printed.stderr.strip().splitlines()[-1][:150]}")
    return Needed(**json.loads(printed.stdout.splitlines()[-1]))


def prepared(model: Path, folder: str) -> str:
    """Returns where a model lies as ONNX Runtime's quantizer wants it."""
    from onnxruntime.quantization import quant_pre_process

    ready = str(Path(folder) / "ready.onnx")
    quant_pre_process(str(model), ready, skip_symbolic_shape=True)
    return ready


def memory_rows(model: Path, counts: Sequence[int] = COUNTS, theirs: int = 32) -> Iterator[str]:
    """Yields the peak of entropy calibration as the images grow more.

    Args:
        model: The network.
        counts: Numbers of images.
        theirs: Most images for ONNX Runtime, whose entropy keeps what every image gives.
    """
    yield "peak memory of calibration by entropy, MB, the whole process; images are drawn when they are read"
    with tempfile.TemporaryDirectory() as folder:
        ready = prepared(model, folder)
        base = apart(Job("run", ready, 1)).megabytes
        yield f"the process that only runs the model: {base:.0f}"
        yield f"{'images':>6} {'ours':>6} {'above':>6} {'ONNX Runtime, entropy':>22} {'minimum, maximum':>17}"
        first = 0.0
        for count in counts:
            ours = apart(Job("our ranges", ready, count, "entropy")).megabytes
            first = first or ours
            others = [
                f"{apart(Job('their ranges', ready, count, name)).megabytes:.0f}" if count <= theirs else "-"
                for name in ("entropy", "minmax")
            ]
            missed = "  MISSED" if ours > (1 + WITHIN) * first else ""
            yield f"{count:>6} {ours:>6.0f} {ours - base:>6.0f} {others[0]:>22} {others[1]:>17}{missed}"


def time_rows(
    model: Path, images: int = 128, threads: int = 1, rounds: int = 3, *, fitted: bool = True
) -> Iterator[str]:
    """Yields the seconds of calibration and of a whole file; all in turns, the fastest of some rounds.

    Args:
        model: The network.
        images: How many calibrate.
        threads: Threads of both sides.
        rounds: How often each is done.
        fitted: Whether the fit of weights is timed too, which takes longest.
    """
    ways = {
        "ONNX Runtime, minimum and maximum": ("their ranges", "minmax"),
        "ours, minmax": ("our ranges", "minmax"),
        "ours, entropy": ("our ranges", "entropy"),
        "ours, auto": ("our ranges", "auto"),
        "ONNX Runtime, a whole file": ("their file", "minmax"),
        "ours, a whole file, nearest weights": ("our file", "auto"),
        **({"ours, a whole file, fitted weights": ("our rounded file", "auto")} if fitted else {}),
    }
    found: dict[str, list[Needed]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        ready = prepared(model, folder)
        for _ in range(rounds):
            for name, (way, ranges) in ways.items():
                found[name].append(apart(Job(way, ready, images, ranges, threads)))
    yield f"seconds for {images} images, threads: {threads}, the fastest of {rounds} rounds in turns;"
    yield "x: by those of the processor, which do not grow where others use the machine too"
    yield f"{'':<36} {'passed':>7} {'processor':>9} {'x':>6}"
    first = 0.0
    for name, runs in found.items():
        passed, used = min(one.seconds for one in runs), min(one.processor for one in runs)
        first = used if name.startswith("ONNX Runtime") else first
        missed = "  MISSED" if ways[name][0] == "our ranges" and used / first > GOAL else ""
        yield f"{name:<36} {passed:>7.1f} {used:>9.1f} {used / first:>5.2f}x{missed}"


if __name__ == "__main__":
    print(json.dumps(asdict(done(Job(**json.loads(sys.argv[1]))))))
