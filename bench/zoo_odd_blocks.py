"""Small image networks with odd blocks: branches, mixed kernels, weights that are mixed or rotated in the graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo_network import Network, image_network
from zoo_own import conv_norm


def relu_norm(source: int, target: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    return conv_norm(source, target, kernel, stride, nn.ReLU())


def pooled(width: int, classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def grouped(source: int, target: int, groups: int, kernel: int = 1, stride: int = 1) -> nn.Module:
    inner = nn.Conv2d(source, target, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(inner, nn.BatchNorm2d(target))


class Octave(nn.Module):
    """Two resolutions that exchange (Chen et al. 2019)."""

    def __init__(self, width: int, low: int) -> None:
        super().__init__()
        high = width - low
        self.same, self.down = nn.Conv2d(high, high, 3, 1, 1), nn.Conv2d(high, low, 3, 1, 1)
        self.deep, self.up = nn.Conv2d(low, low, 3, 1, 1), nn.Conv2d(low, high, 3, 1, 1)

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        high, low = x
        up = functional.interpolate(self.up(low), scale_factor=2.0)
        down = self.down(functional.avg_pool2d(high, 2)) + self.deep(low)
        return torch.relu(self.same(high) + up), torch.relu(down)


class OctaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.high, self.low = relu_norm(3, 24), relu_norm(3, 16)
        self.body = nn.Sequential(Octave(40, 16), Octave(40, 16))
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        high, low = self.body((self.high(x), self.low(functional.avg_pool2d(x, 2))))
        return self.head(torch.cat([high.mean((2, 3)), low.mean((2, 3))], 1))


class GroupShuffle(nn.Module):
    """Grouped 1 x 1 convolutions around a channel shuffle (ShuffleNet v1, Zhang et al. 2018)."""

    def __init__(self, source: int, target: int, groups: int, stride: int) -> None:
        super().__init__()
        inner, self.groups, self.stride = target // 4, groups, stride
        rest = target - source if stride == 2 else target
        self.first = grouped(source, inner, groups)
        self.depth = grouped(inner, inner, inner, 3, stride)
        self.last = grouped(inner, rest, groups)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        batch, width, high, wide = y.shape
        y = y.view(batch, self.groups, width // self.groups, high, wide).transpose(1, 2).reshape(batch, -1, high, wide)
        y = self.last(self.depth(y))
        if self.stride == 2:
            return torch.relu(torch.cat([functional.avg_pool2d(x, 3, 2, 1), y], 1))
        return torch.relu(x + y)


class Branches(nn.Module):
    """Aggregated transformations written as branches and a concatenation (ResNeXt, Xie et al. 2017)."""

    def __init__(self, width: int, inner: int, count: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(relu_norm(width, inner, 1), relu_norm(inner, inner)) for _ in range(count)
        )
        self.last = nn.Sequential(nn.Conv2d(inner * count, width, 1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.last(torch.cat([part(x) for part in self.parts], 1)))


class MixedKernels(nn.Module):
    """Depthwise kernels of several sizes on unequal parts (MixConv, Tan and Le 2019)."""

    def __init__(self, width: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = [w.numel() for w in torch.arange(4 * width).tensor_split(len(sizes))]
        self.first = relu_norm(width, 4 * width, 1)
        self.parts = nn.ModuleList(
            nn.Conv2d(w, w, kernel, 1, kernel // 2, groups=w) for w, kernel in zip(self.widths, sizes, strict=True)
        )
        self.last = nn.Sequential(nn.BatchNorm2d(4 * width), nn.ReLU(), nn.Conv2d(4 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        pieces = self.first(x).split(self.widths, 1)
        return x + self.last(torch.cat([part(y) for part, y in zip(self.parts, pieces, strict=True)], 1))


class Conditional(nn.Module):
    """Kernels mixed by a routing of the image (CondConv, Yang et al. 2019)."""

    def __init__(self, source: int, target: int, experts: int = 4) -> None:
        super().__init__()
        self.route = nn.Linear(source, experts)
        self.weight = nn.Parameter(torch.randn(experts, target, source, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        batch, source, high, wide = x.shape
        routing = self.route(x.mean((2, 3))).softmax(1)
        weight = torch.matmul(routing, self.weight.view(self.weight.shape[0], -1))
        weight = weight.view(-1, source, 3, 3)
        y = functional.conv2d(x.reshape(1, batch * source, high, wide), weight, padding=1, groups=batch)
        return torch.relu(y.view(batch, -1, high, wide))


class Asymmetric(nn.Module):
    """1 x 7 and 7 x 1 kernels in branches (Inception v3, Szegedy et al. 2016)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.one = relu_norm(width, inner, 1)
        self.long = nn.Sequential(
            relu_norm(width, inner, 1),
            nn.Conv2d(inner, inner, (1, 7), 1, (0, 3)),
            nn.Conv2d(inner, inner, (7, 1), 1, (3, 0)),
            nn.ReLU(),
        )
        self.split = relu_norm(width, inner, 1)
        self.left, self.right = nn.Conv2d(inner, inner, (1, 3), 1, (0, 1)), nn.Conv2d(inner, inner, (3, 1), 1, (1, 0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.split(x)
        pool = functional.avg_pool2d(x, 3, 1, 1)
        return torch.cat([self.one(x), self.long(x), self.left(y), self.right(y), pool], 1)


class Bilinear(nn.Module):
    """Outer products of features, signed root, normalization (Lin et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(relu_norm(3, 32, 3, 2), relu_norm(32, 64), relu_norm(64, 24))
        self.head = nn.Linear(24 * 24, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).flatten(2)
        y = (y @ y.transpose(1, 2) / y.shape[-1]).flatten(1)
        return self.head(functional.normalize(torch.sign(y) * torch.sqrt(y.abs() + 1e-5)))


class Capsules(nn.Module):
    """Capsules that agree by routing (Sabour et al. 2017)."""

    def __init__(self, kinds: int = 8, size: int = 4, classes: int = 5, out: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(relu_norm(3, 32, 3, 2), relu_norm(32, 32, 3, 2), nn.Conv2d(32, kinds * size, 3, 2, 1))
        self.size, self.weight = size, nn.Parameter(torch.randn(1, kinds * 16, classes, out, size) * 0.3)

    @staticmethod
    def _squash(x: Tensor) -> Tensor:
        square = (x * x).sum(-1, keepdim=True)
        return x * square / (1 + square) / torch.sqrt(square + 1e-8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = self._squash(y.view(y.shape[0], -1, self.size))
        votes = (self.weight @ y[:, :, None, :, None]).squeeze(-1)
        logits = votes.new_zeros(y.shape[0], votes.shape[1], votes.shape[2], 1)
        result = self._squash(votes.mean(1))
        for _ in range(2):
            result = self._squash((logits.softmax(2) * votes).sum(1))
            logits = logits + (votes * result[:, None]).sum(-1, keepdim=True)
        return result.norm(dim=-1)


class Unfused(nn.Module):
    """Three parallel branches with a normalization each (RepVGG before fusion, Ding et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = conv_norm(width, width, 3, 1, nn.Identity())
        self.point = conv_norm(width, width, 1, 1, nn.Identity())
        self.same = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.wide(x) + self.point(x) + self.same(x))


class Binary(nn.Module):
    """Signs of activations and of weights, with a scale for each filter (XNOR-Net, Rastegari et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.weight = nn.Parameter(torch.randn(width, width, 3, 3))
        self.act = nn.PReLU(width)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().mean((1, 2, 3), keepdim=True)
        y = functional.conv2d(torch.sign(self.norm(x)), torch.sign(self.weight) * scale, padding=1)
        return self.act(x + y)


class Rotated(nn.Module):
    """One kernel in four orientations, pooled over them (Cohen and Welling 2016)."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(target, source, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        turns = [self.weight, self.weight.transpose(2, 3).flip(2)]
        turns += [turn.flip(2).flip(3) for turn in turns]
        y = functional.conv2d(x, torch.cat(turns), padding=1)
        return torch.relu(y.view(y.shape[0], 4, -1, *y.shape[2:]).max(1)[0])


class Autoencoder(nn.Module):
    """Mean and deviation, a deterministic draw, transposed convolutions (Kingma and Welling 2014)."""

    def __init__(self, latent: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(relu_norm(3, 32, 3, 2), relu_norm(32, 64, 3, 2), nn.Flatten())
        self.mean, self.deviation = nn.Linear(64 * 64, latent), nn.Linear(64 * 64, latent)
        self.expand = nn.Linear(latent, 64 * 64)
        self.up = nn.Sequential(nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4, 2, 1))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.encoder(x)
        mean, deviation = self.mean(y), self.deviation(y)
        z = mean + noise * torch.exp(0.5 * deviation)
        return self.up(self.expand(z).view(-1, 64, 8, 8)).sigmoid(), mean, deviation


class TwoGroupCounts(nn.Module):
    """One tensor read by convolutions of two and of four groups."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.two, self.four = grouped(width, width, 2, 3), grouped(width, width, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.two(x) + self.four(x))


def stack(*blocks: Callable[[], nn.Module], source: int = 32, width: int = 32) -> Callable[[], Network]:
    """Returns what builds a network of a stem, some blocks and a classifier."""

    def build() -> Network:
        body = [block() for block in blocks]
        return image_network(nn.Sequential(relu_norm(3, source, 3, 2), *body, pooled(width)), (1, 3, 32, 32))

    return build


def _shuffle() -> Network:
    body = [GroupShuffle(32, 64, 2, 2), GroupShuffle(64, 64, 2, 1), GroupShuffle(64, 128, 2, 2)]
    return stack(*(lambda block=block: block for block in body), source=32, width=128)()


def _autoencoder() -> Network:
    return Network(Autoencoder(), (torch.randn(1, 3, 32, 32), torch.randn(1, 16)), ("x", "noise"))


BLOCKS: dict[str, Callable[[], Network]] = {
    "octave": lambda: image_network(OctaveNet(), (1, 3, 32, 32)),
    "shufflenet_v1": _shuffle,
    "resnext_branches": stack(lambda: Branches(32, 8, 4), lambda: Branches(32, 8, 4)),
    "mixconv": stack(lambda: MixedKernels(32, (3, 5, 7)), lambda: MixedKernels(32, (3, 5, 7))),
    "condconv": stack(lambda: Conditional(32, 48), lambda: Conditional(48, 32)),
    "inception_asymmetric": stack(lambda: Asymmetric(32, 16), lambda: Asymmetric(96, 16), width=160),
    "bilinear_pooling": lambda: image_network(Bilinear(), (1, 3, 32, 32)),
    "capsules": lambda: image_network(Capsules(), (1, 3, 32, 32)),
    "repvgg_unfused": stack(lambda: Unfused(32), lambda: Unfused(32)),
    "binary": stack(lambda: Binary(32), lambda: Binary(32)),
    "rotated": stack(lambda: Rotated(32, 32), lambda: Rotated(32, 32)),
    "vae": _autoencoder,
    "two_group_counts": stack(lambda: TwoGroupCounts(32), lambda: relu_norm(32, 32), lambda: TwoGroupCounts(32)),
}
