"""How fast the engine is: a ResNet-50 shape, long chains, wide chains.

    python bench/speed.py [--save]

Times are analysis + planning + surgery. The memory rows are the added peak of a fresh process, divided by the file's
size. Per-node and per-channel times are ratios to the smallest chain: flat is 1. The last rows are processor time
of analysis alone, on networks with a residual width and on transformers as exporters write them, with sizes computed in
the graph.
Torch-Pruning is measured on the same network where it is installed (extra ``bench``).
"""

import argparse
import importlib.util
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent))

from collection import keep

from onnxprune.channels.groups import analyze
from onnxprune.model.io import load
from onnxprune.plan.plan import plan
from onnxprune.score.scores import score
from onnxprune.surgery.slice import slice_channels

NODES = (100, 1_000, 10_000)
CHANNELS = (64, 256, 1_024, 4_096)
DEPTHS = (250, 500, 1_000, 2_000, 4_000)
REPEATS = 3


class Builder:
    """Collects nodes and seeded random weights of a network."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def add(self, op: str, *inputs: str, shapes: dict[str, tuple[int, ...]] | None = None, **attributes: object) -> str:
        name = f"n{len(self.nodes)}"
        names = list(inputs)
        for label, shape in (shapes or {}).items():
            values = self.random.standard_normal(shape) if len(shape) > 1 else self.random.uniform(0.5, 1.5, shape)
            self.weights.append(numpy_helper.from_array(values.astype(np.float32), f"{name}.{label}"))
            names.append(f"{name}.{label}")
        self.nodes.append(helper.make_node(op, names, [name], name, **attributes))
        return name

    def conv(self, x: str, source: int, target: int, kernel: int = 1, stride: int = 1, group: int = 1) -> str:
        pad = kernel // 2
        return self.add(
            "Conv", x, shapes={"w": (target, source // group, kernel, kernel)}, group=group, strides=[stride, stride],
            kernel_shape=[kernel, kernel], pads=[pad] * 4,
        )  # fmt: skip

    def integers(self, name: str, values: object) -> str:
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def norm(self, x: str, channels: int) -> str:
        return self.add("BatchNormalization", x, shapes=dict.fromkeys(("scale", "bias", "mean", "var"), (channels,)))

    def model(self, output: str, shape: list[object], size: int, channels: int = 3) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "bench",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, size, size])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)], self.weights,
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def resnet50() -> onnx.ModelProto:
    """The network of He et al. 2016 with random weights: 25.6 million parameters."""
    build = Builder()
    x = build.add("Relu", build.norm(build.conv("x", 3, 64, 7, 2), 64))
    x = build.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    width = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = 64 << stage
        for block in range(blocks):
            stride = 2 if block == 0 and stage else 1
            y = build.add("Relu", build.norm(build.conv(x, width, inner), inner))
            y = build.add("Relu", build.norm(build.conv(y, inner, inner, 3, stride), inner))
            y = build.norm(build.conv(y, inner, 4 * inner), 4 * inner)
            if block == 0:
                x = build.norm(build.conv(x, width, 4 * inner, 1, stride), 4 * inner)
                width = 4 * inner
            x = build.add("Relu", build.add("Add", y, x))
    x = build.add("Flatten", build.add("GlobalAveragePool", x))
    x = build.add("Gemm", x, shapes={"w": (1000, width), "b": (1000,)}, transB=1)
    return build.model(x, ["n", 1000], 224)


def chain(nodes: int, channels: int) -> onnx.ModelProto:
    """Depthwise convolution, BatchNormalization and Relu in turn, between two convolutions: weights grow with nodes."""
    build = Builder()
    x = build.conv("x", 3, channels)
    while len(build.nodes) < nodes - 1:
        x = build.norm(build.conv(x, channels, channels, 3, group=channels), channels)
        x = build.add("Relu", x)
    return build.model(build.conv(x, channels, 8), ["n", 8, 8, 8], 8)


def residual(nodes: int) -> onnx.ModelProto:
    """Blocks of two convolutions beside a shortcut; every block has a width of its own, the shortcut is one group."""
    build = Builder()
    x = build.conv("x", 3, 16)
    while len(build.nodes) < nodes - 1:
        y = build.add("Relu", build.norm(build.conv(x, 16, 24), 24))
        x = build.add("Relu", build.add("Add", x, build.norm(build.conv(y, 24, 16), 16)))
    return build.model(build.conv(x, 16, 8), ["n", 8, 8, 8], 8)


def transformer(nodes: int) -> onnx.ModelProto:
    """Attention and a hidden layer in turn, in the form that scripting exporters give them."""
    build = Builder()
    first, second, axis = (build.integers(*pair) for pair in (("first", 0), ("second", 1), ("axis", [0])))
    heads, size, width = (build.integers(*pair) for pair in (("heads", [4]), ("size", [4]), ("width", [16])))
    x = build.add("Transpose", build.add("Reshape", "x", build.integers("rows", [0, 3, 64])), perm=[0, 2, 1])
    x = build.add("MatMul", x, shapes={"w": (3, 16)})
    while len(build.nodes) < nodes - 1:
        sizes = [
            build.add("Unsqueeze", build.add("Gather", build.add("Shape", x), place), axis) for place in (first, second)
        ]
        apart = build.add("Concat", *sizes, heads, size, axis=0)
        query, key, value = (
            build.add(
                "Transpose", build.add("Reshape", build.add("MatMul", x, shapes={"w": (16, 16)}), apart), perm=order
            )
            for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
        taken = build.add("MatMul", build.add("Softmax", build.add("MatMul", query, key)), value)
        merged = build.add("Concat", *sizes, width, axis=0)
        taken = build.add("Reshape", build.add("Transpose", taken, perm=[0, 2, 1, 3]), merged)
        x = build.add("Add", x, build.add("MatMul", taken, shapes={"w": (16, 16)}))
        hidden = build.add("Relu", build.add("MatMul", x, shapes={"w": (16, 32)}))
        x = build.add("Add", x, build.add("MatMul", hidden, shapes={"w": (32, 16)}))
    return build.model(build.add("MatMul", x, shapes={"w": (16, 5)}), ["n", 64, 5], 8)


def growth(label: str, sizes: Sequence[int], seconds: Callable[[int], float]) -> list[str]:
    """Returns a line for each size: the seconds, and what they are for each of the things counted."""
    lines = []
    first = 0.0
    for size in sizes:
        found = seconds(size)
        first = first or found / size
        lines.append(
            f"{size:>6} {label}: {found:7.3f} s, {found / size * 1e6:8.1f} us each, "
            f"{found / size / first:.2f} x the smallest"
        )
        print(lines[-1], flush=True)
    return lines


def analysis(model: onnx.ModelProto) -> float:
    """Returns the processor seconds of analysis alone; the best of a few runs."""
    graph, times = load(model), []
    for _ in range(REPEATS):
        start = time.process_time()
        analyze(graph)
        times.append(time.process_time() - start)
    return min(times)


def prune(model: onnx.ModelProto | str) -> float:
    """Returns the seconds of analysis, planning and surgery."""
    graph = load(model)
    start = time.perf_counter()
    channels = analyze(graph)
    chosen = plan(channels, score(channels), 0.5, round_to=1)
    slice_channels(channels, chosen.removals)
    return time.perf_counter() - start


def best(model: onnx.ModelProto) -> float:
    return min(prune(model) for _ in range(REPEATS))


def peak() -> float:
    """Peak memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike ru_maxrss, this does not start from the peak of the parent process
        return float(next(line.split()[1] for line in status.read_text().splitlines() if "VmHWM" in line)) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def added_memory(path: str) -> float:
    """Returns the memory that pruning adds over the loaded file, in sizes of the file; run in a fresh process."""
    graph = load(path)
    before = peak()
    channels = analyze(graph)
    slice_channels(channels, plan(channels, score(channels), 0.5, round_to=1).removals)
    return (peak() - before) / Path(path).stat().st_size


