"""Small networks with odd parts: heads of detectors, gates, branches, weights that the network computes itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo_network import Architecture, Network, image_network
from zoo_odd_blocks import BLOCKS, pooled, relu_norm, stack
from zoo_odd_other import OTHER
from zoo_odd_sequence import SEQUENCES
from zoo_own import C2f, Pyramid, conv_norm


def odd_architectures() -> Iterator[Architecture]:
    """Yields the architectures of the files named ``zoo_odd``."""
    for name, build in {**IMAGES, **BLOCKS, **SEQUENCES, **OTHER}.items():
        yield Architecture(f"odd/{name}", build)


class FaceBlock(nn.Module):
    """Inverted residual with PReLU (MobileFaceNet, Chen et al. 2018)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_norm(width, hidden, 1, act=nn.PReLU(hidden)),
            nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.PReLU(hidden),
            conv_norm(hidden, width, 1, act=nn.Identity()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _mobile_face() -> Network:
    width = 32
    stem = conv_norm(3, width, 3, 2, nn.PReLU(width))
    last = nn.Conv2d(2 * width, 2 * width, 16, groups=2 * width, bias=False)
    head = nn.Sequential(nn.Flatten(), nn.Linear(2 * width, 32), nn.BatchNorm1d(32))
    down = conv_norm(width, 2 * width, 3, 2, nn.PReLU(2 * width))
    body = [FaceBlock(width, 64), down, FaceBlock(2 * width, 96), last, nn.BatchNorm2d(2 * width)]
    return image_network(nn.Sequential(stem, *body, head))


def _grouped_transpose() -> Network:
    up = [nn.ConvTranspose2d(64, 32, 4, 2, 1, groups=4), nn.ReLU(), nn.ConvTranspose2d(32, 32, 4, 2, 1, groups=32)]
    body = [relu_norm(3, 32, 3, 2), relu_norm(32, 64, 3, 2), *up, nn.BatchNorm2d(32), nn.ReLU()]
    return image_network(nn.Sequential(*body, nn.Conv2d(32, 3, 3, 1, 1)))


class AnchorDetector(nn.Module):
    """Space to depth by slices, cross stage blocks, boxes decoded from anchors (YOLOv5-like)."""

    def __init__(self, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.focus = conv_norm(12, width)
        self.down = nn.Sequential(conv_norm(width, 2 * width, 3, 2), C2f(2 * width, 2 * width))
        self.deep = nn.Sequential(conv_norm(2 * width, 4 * width, 3, 2), C2f(4 * width, 4 * width), Pyramid(4 * width))
        self.heads = nn.ModuleList(nn.Conv2d(w, 3 * (5 + classes), 1) for w in (2 * width, 4 * width))
        self.register_buffer("anchors", torch.rand(2, 1, 3, 1, 1, 2) * 30)
        self.outputs = 5 + classes

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        first = self.down(self.focus(torch.cat(parts, 1)))
        found = []
        for index, (head, level) in enumerate(zip(self.heads, (first, self.deep(first)), strict=True)):
            y = head(level)
            batch, _, high, wide = y.shape
            y = y.view(batch, 3, self.outputs, high, wide).permute(0, 1, 3, 4, 2).sigmoid()
            rows, columns = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
            grid = torch.stack([columns, rows], 2).view(1, 1, high, wide, 2).float()
            places, sizes, rest = y.split((2, 2, self.outputs - 4), 4)
            boxes = torch.cat([(places * 2 - 0.5 + grid) * 8, (sizes * 2) ** 2 * self.anchors[index], rest], 4)
            found.append(boxes.view(batch, -1, self.outputs))
        return torch.cat(found, 1)


class DistributionDetector(nn.Module):
    """Decoupled heads, distances as expectations of a softmax, boxes decoded around grid points (YOLOv8-like)."""

    def __init__(self, width: int = 16, classes: int = 4, bins: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, width, 3, 2), conv_norm(width, 2 * width, 3, 2), C2f(32, 32))
        self.deep = nn.Sequential(conv_norm(2 * width, 4 * width, 3, 2), C2f(4 * width, 4 * width))
        widths = (2 * width, 4 * width)
        self.box = nn.ModuleList(
            nn.Sequential(conv_norm(w, 32), conv_norm(32, 32), nn.Conv2d(32, 4 * bins, 1)) for w in widths
        )
        self.classes = nn.ModuleList(
            nn.Sequential(conv_norm(w, 32), conv_norm(32, 32), nn.Conv2d(32, classes, 1)) for w in widths
        )
        self.bins = bins
        self.register_buffer("steps", torch.arange(bins).float())

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)
        found = []
        for index, level in enumerate((first, self.deep(first))):
            stride = 4.0 * 2**index
            batch, _, high, wide = level.shape
            points = torch.stack(
                torch.meshgrid(torch.arange(wide) + 0.5, torch.arange(high) + 0.5, indexing="xy")
            ).view(1, 2, -1)
            logits = self.box[index](level).view(batch, 4, self.bins, high * wide).permute(0, 3, 1, 2)
            distances = (logits.softmax(3) @ self.steps).transpose(1, 2)
            before, after = distances.chunk(2, 1)
            low, top = points - before, points + after
            scores = self.classes[index](level).flatten(2).sigmoid()
            found.append(torch.cat([(low + top) / 2 * stride, (top - low) * stride, scores], 1))
        return torch.cat(found, 2)


