"""Residual networks of any depth with random weights in which activations keep their scale, for times and memory."""

import numpy as np
import onnx
from onnx import numpy_helper
from speed import Builder


class Scaled(Builder):
    """A builder of convolutions with a bias, as folding of normalizations leaves them (scales of He et al. 2015)."""

    def conv(
        self, x: str, source: int, target: int, kernel: int = 1, stride: int = 1, group: int = 1, gain: float = 1.0
    ) -> str:
        fan = kernel * kernel * source // group
        self._store(f"n{len(self.nodes)}.w", (target, source // group, kernel, kernel), gain * np.sqrt(2 / fan))
        self._store(f"n{len(self.nodes)}.b", (target,), 0.1)
        name = f"n{len(self.nodes)}"
        return self.add(
            "Conv", x, f"{name}.w", f"{name}.b", group=group, strides=[stride, stride], kernel_shape=[kernel, kernel],
            pads=[kernel // 2] * 4,
        )  # fmt: skip

    def classifier(self, x: str, width: int, classes: int) -> str:
        x = self.add("Flatten", self.add("GlobalAveragePool", x))
        name = f"n{len(self.nodes)}"
        self._store(f"{name}.w", (classes, width), 1 / np.sqrt(width))
        self._store(f"{name}.b", (classes,), 0.1)
        return self.add("Gemm", x, f"{name}.w", f"{name}.b", transB=1)

    def _store(self, name: str, shape: tuple[int, ...], scale: float) -> None:
        values = (scale * self.random.standard_normal(shape)).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))


def cifar_resnet(depth: int) -> onnx.ModelProto:
    """The network of 6n + 2 layers for 32x32 images of He et al. 2016, with 1x1 convolutions as wider shortcuts."""
    build, blocks, width = Scaled(), (depth - 2) // 6, 16
    x = build.add("Relu", build.conv("x", 3, 16, 3))
    for inner in (16, 32, 64):
        for _ in range(blocks):
            stride = 1 if inner == width else 2
            y = build.add("Relu", build.conv(x, width, inner, 3, stride))
            y = build.conv(y, inner, inner, 3, gain=1 / np.sqrt(3 * blocks))
            x = x if inner == width else build.conv(x, width, inner, 1, stride, gain=0.7)
            x, width = build.add("Relu", build.add("Add", y, x)), inner
    return build.model(build.classifier(x, width, 10), ["n", 10], 32)


def resnet50() -> onnx.ModelProto:
    """The network of 50 layers for 224x224 images of He et al. 2016."""
    build, width = Scaled(), 64
    x = build.add("Relu", build.conv("x", 3, 64, 7, 2))
    x = build.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = 64 << stage
        for block in range(blocks):
            stride = 2 if block == 0 and stage else 1
            y = build.add("Relu", build.conv(x, width, inner))
            y = build.add("Relu", build.conv(y, inner, inner, 3, stride))
            y = build.conv(y, inner, 4 * inner, gain=0.25)
            x = x if block else build.conv(x, width, 4 * inner, 1, stride, gain=0.7)
            x, width = build.add("Relu", build.add("Add", y, x)), 4 * inner
    return build.model(build.classifier(x, width, 1000), ["n", 1000], 224)