def whole_memory(path: str) -> float:
    """The same counted from before the file is read."""
    before = peak()
    added_memory(path)
    return (peak() - before) / Path(path).stat().st_size


def torch_pruning() -> str:
    """Returns the figures of Torch-Pruning on the same network, or why there are none."""
    if importlib.util.find_spec("torch_pruning") is None:
        return "Torch-Pruning: not installed"
    import torch
    import torch_pruning

    example, seconds, memory = torch.randn(1, 3, 224, 224), float("inf"), 0.0
    for _ in range(REPEATS):
        model = torch_resnet50()
        before, start = peak(), time.perf_counter()
        pruner = torch_pruning.pruner.MagnitudePruner(
            model, example, importance=torch_pruning.importance.MagnitudeImportance(p=2), pruning_ratio=0.5,
            ignored_layers=[model[-1]],
        )  # fmt: skip
        pruner.step()
        seconds = min(seconds, time.perf_counter() - start)
        memory = memory or (peak() - before) / (4 * 25.6e6)
    return f"Torch-Pruning: graph + prune {seconds:.2f} s, {memory:.2f} x the weights' size"


def torch_resnet50() -> Any:
    """The same network as :func:`resnet50` in PyTorch."""
    from torch import nn

    class Bottleneck(nn.Module):
        def __init__(self, source: int, inner: int, stride: int) -> None:
            super().__init__()
            target = 4 * inner
            self.body = nn.Sequential(
                nn.Conv2d(source, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
                nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
                nn.Conv2d(inner, target, 1, bias=False), nn.BatchNorm2d(target),
            )  # fmt: skip
            self.short = nn.Identity()
            if source != target:
                self.short = nn.Sequential(nn.Conv2d(source, target, 1, stride, bias=False), nn.BatchNorm2d(target))

        def forward(self, x: Any) -> Any:
            return (self.body(x) + self.short(x)).relu()

    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
                               nn.MaxPool2d(3, 2, 1)]  # fmt: skip
    width = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            layers.append(Bottleneck(width, 64 << stage, 2 if block == 0 and stage else 1))
            width = 256 << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000)).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the table in bench/results/speed.txt")
    parser.add_argument("--memory-of", choices=["added", "whole"])
    parser.add_argument("path", nargs="?")
    options = parser.parse_args()
    if options.memory_of:
        print((added_memory if options.memory_of == "added" else whole_memory)(options.path))
        return
    model = resnet50()
    lines = [f"{platform.processor() or platform.machine()}, Python {platform.python_version()}"]
    lines.append(f"ResNet-50, {model.ByteSize() / 1e6:.0f} MB: {best(model):.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "resnet50.onnx")
        onnx.save(model, path)
        for kind in ("added", "whole"):
            printed = subprocess.run(
                [sys.executable, __file__, "--memory-of", kind, path], capture_output=True, text=True, check=True
            )
            lines.append(f"  peak memory {kind}: {float(printed.stdout):.2f} x the file's size")
    lines.append("  " + torch_pruning())
    print("\n".join(lines), flush=True)
    lines += growth("nodes", NODES, lambda size: best(chain(size, 16)))
    lines += growth("channels", CHANNELS, lambda size: best(chain(200, size)))
    lines += growth("nodes, residual, analysis", DEPTHS, lambda size: analysis(residual(size)))
    lines += growth("nodes, transformer, analysis", DEPTHS, lambda size: analysis(transformer(size)))
    if options.save:
        keep("speed", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
