"""Architectures without a package: recurrent taggers, super-resolution, detection, diffusion, audio."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo_network import Architecture, Network, image_network


def own_architectures() -> Iterator[Architecture]:
    """Yields the architectures that are defined here."""
    for name, build in BUILDERS.items():
        yield Architecture(f"own/{name}", build)


def conv_norm(source: int, target: int, kernel: int = 3, stride: int = 1, act: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(source, target, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(target), act or nn.SiLU()
    )


class OptionA(nn.Module):
    """A residual block whose shortcut is a strided slice and zero channels (He et al. 2016, option A)."""

    def __init__(self, source: int, target: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_norm(source, target, 3, stride, nn.ReLU()), nn.Conv2d(target, target, 3, 1, 1))
        self.norm = nn.BatchNorm2d(target)
        self.stride, self.extra = stride, target - source

    def forward(self, x: Tensor) -> Tensor:
        short = x[:, :, :: self.stride, :: self.stride]
        short = functional.pad(short, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return torch.relu(self.norm(self.body(x)) + short)


def _cifar_resnet() -> Network:
    blocks = [OptionA(16, 16, 1), OptionA(16, 32, 2), OptionA(32, 32, 1), OptionA(32, 64, 2)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return image_network(nn.Sequential(conv_norm(3, 16, act=nn.ReLU()), *blocks, head), (1, 3, 32, 32))


class Tagger(nn.Module):
    """Embedding, recurrent layers, a tag for every word."""

    def __init__(self, kind: type[nn.RNNBase], both: bool, layers: int = 1, first: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 24)
        self.body = kind(24, 32, num_layers=layers, bidirectional=both, batch_first=first)
        self.head = nn.Linear(64 if both else 32, 7)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(words))[0])


def _tagger(kind: type[nn.RNNBase], both: bool, layers: int = 1, first: bool = True) -> Callable[[], Network]:
    def build() -> Network:
        module = Tagger(kind, both, layers, first)
        return Network(module, (torch.randint(0, 50, (1, 9) if first else (9, 1)),), ("words",), first)

    return build


class Upscaler(nn.Module):
    """Residual blocks and PixelShuffle (EDSR, Lim et al. 2017)."""

    def __init__(self, width: int = 24, scale: int = 2) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, 1, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1))
            for _ in range(3)
        )
        self.up = nn.Sequential(nn.Conv2d(width, width * scale**2, 3, 1, 1), nn.PixelShuffle(scale))
        self.tail = nn.Conv2d(width, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        y = x
        for block in self.blocks:
            y = y + 0.1 * block(y)
        return self.tail(self.up(x + y))


class C2f(nn.Module):
    """Split, a chain of bottlenecks, concatenation of all."""

    def __init__(self, source: int, target: int, count: int = 2) -> None:
        super().__init__()
        self.half = target // 2
        self.first = conv_norm(source, target, 1)
        self.last = conv_norm((2 + count) * self.half, target, 1)
        self.inner = nn.ModuleList(
            nn.Sequential(conv_norm(self.half, self.half), conv_norm(self.half, self.half)) for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.inner:
            parts.append(parts[-1] + block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Pyramid(nn.Module):
    """Spatial pyramid pooling of three chained maxima."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = conv_norm(width, width // 2, 1), conv_norm(2 * width, width, 1)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Detector(nn.Module):
    """C2f backbone, two scales, a decoupled head with a distribution of box distances (YOLOv8-like)."""

    def __init__(self, width: int = 16, classes: int = 4, bins: int = 8) -> None:
        super().__init__()
        stem = C2f(2 * width, 2 * width)
        self.stem = nn.Sequential(conv_norm(3, width, 3, 2), conv_norm(width, 2 * width, 3, 2), stem)
        self.fine = nn.Sequential(conv_norm(2 * width, 4 * width, 3, 2), C2f(4 * width, 4 * width))
        deep = 8 * width
        self.coarse = nn.Sequential(conv_norm(4 * width, deep, 3, 2), C2f(deep, deep), Pyramid(deep))
        self.merge = C2f(12 * width, 4 * width)
        widths = (4 * width, 8 * width)
        self.box = nn.ModuleList(
            nn.Sequential(conv_norm(w, 2 * width), nn.Conv2d(2 * width, 4 * bins, 1)) for w in widths
        )
        self.classes = nn.ModuleList(
            nn.Sequential(conv_norm(w, 2 * width), nn.Conv2d(2 * width, classes, 1)) for w in widths
        )
        self.bins, self.count = bins, classes
        self.project = nn.Conv2d(bins, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(self.stem(x))
        coarse = self.coarse(fine)
        up = functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        fine = self.merge(torch.cat([up, fine], 1))
        parts = []
        for box, classes, level in zip(self.box, self.classes, (fine, coarse), strict=True):
            parts.append(torch.cat([box(level), classes(level)], 1).flatten(2))
        distances, scores = torch.cat(parts, 2).split((4 * self.bins, self.count), 1)
        batch, _, anchors = distances.shape
        distances = distances.view(batch, 4, self.bins, anchors).transpose(1, 2).softmax(1)
        return torch.cat([self.project(distances).view(batch, 4, anchors), scores.sigmoid()], 1)


class TimeBlock(nn.Module):
    """GroupNorm, convolution, a shift by the time embedding (denoising diffusion, Ho et al. 2020)."""

    def __init__(self, source: int, target: int, time: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(4, source), nn.SiLU(), nn.Conv2d(source, target, 3, 1, 1))
        self.shift = nn.Linear(time, target)
        self.second = nn.Sequential(nn.GroupNorm(4, target), nn.SiLU(), nn.Conv2d(target, target, 3, 1, 1))
        self.short = nn.Conv2d(source, target, 1) if source != target else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.first(x) + self.shift(time)[:, :, None, None]
        return self.short(x) + self.second(y)


class PixelAttention(nn.Module):
    """Self-attention over the positions of an image, QKV by one 1x1 convolution."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.heads = nn.GroupNorm(4, width), heads
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, high, wide = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, width // self.heads, high * wide).unbind(1)
        weights = (q.transpose(-1, -2) @ k * (width // self.heads) ** -0.5).softmax(-1)
        return x + self.out((v @ weights.transpose(-1, -2)).reshape(batch, width, high, wide))


class DiffusionUNet(nn.Module):
    """A small U-Net of a diffusion model."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        time = 32
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.stem = nn.Conv2d(3, width, 3, 1, 1)
        self.down1, self.down2 = TimeBlock(width, width, time), TimeBlock(width, 2 * width, time)
        self.pool1, self.pool2 = nn.Conv2d(width, width, 3, 2, 1), nn.Conv2d(2 * width, 2 * width, 3, 2, 1)
        self.middle1, self.middle2 = TimeBlock(2 * width, 2 * width, time), TimeBlock(2 * width, 2 * width, time)
        self.attention = PixelAttention(2 * width, 4)
        self.up2, self.up1 = TimeBlock(4 * width, width, time), TimeBlock(2 * width, width, time)
        self.head = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, 3, 3, 1, 1))

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        angles = steps[:, None] * torch.exp(-torch.arange(self.width // 2) * (6.0 / self.width))
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        first = self.down1(self.stem(x), time)
        second = self.down2(self.pool1(first), time)
        y = self.middle2(self.attention(self.middle1(self.pool2(second), time)), time)
        y = self.up2(torch.cat([functional.interpolate(y, scale_factor=2.0), second], 1), time)
        y = self.up1(torch.cat([functional.interpolate(y, scale_factor=2.0), first], 1), time)
        return self.head(y)


class UNet(nn.Module):
    """A segmentation U-Net with transposed convolutions (Ronneberger et al. 2015)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.encoders = nn.ModuleList()
        source = 3
        for scale in (1, 2, 4):
            target = scale * width
            self.encoders.append(nn.Sequential(conv_norm(source, target), conv_norm(target, target)))
            source = target
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in (2 * width, width))
        self.decoders = nn.ModuleList(conv_norm(2 * w, w) for w in (2 * width, width))
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for encoder in self.encoders:
            x = encoder(functional.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        for up, decoder, skip in zip(self.ups, self.decoders, reversed(skips[:-1]), strict=True):
            x = decoder(torch.cat([up(x), skip], 1))
        return self.head(x)


def _diffusion() -> Network:
    return Network(DiffusionUNet(), (torch.randn(1, 3, 32, 32), torch.rand(1) * 100), ("x", "steps"))


BUILDERS: dict[str, Callable[[], Network]] = {
    "cifar_resnet_option_a": _cifar_resnet,
    "lstm_tagger": _tagger(nn.LSTM, both=False),
    "bilstm_tagger_2": _tagger(nn.LSTM, both=True, layers=2),
    "gru_tagger": _tagger(nn.GRU, both=True),
    "rnn_tagger": _tagger(nn.RNN, both=False, first=False),
    "edsr": lambda: image_network(Upscaler(), (1, 3, 24, 24)),
    "yolo_c2f": lambda: image_network(Detector()),
    "diffusion_unet": _diffusion,
    "unet": lambda: image_network(UNet()),
}
