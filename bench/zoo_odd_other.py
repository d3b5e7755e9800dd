"""Small networks over points, graphs, tables and coordinates, and networks that make weights of others."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo_network import Network


def mlp(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    parts: list[nn.Module] = []
    for source, target in pairwise(widths):
        parts += [nn.Linear(source, target), act()]
    return nn.Sequential(*parts[:-1])


class Points(nn.Module):
    """Shared layers for every point, a maximum over points, learned rotations (PointNet, Qi et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.turn, self.turn_head = self._shared(3, 32, 48), mlp(48, 32, 9)
        self.first = self._shared(3, 32, 32)
        self.bend, self.bend_head = self._shared(32, 32, 48), mlp(48, 32, 32 * 32)
        self.second, self.head = self._shared(32, 48, 64), mlp(64, 48, 10)

    @staticmethod
    def _shared(*widths: int) -> nn.Module:
        parts: list[nn.Module] = []
        for source, target in pairwise(widths):
            parts += [nn.Conv1d(source, target, 1), nn.BatchNorm1d(target), nn.ReLU()]
        return nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.turn_head(self.turn(x).max(2)[0]).view(-1, 3, 3) + torch.eye(3)
        y = self.first(torch.bmm(x.transpose(2, 1), matrix).transpose(2, 1))
        matrix = self.bend_head(self.bend(y).max(2)[0]).view(-1, 32, 32) + torch.eye(32)
        y = torch.bmm(y.transpose(2, 1), matrix).transpose(2, 1)
        return self.head(self.second(y).max(2)[0]).log_softmax(-1)


class Neighbours(nn.Module):
    """Features gathered from given neighbours and pooled with attention (RandLA-Net, Hu et al. 2020)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.place = mlp(3, width), mlp(6, width, width)
        self.score, self.mix, self.head = (
            nn.Linear(2 * width, 2 * width),
            mlp(2 * width, 64, width),
            nn.Linear(width, 6),
        )

    def forward(self, points: Tensor, near: Tensor) -> Tensor:
        batch, count, size = near.shape
        flat = near.reshape(batch, -1, 1)
        features = self.first(points)
        around = torch.gather(features, 1, flat.expand(-1, -1, features.shape[-1])).view(batch, count, size, -1)
        corners = torch.gather(points, 1, flat.expand(-1, -1, 3)).view(batch, count, size, 3)
        centre = points[:, :, None].expand(-1, -1, size, -1)
        joined = torch.cat([around, self.place(torch.cat([centre, corners - centre], -1))], -1)
        pooled = (self.score(joined).softmax(2) * joined).sum(2)
        return self.head(features + self.mix(pooled))


class Graph(nn.Module):
    """Convolutions over a dense adjacency matrix, degrees from it (Kipf and Welling 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 48), nn.Linear(48, 48), nn.Linear(48, 5)])

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        edges = edges.abs() + torch.eye(edges.shape[-1])
        degree = edges.sum(-1).pow(-0.5)
        edges = degree[..., :, None] * edges * degree[..., None, :]
        for layer in self.layers[:-1]:
            x = torch.relu(edges @ layer(x))
        return edges @ self.layers[-1](x)


class GraphAttention(nn.Module):
    """Attention between neighbours, heads side by side (Velickovic et al. 2018)."""

    def __init__(self, source: int = 8, heads: int = 4, size: int = 12) -> None:
        super().__init__()
        self.enter, self.heads, self.size = nn.Linear(source, heads * size), heads, size
        self.left, self.right = (nn.Parameter(torch.randn(1, 1, heads, size)) for _ in range(2))
        self.head = nn.Linear(heads * size, 5)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        batch, count, _ = x.shape
        y = self.enter(x).view(batch, count, self.heads, self.size)
        left, right = (y * self.left).sum(-1).transpose(1, 2), (y * self.right).sum(-1).transpose(1, 2)
        logits = functional.leaky_relu(left[..., :, None] + right[..., None, :], 0.2)
        logits = torch.where(edges[:, None] > 0, logits, torch.full_like(logits, -1e9))
        y = (logits.softmax(-1) @ y.transpose(1, 2)).transpose(1, 2).reshape(batch, count, -1)
        return self.head(functional.elu(y))


class Experts(nn.Module):
    """A dense mixture of experts: all run, a softmax weighs them."""

    def __init__(self, width: int = 32, hidden: int = 48, experts: int = 4) -> None:
        super().__init__()
        self.enter, self.gate = mlp(16, 64, width), nn.Linear(width, experts)
        self.up, self.down = (
            nn.Parameter(torch.randn(experts, width, hidden)),
            nn.Parameter(torch.randn(experts, hidden, width)),
        )
        self.head = nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        hidden = torch.relu(torch.einsum("bi,eih->beh", x, self.up))
        found = torch.einsum("beh,eho->beo", hidden, self.down)
        return self.head(x + (self.gate(x).softmax(-1)[..., None] * found).sum(1))


