"""What the tables of ``accuracy.py`` share: subjects, outcomes of a recipe, and sheets that print as they grow."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from collection import ROOT, keep

from onnxprune.commands.compare import compare
from onnxprune.commands.inputs import Inputs, choose_inputs
from onnxprune.commands.recipe import checked
from onnxprune.commands.slim import run
from onnxprune.model.cost import cost
from onnxprune.model.io import load, to_proto
from onnxprune.plan.plan import Plan
from onnxprune.report.schema import Report
from onnxprune.slim import Recipe

CIFAR_PREPROCESS = "scale=1/255;mean=0.485,0.456,0.406;std=0.229,0.224,0.225;layout=nchw"


@dataclass(frozen=True)
class Sizes:
    """How much is run: everything that quick runs make smaller."""

    seeds: int
    samples: int
    verdict: int
    round_to: int | str


@dataclass(frozen=True)
class Subject:
    """A trained network, unlabelled samples to calibrate on and other samples for the verdict."""

    name: str
    path: Path
    data: Any
    verdict: Any
    preprocess: str | None = None

    def recipe(self, sizes: Sizes, seed: int = 0) -> Recipe:
        """Returns a recipe that says nothing yet of what goes."""
        return Recipe(
            data=self.data, eval=self.verdict, preprocess=self.preprocess, samples=sizes.samples, seed=seed,
            round_to=sizes.round_to, no_latency=True,
        )  # fmt: skip

    def inputs(self, recipe: Recipe) -> Inputs:
        """Returns the samples of a recipe, read as ``slim`` reads them."""
        return choose_inputs(self.proto(), checked(replace(recipe, max_macs=1.0)))

    def proto(self) -> onnx.ModelProto:
        """Returns the network as ``slim`` reads it."""
        return to_proto(load(str(self.path)))

    def macs(self, model: onnx.ModelProto, inputs: Inputs) -> float:
        """Returns what is left of the multiply-accumulates, as ``slim`` counts them."""
        return cost(load(model), inputs.sizes).macs / cost(load(str(self.path)), inputs.sizes).macs


@dataclass(frozen=True)
class Outcome:
    """The verdict on one result; ``accuracy`` in percent, of the labels where there are some, else the agreement."""

    accuracy: float
    agreement: float
    cosine: float
    macs: float
    seconds: float = 0.0
    allocation: str = ""
    plan: Plan | None = None

    @property
    def alike(self) -> str:
        """Agreement and cosine."""
        return f"{self.agreement:5.1f} / {self.cosine:.3f}"


def outcome(subject: Subject, recipe: Recipe) -> Outcome:
    """Returns the verdict on what ``slim`` makes; the seconds are those of score, plan and repair."""
    result = run(str(subject.path), recipe)
    report = result.report
    chosen = next((row.name for row in report.allocations if row.chosen), recipe.allocation or "uniform")
    seconds = report.seconds["plan"] + report.seconds.get("recover", 0.0)
    found = judged(report, report.ratios.macs or 1.0)
    return replace(found, seconds=seconds, allocation=chosen, plan=result.plan)


def verdict(subject: Subject, model: onnx.ModelProto, macs: float) -> Outcome:
    """Returns the verdict on a model that was made in another way."""
    return judged(
        compare(subject.proto(), model, subject.verdict, preprocess=subject.preprocess, no_latency=True), macs
    )


def judged(report: Report, macs: float) -> Outcome:
    """Returns the verdict of a report; of several metrics it holds one."""
    likeness = 100 * (report.fidelity.agreement or 0.0)
    values = [] if report.after is None else [value for value in report.after.metrics.values() if value is not None]
    return Outcome(100 * values[0] if values else likeness, likeness, report.fidelity.cosine or 0.0, macs)


def float_accuracy(subject: Subject) -> float:
    """Returns the accuracy of the original, in percent."""
    report = compare(
        subject.proto(), subject.proto(), subject.verdict, preprocess=subject.preprocess, no_latency=True
    )  # fmt: skip
    return 100 * next(value for value in report.before.metrics.values() if value is not None)


def over_seeds(sizes: Sizes, make: Callable[[int], Outcome]) -> list[Outcome]:
    """Returns one outcome for every draw of the calibration samples."""
    return [make(seed) for seed in range(sizes.seeds)]


def mean(outcomes: Sequence[Outcome]) -> float:
    """Returns the mean accuracy."""
    return float(np.mean([one.accuracy for one in outcomes]))


def spread(outcomes: Sequence[Outcome]) -> str:
    """Returns the mean accuracy and half of the range over the draws."""
    values = [one.accuracy for one in outcomes]
    return f"{mean(outcomes):.1f} ±{(max(values) - min(values)) / 2:.1f}"


def seconds(outcomes: Sequence[Outcome]) -> float:
    """Returns the mean seconds."""
    return float(np.mean([one.seconds for one in outcomes]))


@dataclass
class Sheet:
    """Lines of a table, printed as they come and kept under a name."""

    name: str
    lines: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)
    failed: bool = False

    def add(self, *lines: str) -> None:
        for line in lines:
            self.lines.append(line.rstrip())
            print(self.lines[-1], flush=True)

    def row(self, label: str, make: Callable[[], str]) -> None:
        """Adds a row, or says why there is none: one must not end the others."""
        try:
            self.add(make())
        except Exception as error:
            self.failed = True
            self.add(f"{label} ERROR {type(error).__name__}: {error}"[:200].splitlines()[0])

    def end(self, save: str | None) -> None:
        """Adds the time that the table took, and keeps it where that is asked for."""
        self.add(f"this table took {(time.perf_counter() - self.start) / 60:.1f} min", "")
        if save:
            keep(f"{save}_{self.name}", "\n".join(self.lines))


def cifar(folder: Path, depths: Sequence[int], sizes: Sizes) -> Iterator[Subject]:
    """Yields trained CIFAR-10 networks of a folder, those that are there."""
    with np.load(folder / "cifar10_validation.npz") as file:
        images, labels = file["images"][: sizes.verdict], file["labels"][: sizes.verdict]
    for depth in depths:
        path = folder / f"cifar_resnet{depth}.onnx"
        if path.exists():
            held = {"x": images, "labels": labels}
            yield Subject(f"ResNet-{depth}", path, folder / "cifar10_calibration.npz", held, CIFAR_PREPROCESS)


def small(names: Sequence[str], sizes: Sizes) -> Iterator[Subject]:
    """Yields the trained networks of this repository."""
    folder = ROOT / "models"
    with np.load(folder / "validation.npz") as file:
        held = {key: file[key][: sizes.verdict] for key in file}
    for name in names:
        yield Subject(name, folder / f"{name}.onnx", folder / "calibration.npz", held)
