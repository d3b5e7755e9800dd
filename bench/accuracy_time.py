"""Seconds and peak memory of scoring and repair, each network in a process of its own."""

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from accuracy_nets import cifar_resnet, resnet50
from accuracy_sheet import Sheet
from speed import peak

from onnxprune.commands.slim import run
from onnxprune.slim import Recipe

HEAD = (
    f"{'network':<16} {'images':>6} {'layers':>6} {'score s':>8} {'repair s':>8} {'rest s':>7} {'all s':>7} "
    f"{'peak GB':>7} {'s per layer':>14}"
)


@dataclass(frozen=True)
class Job:
    """A network, the images that calibrate it, and what is to be met."""

    network: str
    images: int
    size: int
    seconds: float = float("inf")
    gigabytes: float = float("inf")


@dataclass(frozen=True)
class Cost:
    """What one process needed; ``layers`` are convolutions and the classifier."""

    layers: int
    score: float
    recover: float
    total: float
    gigabytes: float


def jobs(depths: list[int], images: int, large_images: int) -> list[Job]:
    """Returns the networks of the table; without ``large_images`` the large one is left out."""
    found = [Job(f"ResNet-{one} 32x32", images, 32, *((60, 2) if one == 56 else ())) for one in depths]
    return found + ([Job("ResNet-50 224x224", large_images, 224, 600, 4)] if large_images else [])


def network(job: Job) -> onnx.ModelProto:
    """Returns the network of a job, with random weights."""
    return resnet50() if job.size == 224 else cifar_resnet(int(job.network.split()[0].split("-")[1]))


def needed(job: Job) -> Cost:
    """Returns what half of the multiply-accumulates cost by obs and least squares, uniform; in a fresh process."""
    images = np.random.default_rng(0).standard_normal((job.images, 3, job.size, job.size), np.float32)
    recipe = Recipe(
        max_macs=0.5, data=images, allocation="uniform", samples=job.images, round_to=1, no_latency=True
    )  # fmt: skip
    model = network(job)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "network.onnx")
        onnx.save(model, path)
        report = run(path, recipe).report
    seconds = report.seconds
    layers = sum(node.op_type in ("Conv", "Gemm") for node in model.graph.node)
    return Cost(layers, seconds["plan"], seconds["recover"], seconds["total"], peak() / 1e9)


def time_table(sheet: Sheet, wanted: list[Job]) -> None:
    """Adds a row for each network."""
    sheet.add(
        "obs and least squares, uniform allocation, half of the MACs, random weights and images, --max-memory 2GB",
        "(peak of the whole process; goals: ResNet-56 in 60 s and 2 GB, ResNet-50 in 600 s and 4 GB)",
        HEAD,
    )
    first = 0.0
    for job in wanted:
        text = json.dumps(asdict(job))
        script = str(Path(__file__).with_name("accuracy.py"))
        printed = subprocess.run([sys.executable, script, "--job", text], capture_output=True, text=True, check=False)
        if printed.returncode:
            sheet.failed = True
            sheet.add(f"{job.network:<16} {job.images:>6} ERROR {printed.stderr.strip().splitlines()[-1][:150]}")
            continue
        cost = Cost(**json.loads(printed.stdout.splitlines()[-1]))
        work = cost.score + cost.recover
        each = work / cost.layers
        first = first or each
        missed = work > job.seconds or cost.gigabytes > job.gigabytes
        growth = f"{each:.2f} ({each / first:.2f}x)" if job.size == 32 else f"{each:.2f}"
        sheet.add(
            f"{job.network:<16} {job.images:>6} {cost.layers:>6} {cost.score:>8.1f} {cost.recover:>8.1f} "
            f"{cost.total - work:>7.1f} {cost.total:>7.1f} {cost.gigabytes:>7.2f} {growth:>14}"
            f"{'  MISSED' if missed else ''}"
        )