class TopExperts(nn.Module):
    """The two best experts of each row, by a mask from TopK."""

    def __init__(self, width: int = 32, experts: int = 4) -> None:
        super().__init__()
        self.enter, self.gate = mlp(16, 64, width), nn.Linear(width, experts)
        self.experts = nn.ModuleList(mlp(width, 48, width) for _ in range(experts))
        self.head = nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        weights, best = self.gate(x).softmax(-1).topk(2, -1)
        total = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            share = (weights * (best == index)).sum(-1, keepdim=True)
            total = total + share * expert(x)
        return self.head(x + total)


class DenseLayers(nn.Module):
    """Every layer reads all results before it."""

    def __init__(self, growth: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16 + i * growth, growth) for i in range(4))
        self.head = nn.Linear(16 + 4 * growth, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, torch.relu(layer(x))], -1)
        return self.head(x)


class Radiance(nn.Module):
    """Positional encodings, a skip of the input, two heads (NeRF, Mildenhall et al. 2020)."""

    def __init__(self, width: int = 64, bands: int = 4) -> None:
        super().__init__()
        source = 3 + 6 * bands
        self.first, self.second = mlp(source, width, width, width), mlp(width + source, width, width)
        self.density, self.feature = nn.Linear(width, 1), nn.Linear(width, width)
        self.colour = mlp(width + source, width // 2, 3)
        self.register_buffer("bands_table", 2.0 ** torch.arange(bands))

    def _encode(self, x: Tensor) -> Tensor:
        angles = (x[..., None] * self.bands_table).flatten(-2)
        return torch.cat([x, angles.sin(), angles.cos()], -1)

    def forward(self, place: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        place = self._encode(place)
        y = torch.relu(self.first(place))
        y = torch.relu(self.second(torch.cat([y, place], -1)))
        colour = self.colour(torch.cat([self.feature(y), self._encode(view)], -1))
        return functional.softplus(self.density(y)), colour.sigmoid()


class Hyper(nn.Module):
    """A network whose layer is written by another (Ha et al. 2017)."""

    def __init__(self, width: int = 32, code: int = 8) -> None:
        super().__init__()
        self.enter = mlp(16, 64, width)
        self.weight, self.bias = mlp(code, 24, width * width), mlp(code, 24, width)
        self.head, self.width = nn.Linear(width, 5), width

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        weight = self.weight(code).view(-1, self.width, self.width)
        return self.head(torch.relu(torch.bmm(weight, x[:, :, None])[:, :, 0] + self.bias(code)))


class Modulation(nn.Module):
    """Scales and shifts from a second input (FiLM, Perez et al. 2018)."""

    def __init__(self, width: int = 32, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1) for _ in range(layers))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for _ in range(layers))
        self.words = nn.Embedding(30, 24)
        self.reader = nn.GRU(24, 32, batch_first=True)
        self.film, self.head = nn.Linear(32, 2 * width * layers), nn.Linear(width, 5)
        self.layers, self.width = layers, width

    def forward(self, x: Tensor, question: Tensor) -> Tensor:
        state = self.reader(self.words(question))[1][0]
        film = self.film(state).view(-1, self.layers, 2 * self.width)
        x = self.stem(x)
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            scale, shift = film[:, index].chunk(2, 1)
            y = norm(convolution(x))
            x = x + torch.relu(y * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
        return self.head(x.amax((2, 3)))


class Table(nn.Module):
    """An embedding for every category beside numbers (entity embeddings)."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(count, size) for count, size in ((10, 8), (20, 12), (6, 4)))
        self.norm = nn.BatchNorm1d(5)
        self.body = nn.Sequential(
            nn.Linear(29, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Linear(64, 32), nn.ReLU(), nn.BatchNorm1d(32)
        )
        self.head = nn.Linear(32, 2)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        parts = [table(categories[:, index]) for index, table in enumerate(self.embeddings)]
        return self.head(self.body(torch.cat([*parts, self.norm(numbers)], 1)))


class Recommender(nn.Module):
    """Dot products between embeddings (DLRM, Naumov et al. 2019)."""

    def __init__(self, width: int = 16, tables: int = 4) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(20, width) for _ in range(tables))
        self.bottom = mlp(6, 64, 32, width)
        rows, columns = torch.tril_indices(tables + 1, tables + 1, -1)
        self.register_buffer("pairs_index", rows * (tables + 1) + columns)
        self.top = mlp(width + self.pairs_index.numel(), 64, 32, 1)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        dense = torch.relu(self.bottom(numbers))
        parts = [table(categories[:, index]) for index, table in enumerate(self.embeddings)]
        every = torch.stack([dense, *parts], 1)
        products = torch.bmm(every, every.transpose(1, 2)).flatten(1)[:, self.pairs_index]
        return self.top(torch.cat([dense, products], 1)).sigmoid()


class Splines(nn.Module):
    """Learned B-splines on every edge (Kolmogorov-Arnold networks, Liu et al. 2024)."""

    def __init__(self, source: int, target: int, size: int = 5, order: int = 3) -> None:
        super().__init__()
        knots = (torch.arange(-order, size + order + 1) * 2 / size - 1).expand(source, -1).contiguous()
        self.register_buffer("knots_table", knots)
        self.base, self.order = nn.Linear(source, target, bias=False), order
        self.weight = nn.Parameter(torch.randn(target, source, size + order))

    def forward(self, x: Tensor) -> Tensor:
        knots, y = self.knots_table, x[..., None]
        bases = ((y >= knots[:, :-1]) & (y < knots[:, 1:])).to(x.dtype)
        for order in range(1, self.order + 1):
            left = (y - knots[:, : -order - 1]) / (knots[:, order:-1] - knots[:, : -order - 1])
            right = (knots[:, order + 1 :] - y) / (knots[:, order + 1 :] - knots[:, 1:-order])
            bases = left * bases[..., :-1] + right * bases[..., 1:]
        return self.base(functional.silu(x)) + functional.linear(bases.flatten(-2), self.weight.flatten(1))


class TwoTowers(nn.Module):
    """Images and sentences in one space (CLIP, Radford et al. 2021)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 17, width))
        self.words, self.order = nn.Embedding(40, width), nn.Parameter(torch.randn(1, 9, width))
        self.vision, self.text = self._body(width), self._body(width)
        self.image_head, self.text_head = nn.Linear(width, 24, bias=False), nn.Linear(width, 24, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    @staticmethod
    def _body(width: int) -> nn.Module:
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        return nn.Sequential(layer, nn.LayerNorm(width))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(y.shape[0], -1, -1), y], 1) + self.places
        image = functional.normalize(self.image_head(self.vision(y)[:, 0]), dim=-1)
        text = functional.normalize(self.text_head(self.text(self.words(words) + self.order)[:, -1]), dim=-1)
        return self.logit_scale.exp() * image @ text.t()


