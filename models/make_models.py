"""Train three small networks on Fashion-MNIST and write them, with data to calibrate and validate on, as files.

Everything that lies beside this script comes out of it:

    python make_models.py --output .

It needs PyTorch (the extra `train`) and the Fashion-MNIST archives, which Debian ships as `dataset-fashion-mnist`.
"""

from __future__ import annotations

import argparse
import gzip
import math
import struct
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

try:
    import onnx
    import torch
    import torch.nn.functional as F  # noqa: N812
    from onnx.reference import ReferenceEvaluator
    from torch import nn
except ImportError as error:
    sys.exit(f"make_models.py needs PyTorch and onnx ({error}): install them with `pip install 'onnxprune[train]'`.")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DATASET = Path("/usr/share/datasets/fashion-mnist")
OPSET = 17
IR_VERSION = 8
CLASSES = 10
SIDE = 28
PIXEL_MEAN, PIXEL_STD = 0.2860, 0.3530
CALIBRATION_IMAGES = 512
VALIDATION_IMAGES = 2000
TOLERANCE = 1e-4


# --- data ------------------------------------------------------------------------------------------------------------


def read_idx(path: Path) -> np.ndarray:
    """Read one gzip-compressed idx file of unsigned bytes."""
    with gzip.open(path, "rb") as stream:
        zero, kind, rank = struct.unpack(">HBB", stream.read(4))
        if zero != 0 or kind != 0x08:
            sys.exit(f"{path} is not an idx file of unsigned bytes: fetch the dataset anew.")
        shape = struct.unpack(f">{rank}I", stream.read(4 * rank))
        return np.frombuffer(stream.read(), dtype=np.uint8).reshape(shape)


@dataclass(frozen=True)
class Split:
    """Images as bytes [N, 28, 28] with their labels [N]."""

    pixels: np.ndarray
    labels: np.ndarray

    def take(self, rows: np.ndarray | slice) -> Split:
        return Split(self.pixels[rows], self.labels[rows])

    def images(self) -> np.ndarray:
        """The images as the networks take them: float32 [N, 1, 28, 28] in [0, 1]."""
        return self.pixels[:, None].astype(np.float32) / np.float32(255)


def read_split(folder: Path, prefix: str) -> Split:
    paths = [folder / f"{prefix}-images-idx3-ubyte.gz", folder / f"{prefix}-labels-idx1-ubyte.gz"]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        sys.exit(f"{missing[0]} is missing: install the Debian package dataset-fashion-mnist or give --dataset FOLDER.")
    pixels, labels = (read_idx(path) for path in paths)
    return Split(pixels, labels.astype(np.int64))


def write_data(output: Path, train: Split, test: Split, seed: int) -> None:
    rows = np.sort(np.random.default_rng(seed).choice(len(train.labels), CALIBRATION_IMAGES, replace=False))
    for name, split in {
        "calibration": train.take(rows),
        "validation": test.take(slice(VALIDATION_IMAGES)),
    }.items():
        np.savez_compressed(output / f"{name}.npz", image=split.images(), labels=split.labels)


# --- networks --------------------------------------------------------------------------------------------------------