class PyramidDetector(nn.Module):
    """Feature pyramid and towers that all levels share (RetinaNet, Lin et al. 2017)."""

    def __init__(self, width: int = 32, classes: int = 5, anchors: int = 3) -> None:
        super().__init__()
        self.stages = nn.ModuleList([relu_norm(3, 32, 3, 2), relu_norm(32, 48, 3, 2), relu_norm(48, 64, 3, 2)])
        self.sides = nn.ModuleList(nn.Conv2d(w, width, 1) for w in (32, 48, 64))
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1) for _ in range(3))
        self.score = self._tower(width, anchors * classes)
        self.box = self._tower(width, anchors * 4)
        self.outputs = (classes, 4)

    @staticmethod
    def _tower(width: int, outputs: int) -> nn.Module:
        inner = [nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1), nn.ReLU()]
        return nn.Sequential(*inner, nn.Conv2d(width, outputs, 3, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        sides = []
        for stage, side in zip(self.stages, self.sides, strict=True):
            x = stage(x)
            sides.append(side(x))
        for index in (1, 0):
            up = functional.interpolate(sides[index + 1], size=sides[index].shape[-2:], mode="nearest")
            sides[index] = sides[index] + up
        levels = [smooth(side) for smooth, side in zip(self.smooth, sides, strict=True)]
        results = []
        for tower, count in zip((self.score, self.box), self.outputs, strict=True):
            parts = [tower(y).permute(0, 2, 3, 1).reshape(y.shape[0], -1, count) for y in levels]
            results.append(torch.cat(parts, 1))
        return results[0].sigmoid(), results[1]


class WeightedPyramid(nn.Module):
    """Fusion by learned positive weights, up and down (EfficientDet, Tan et al. 2020)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stages = nn.ModuleList([relu_norm(3, width, 3, 2), relu_norm(width, width, 3, 2), relu_norm(width, width)])
        self.mixes = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, groups=width), conv_norm(width, width, 1)) for _ in range(4)
        )
        self.weights = nn.Parameter(torch.rand(4, 3))
        self.head = nn.Conv2d(width, 4, 3, 1, 1)

    def _fuse(self, index: int, parts: list[Tensor]) -> Tensor:
        weights = torch.relu(self.weights[index, : len(parts)])
        weights = weights / (weights.sum() + 1e-4)
        return self.mixes[index](sum(weights[i] * part for i, part in enumerate(parts)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        fine = self.stages[0](x)
        middle = self.stages[1](fine)
        deep = functional.max_pool2d(self.stages[2](middle), 3, 2, 1)
        inner = self._fuse(0, [middle, functional.interpolate(deep, scale_factor=2.0)])
        top = self._fuse(1, [fine, functional.interpolate(inner, scale_factor=2.0)])
        inner = self._fuse(2, [middle, inner, functional.max_pool2d(top, 3, 2, 1)])
        deep = self._fuse(3, [deep, functional.max_pool2d(inner, 3, 2, 1)])
        return tuple(self.head(level) for level in (top, inner, deep))


class Modulated(nn.Module):
    """A convolution whose weight is scaled by a style and normalized (StyleGAN2, Karras et al. 2020)."""

    def __init__(self, source: int, target: int, style: int) -> None:
        super().__init__()
        self.style = nn.Linear(style, source)
        self.weight = nn.Parameter(torch.randn(target, source, 3, 3))
        self.bias = nn.Parameter(torch.randn(target))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        batch, source, high, wide = x.shape
        weight = self.weight * self.style(style).view(batch, 1, source, 1, 1)
        weight = weight * torch.rsqrt(weight.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8)
        y = functional.conv2d(
            x.view(1, batch * source, high, wide), weight.view(-1, source, 3, 3), padding=1, groups=batch
        )
        return functional.leaky_relu(y.view(batch, -1, high, wide) + self.bias[:, None, None], 0.2)


class StyleGenerator(nn.Module):
    """A stored start image, modulated convolutions, enlargement."""

    def __init__(self, width: int = 32, style: int = 24) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(16, style), nn.LeakyReLU(0.2), nn.Linear(style, style))
        self.start = nn.Parameter(torch.randn(1, width, 8, 8))
        self.layers = nn.ModuleList(Modulated(width, width, style) for _ in range(3))
        self.image = nn.Conv2d(width, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        style = self.mapping(z)
        x = self.layers[0](self.start.expand(z.shape[0], -1, -1, -1), style)
        x = self.layers[1](functional.interpolate(x, scale_factor=2.0, mode="bilinear"), style)
        return self.image(self.layers[2](x, style))


class Siamese(nn.Module):
    """One encoder for two images, compared by difference and by cosine."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(relu_norm(3, 32, 3, 2), relu_norm(32, 48, 3, 2), relu_norm(48, 64))
        self.embed = nn.Linear(64, 32)
        self.head = nn.Linear(32, 1)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        left, right = (self.embed(self.body(x).mean((2, 3))) for x in (left, right))
        return self.head((left - right).abs()).sigmoid(), functional.cosine_similarity(left, right)


class SubPixel(nn.Module):
    """Efficient super-resolution (ESPCN, Shi et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 48, 5, 1, 2), nn.Tanh(), nn.Conv2d(48, 32, 3, 1, 1), nn.Tanh())
        self.tail = nn.Sequential(nn.Conv2d(32, 9, 3, 1, 1), nn.PixelShuffle(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.body(x)).clamp(0, 1)


class BlockAttention(nn.Module):
    """Gates from pooled channels and from channel statistics (CBAM, Woo et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = relu_norm(width, width)
        self.mlp = nn.Sequential(nn.Conv2d(width, width // 4, 1), nn.ReLU(), nn.Conv2d(width // 4, width, 1))
        self.place = nn.Conv2d(2, 1, 7, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        mean = self.mlp(functional.adaptive_avg_pool2d(y, 1))
        y = y * torch.sigmoid(mean + self.mlp(functional.adaptive_max_pool2d(y, 1)))
        places = torch.cat([y.mean(1, keepdim=True), y.max(1, keepdim=True)[0]], 1)
        return x + y * torch.sigmoid(self.place(places))


class NonLocal(nn.Module):
    """Attention of all places to pooled ones (Wang et al. 2018)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.theta, self.phi, self.value = (nn.Conv2d(width, inner, 1) for _ in range(3))
        self.out = nn.Sequential(nn.Conv2d(inner, width, 1), nn.BatchNorm2d(width))
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        batch, _, high, wide = x.shape
        theta = self.theta(x).view(batch, self.inner, -1).permute(0, 2, 1)
        phi = functional.max_pool2d(self.phi(x), 2).view(batch, self.inner, -1)
        value = functional.max_pool2d(self.value(x), 2).view(batch, self.inner, -1).permute(0, 2, 1)
        weights = functional.softmax(theta @ phi, -1)
        y = (weights @ value).permute(0, 2, 1).contiguous().view(batch, self.inner, high, wide)
        return x + self.out(y)


class Sampled(nn.Module):
    """A deformable convolution written with bilinear sampling: an offset for each of nine places."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(source, 18, 3, 1, 1)
        self.mix = nn.Conv2d(9 * source, target, 1)

    def forward(self, x: Tensor) -> Tensor:
        offsets = self.offsets(x).tanh() * 0.3
        high, wide = x.shape[-2:]
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, high), torch.linspace(-1, 1, wide), indexing="ij")
        grid = torch.stack([columns, rows], -1)[None]
        parts = [
            functional.grid_sample(x, grid + offsets[:, 2 * i : 2 * i + 2].permute(0, 2, 3, 1), align_corners=True)
            for i in range(9)
        ]
        return torch.relu(self.mix(torch.cat(parts, 1)))


class Transformed(nn.Module):
    """A spatial transformer before a classifier (Jaderberg et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Sequential(relu_norm(3, 24, 3, 2), relu_norm(24, 32, 3, 2), pooled(32, 6))
        self.body = nn.Sequential(relu_norm(3, 32), relu_norm(32, 48, 3, 2), pooled(48))

    def forward(self, x: Tensor) -> Tensor:
        theta = self.locate(x).view(-1, 2, 3) * 0.1 + torch.eye(2, 3)
        grid = functional.affine_grid(theta, [x.shape[0], *x.shape[1:]], align_corners=False)
        return self.body(functional.grid_sample(x, grid, align_corners=False))


class GatedUNet(nn.Module):
    """Skips weighted by attention gates (Attention U-Net, Oktay et al. 2018)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first, self.second = relu_norm(3, width), relu_norm(width, 2 * width)
        self.deep = relu_norm(2 * width, 4 * width)
        self.up2, self.up1 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.gates = nn.ModuleList(self._gate(w) for w in (2 * width, width))
        self.last2, self.last1 = relu_norm(4 * width, 2 * width), relu_norm(2 * width, width)
        self.head = nn.Conv2d(width, 1, 1)

    @staticmethod
    def _gate(width: int) -> nn.ModuleList:
        mix = nn.Sequential(nn.ReLU(), nn.Conv2d(width // 2, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())
        parts = (nn.Sequential(nn.Conv2d(width, width // 2, 1), nn.BatchNorm2d(width // 2)) for _ in range(2))
        return nn.ModuleList([*parts, mix])

    def _join(self, index: int, up: Tensor, skip: Tensor) -> Tensor:
        left, right, mix = self.gates[index]
        return torch.cat([skip * mix(left(up) + right(skip)), up], 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(functional.max_pool2d(first, 2))
        y = self.deep(functional.max_pool2d(second, 2))
        y = self.last2(self._join(0, self.up2(y), second))
        return self.head(self.last1(self._join(1, self.up1(y), first)))


IMAGES: dict[str, Callable[[], Network]] = {
    "mobile_face": _mobile_face,
    "grouped_transpose": _grouped_transpose,
    "yolo_anchors": lambda: image_network(AnchorDetector()),
    "yolo_distribution": lambda: image_network(DistributionDetector()),
    "retina": lambda: image_network(PyramidDetector()),
    "bifpn": lambda: image_network(WeightedPyramid()),
    "style_generator": lambda: Network(StyleGenerator(), (torch.randn(1, 16),), ("z",)),
    "siamese": lambda: Network(Siamese(), (torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 32)), ("left", "right")),
    "espcn": lambda: image_network(SubPixel(), (1, 1, 24, 24)),
    "cbam": stack(lambda: BlockAttention(32), lambda: BlockAttention(32)),
    "non_local": stack(lambda: relu_norm(32, 32), lambda: NonLocal(32, 16), lambda: relu_norm(32, 32)),
    "deformable_sampled": stack(lambda: Sampled(32, 32), lambda: relu_norm(32, 32)),
    "spatial_transformer": lambda: image_network(Transformed(), (1, 3, 32, 32)),
    "attention_unet": lambda: image_network(GatedUNet(), (1, 3, 32, 32)),
}