def _graph(build: Callable[[], nn.Module]) -> Callable[[], Network]:
    return lambda: Network(build(), (torch.randn(1, 10, 8), torch.rand(1, 10, 10)), ("x", "edges"))


def _rows(build: Callable[[], nn.Module], width: int = 16) -> Callable[[], Network]:
    return lambda: Network(build(), (torch.randn(3, width),), ("x",))


def _table(build: Callable[[], nn.Module], numbers: int, columns: int) -> Callable[[], Network]:
    inputs = (torch.randn(3, numbers), torch.randint(0, 6, (3, columns)))
    return lambda: Network(build(), inputs, ("numbers", "categories"))


OTHER: dict[str, Callable[[], Network]] = {
    "pointnet": lambda: Network(Points(), (torch.randn(1, 3, 40),), ("x",)),
    "randla": lambda: Network(
        Neighbours(), (torch.randn(1, 20, 3), torch.randint(0, 20, (1, 20, 4))), ("points", "near")
    ),
    "gcn": _graph(Graph),
    "gat": _graph(GraphAttention),
    "experts_dense": _rows(Experts),
    "experts_top2": _rows(TopExperts),
    "dense_mlp": _rows(DenseLayers),
    "nerf": lambda: Network(Radiance(), (torch.randn(6, 3), torch.randn(6, 3)), ("place", "view")),
    "hypernetwork": lambda: Network(Hyper(), (torch.randn(3, 16), torch.randn(3, 8)), ("x", "code")),
    "film": lambda: Network(Modulation(), (torch.randn(1, 3, 24, 24), torch.randint(0, 30, (1, 6))), ("x", "question")),
    "tabular": _table(Table, 5, 3),
    "dlrm": _table(Recommender, 6, 4),
    "kan": _rows(lambda: nn.Sequential(Splines(16, 32), Splines(32, 24), Splines(24, 5))),
    "clip": lambda: Network(TwoTowers(), (torch.randn(1, 3, 32, 32), torch.randint(0, 40, (1, 9))), ("x", "words")),
}