class Normalize(nn.Module):
    """Bring pixels in [0, 1] to mean 0 and deviation 1, so that the files take plain pixels."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return (image - PIXEL_MEAN) / PIXEL_STD


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_norm(inputs, outputs, 3, stride)
        self.second = conv_norm(outputs, outputs, 3)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem and three stages of residual blocks; each change of width has a 1x1 projection as its shortcut."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128), depths: tuple[int, ...] = (2, 2, 1)) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.stem = conv_norm(1, widths[0], 5, stride=2)
        blocks, channels = [], widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(ResidualBlock(channels, width, stride))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.blocks(F.relu(self.stem(self.normalize(image))))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))
        return x * F.hardsigmoid(self.excite(gate))


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter depthwise, gate the channels, project by 1x1; a skip where the shapes agree."""

    def __init__(self, inputs: int, expanded: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.skip = inputs == outputs and stride == 1
        self.body = nn.Sequential(
            conv_norm(inputs, expanded, 1),
            nn.Hardswish(),
            conv_norm(expanded, expanded, kernel, stride, groups=expanded),
            nn.Hardswish(),
            SqueezeExcite(expanded, max(16, expanded // 4)),
            conv_norm(expanded, outputs, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.skip else self.body(x)


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.stem = nn.Sequential(conv_norm(1, 16, 3, stride=2), nn.Hardswish())
        self.blocks = nn.Sequential(
            InvertedResidual(16, 48, 32, kernel=3, stride=1),
            InvertedResidual(32, 96, 48, kernel=3, stride=2),
            InvertedResidual(48, 128, 48, kernel=3, stride=1),
            InvertedResidual(48, 144, 48, kernel=5, stride=1),
            InvertedResidual(48, 192, 64, kernel=3, stride=1),
        )
        self.head = nn.Sequential(conv_norm(64, 192, 1), nn.Hardswish())
        self.classifier = nn.Linear(192, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.head(self.blocks(self.stem(self.normalize(image))))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Attention(nn.Module):
    """Multi-head attention in plain operators, so that the file holds no fused ones."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads, self.head_width, self.tokens = heads, width // heads, tokens
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(x).reshape(-1, self.tokens, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(self.head_width))
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(-1, self.tokens, self.heads * self.head_width)
        return self.projection(mixed)


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, tokens: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, tokens)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class VisionTransformer(nn.Module):
    """Two convolutions make 5x5 tokens; a class token, learned positions and pre-norm encoder layers follow."""

    def __init__(self, width: int = 96, heads: int = 6, depth: int = 4, hidden: int = 192) -> None:
        super().__init__()
        tokens = 5 * 5 + 1
        self.normalize = Normalize()
        self.stem = nn.Conv2d(1, 32, 5, stride=2, padding=2)
        self.patches = nn.Conv2d(32, width, 4, stride=3, padding=1)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.layers = nn.Sequential(*(EncoderLayer(width, heads, hidden, tokens) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        patches = self.patches(F.relu(self.stem(self.normalize(image)))).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        return self.classifier(self.norm(self.layers(tokens + self.positions))[:, 0])


# --- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How one network is built, trained and exported."""

    name: str
    build: Callable[[], nn.Module]
    epochs: int
    learning_rate: float
    keep_batch_norm: bool = False


RECIPES = (
    Recipe("resnet", ResNet, epochs=6, learning_rate=4e-3, keep_batch_norm=True),
    Recipe("mobilenet", MobileNet, epochs=8, learning_rate=5e-3),
    Recipe("vit", VisionTransformer, epochs=10, learning_rate=3e-3),
)


def augment(images: torch.Tensor) -> torch.Tensor:
    """Mirror half of the images and shift the whole batch by up to one pixel each way."""
    mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
    images = torch.where(mirrored, images.flip(3), images)
    down, right = torch.randint(0, 3, (2,)).tolist()
    return F.pad(images, (1, 1, 1, 1))[:, :, down : down + SIDE, right : right + SIDE]


def batches(split: Split, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Walk once over the split in a random order, leaving out the last, incomplete batch."""
    pixels, labels = torch.from_numpy(split.pixels.copy()), torch.from_numpy(split.labels)
    order = torch.randperm(len(labels))
    for rows in order[: len(order) // size * size].split(size):
        yield augment(pixels[rows][:, None].float() / 255), labels[rows]


def train_network(recipe: Recipe, train: Split, epochs: int, batch: int) -> nn.Module:
    network = recipe.build().to(memory_format=torch.channels_last)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    steps = max(1, epochs * (len(train.labels) // batch))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.learning_rate, total_steps=steps + 1, pct_start=0.2, cycle_momentum=False
    )
    network.train()
    started = time.monotonic()
    for epoch in range(epochs):
        total = 0.0
        for images, labels in batches(train, batch):
            loss = F.cross_entropy(network(images), labels, label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        mean = total / (len(train.labels) // batch)
        seconds = time.monotonic() - started
        print(f"{recipe.name}: epoch {epoch + 1}/{epochs}, loss {mean:.4f}, {seconds:.0f} s", flush=True)
    return network.eval()


@torch.inference_mode()
def accuracy(network: nn.Module, split: Split) -> float:
    images = torch.from_numpy(split.images()).split(500)
    guesses = torch.cat([network(part).argmax(1) for part in images])
    return (guesses == torch.from_numpy(split.labels)).float().mean().item()


# --- export ----------------------------------------------------------------------------------------------------------


def unshare_initializers(graph: onnx.GraphProto) -> None:
    """Turn each Identity of an initializer, which the exporter writes for equal weights, into a copy of it."""
    weights = {weight.name: weight for weight in graph.initializer}
    shared = [node for node in graph.node if node.op_type == "Identity" and node.input[0] in weights]
    for node in shared:
        copy = graph.initializer.add()
        copy.CopyFrom(weights[node.input[0]])
        copy.name = node.output[0]
        graph.node.remove(node)


def export(network: nn.Module, path: Path, keep_batch_norm: bool) -> None:
    """Write the network as one ONNX file; BatchNormalization stays a node of its own where that is asked for."""
    mode = torch.onnx.TrainingMode.PRESERVE if keep_batch_norm else torch.onnx.TrainingMode.EVAL
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, 1, SIDE, SIDE),),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=OPSET,
            training=mode,
            do_constant_folding=True,
            dynamo=False,
        )
    model = onnx.load(path)
    model.ir_version = IR_VERSION
    unshare_initializers(model.graph)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


@torch.inference_mode()
def largest_difference(network: nn.Module, path: Path, split: Split) -> float:
    """How far the file's logits, by the reference implementation of ONNX, lie from PyTorch's on a few images."""
    images = split.take(slice(8)).images()
    (found,) = ReferenceEvaluator(str(path)).run(None, {"image": images})
    return float(np.abs(found - network(torch.from_numpy(images)).numpy()).max())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=DATASET, help="folder with the idx .gz archives (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder to write into (%(default)s)")
    parser.add_argument("--only", choices=["data", *(recipe.name for recipe in RECIPES)], help="make this part alone")
    parser.add_argument("--epochs", type=int, help="passes over the training images (default: each network's own)")
    parser.add_argument("--batch", type=int, default=256, help="images in a training step (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random choice (%(default)s)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    train, test = read_split(arguments.dataset, "train"), read_split(arguments.dataset, "t10k")
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.only in (None, "data"):
        write_data(arguments.output, train, test, arguments.seed)
    for recipe in RECIPES:
        if arguments.only not in (None, recipe.name):
            continue
        torch.manual_seed(arguments.seed)
        network = train_network(recipe, train, arguments.epochs or recipe.epochs, arguments.batch)
        print(f"{recipe.name}: {accuracy(network, test):.2%} of the {len(test.labels)} test images right", flush=True)
        path = arguments.output / f"{recipe.name}.onnx"
        export(network, path, recipe.keep_batch_norm)
        difference = largest_difference(network, path, test)
        print(f"{recipe.name}: the file's logits lie within {difference:.1e} of PyTorch's", flush=True)
        if not difference < TOLERANCE:
            sys.exit(f"{path} differs from the trained network by {difference:.1e}: do not use it, export it anew.")


if __name__ == "__main__":
    main()
