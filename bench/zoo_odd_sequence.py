"""Small networks over sequences: caches, gated convolutions, recurrent decoders, branches and loops that stay."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo_network import Network


class CachedDecoder(nn.Module):
    """A decoder that reads the keys and values of earlier steps and returns the longer ones."""

    def __init__(self, width: int = 32, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embedding, self.heads = nn.Embedding(40, width), heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers + 1))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(layers)
        )
        self.head = nn.Linear(width, 40, bias=False)

    def forward(self, words: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embedding(words)
        batch, length, width = x.shape
        present = []
        for layer, (qkv, out, mlp) in enumerate(zip(self.qkv, self.out, self.mlp, strict=True)):
            parts = qkv(self.norms[2 * layer](x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            keys = torch.cat([past[layer, 0], parts[1]], 2)
            values = torch.cat([past[layer, 1], parts[2]], 2)
            present.append(torch.stack([keys, values]))
            weights = (parts[0] @ keys.transpose(-1, -2) / math.sqrt(parts.shape[-1])).softmax(-1)
            x = x + out((weights @ values).transpose(1, 2).reshape(batch, length, width))
            x = x + mlp(self.norms[2 * layer + 1](x))
        return self.head(self.norms[-1](x)), torch.stack(present)


class Conformer(nn.Module):
    """Half-step MLPs around attention with relative positions and a gated convolution (Gulati et al. 2020)."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.first, self.last = self._mlp(width), self._mlp(width)
        self.norm, self.heads = nn.LayerNorm(width), heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.position = nn.Linear(width, width, bias=False)
        self.content_bias = nn.Parameter(torch.randn(heads, width // heads))
        self.position_bias = nn.Parameter(torch.randn(heads, width // heads))
        self.register_buffer("table", torch.randn(1, 2 * 12 - 1, width))
        self.before = nn.Sequential(nn.Conv1d(width, 2 * width, 1), nn.GLU(1))
        self.after = nn.Sequential(
            nn.Conv1d(width, width, 7, 1, 3, groups=width), nn.BatchNorm1d(width), nn.SiLU(), nn.Conv1d(width, width, 1)
        )
        self.end = nn.LayerNorm(width)

    @staticmethod
    def _mlp(width: int) -> nn.Module:
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))

    def _attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        query = self.query(x).view(split)
        key, value = (part(x).view(split).transpose(1, 2) for part in (self.key, self.value))
        places = self.position(self.table).view(1, -1, self.heads, width // self.heads).transpose(1, 2)
        content = (query + self.content_bias).transpose(1, 2) @ key.transpose(-1, -2)
        shift = (query + self.position_bias).transpose(1, 2) @ places.transpose(-1, -2)
        shift = functional.pad(shift, (1, 0)).view(batch, self.heads, -1, length)[:, :, 1:]
        shift = shift.reshape(batch, self.heads, length, -1)[..., :length]
        weights = ((content + shift) / math.sqrt(width // self.heads)).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).reshape(batch, length, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.first(x)
        x = x + self._attend(self.norm(x))
        x = x + self.after(self.before(x.transpose(1, 2))).transpose(1, 2)
        return self.end(x + 0.5 * self.last(x))


class Speech(nn.Module):
    """Convolutional subsampling, a conformer block, a score for every frame."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.sub = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.enter, self.body = nn.Linear(16 * 5, width), Conformer(width)
        self.head = nn.Linear(width, 20)

    def forward(self, x: Tensor) -> Tensor:
        y = self.sub(x[:, None]).transpose(1, 2).flatten(2)
        return self.head(self.body(self.enter(y))).log_softmax(-1)


class WaveNet(nn.Module):
    """Gated dilated causal convolutions with skips (van den Oord et al. 2016)."""

    def __init__(self, width: int = 24, skip: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, width, 1)
        self.gates = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**i) for i in range(4))
        self.same = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(4))
        self.skips = nn.ModuleList(nn.Conv1d(width, skip, 1) for _ in range(4))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(skip, 32, 1), nn.ReLU(), nn.Conv1d(32, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), 0
        for index, (gate, same, skip) in enumerate(zip(self.gates, self.same, self.skips, strict=True)):
            value, opening = gate(functional.pad(x, (2**index, 0))).chunk(2, 1)
            y = torch.tanh(value) * torch.sigmoid(opening)
            total = total + skip(y)
            x = x + same(y)
        return self.head(total)


class CausalBlock(nn.Module):
    """Weight-normalized dilated convolutions whose end is cut off (TCN, Bai et al. 2018)."""

    def __init__(self, source: int, target: int, dilation: int) -> None:
        super().__init__()
        self.cut = 2 * dilation
        norm = nn.utils.parametrizations.weight_norm
        self.first = norm(nn.Conv1d(source, target, 3, 1, self.cut, dilation))
        self.second = norm(nn.Conv1d(target, target, 3, 1, self.cut, dilation))
        self.short = nn.Conv1d(source, target, 1) if source != target else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x)[:, :, : -self.cut])
        return torch.relu(self.short(x) + torch.relu(self.second(y)[:, :, : -self.cut]))


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(CausalBlock(4, 24, 1), CausalBlock(24, 32, 2), CausalBlock(32, 32, 4))
        self.head = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[:, :, -1])


class LinearBias(nn.Module):
    """Causal attention with a slope for every head instead of positions (ALiBi, Press et al. 2022)."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.embedding, self.heads = nn.Embedding(40, width), heads
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.register_buffer("slopes_table", 2.0 ** -(torch.arange(1, heads + 1) * 8 / heads).view(heads, 1, 1))
        self.head = nn.Linear(width, 40)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embedding(words)
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        steps = torch.arange(length)
        bias = (steps[None] - steps[:, None]).float() * self.slopes_table
        bias = bias.masked_fill(steps[None] > steps[:, None], float("-inf"))
        weights = (q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5 + bias).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))
        return self.head(x + self.mlp(x))


class Perceiver(nn.Module):
    """A few learned latents that read a long input (Jaegle et al. 2021)."""

    def __init__(self, source: int = 12, width: int = 32, latents: int = 8) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, latents, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(source), nn.LayerNorm(width)])
        self.read = nn.MultiheadAttention(width, 4, kdim=source, vdim=source, batch_first=True)
        self.think = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.query = nn.Parameter(torch.randn(1, 3, width))
        self.write, self.head = nn.MultiheadAttention(width, 2, batch_first=True), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.latents.expand(x.shape[0], -1, -1)
        x = self.norms[1](x)
        y = y + self.read(self.norms[0](y), x, x, need_weights=False)[0]
        y = self.norms[2](self.think(y))
        return self.head(self.write(self.query.expand(x.shape[0], -1, -1), y, y, need_weights=False)[0])


class Translator(nn.Module):
    """Recurrent encoder, and a decoder cell with additive attention, unrolled (Bahdanau et al. 2015)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(40, 24), nn.Embedding(40, 24)
        self.encoder = nn.LSTM(24, width, batch_first=True, bidirectional=True)
        self.key, self.query, self.energy = nn.Linear(2 * width, 24), nn.Linear(48, 24), nn.Linear(24, 1)
        self.decoder = nn.LSTM(24 + 2 * width, 48, batch_first=True)
        self.head = nn.Linear(48 + 2 * width, 40)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory = self.encoder(self.source(source))[0]
        keys, words = self.key(memory), self.target(target)
        state, context, found = None, memory.mean(1, keepdim=True), []
        for step in range(target.shape[1]):
            y, state = self.decoder(torch.cat([words[:, step : step + 1], context], 2), state)
            weights = self.energy(torch.tanh(keys + self.query(y))).softmax(1)
            context = (weights * memory).sum(1, keepdim=True)
            found.append(self.head(torch.cat([y, context], 2)))
        return torch.cat(found, 1)


class Packed(nn.Module):
    """Gated recurrent layers over a packed batch of sequences of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 24)
        self.body = nn.GRU(24, 32, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 6)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.embedding(words), lengths, batch_first=True)
        y, _ = nn.utils.rnn.pad_packed_sequence(self.body(packed)[0], batch_first=True)
        return self.head(y.max(1)[0])


class Synthesizer(nn.Module):
    """Convolutions, a bidirectional LSTM, a mel decoder with a residual convolutional end (Tacotron 2-like)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, width)
        self.convolutions = nn.Sequential(*(self._block(width, width) for _ in range(2)))
        self.body = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)
        self.decoder, self.mel = nn.LSTM(width, 48, batch_first=True), nn.Linear(48, 20)
        self.end = nn.Sequential(self._block(20, 32), self._block(32, 32), nn.Conv1d(32, 20, 5, 1, 2))

    @staticmethod
    def _block(source: int, target: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(source, target, 5, 1, 2), nn.BatchNorm1d(target), nn.ReLU())

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        y = self.convolutions(self.embedding(words).transpose(1, 2)).transpose(1, 2)
        mel = self.mel(self.decoder(self.body(y)[0])[0]).transpose(1, 2)
        return mel, mel + self.end(mel)


@torch.jit.script
def _either(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    if bool(x.sum() > 0):
        return torch.relu(functional.linear(x, left))
    return torch.tanh(functional.linear(x, right))


@torch.jit.script
def _halve(x: Tensor) -> Tensor:
    if bool(x.mean() > 0):
        return x * 0.5
    return torch.sigmoid(x)


@torch.jit.script
def _repeat(x: Tensor, times: Tensor, weight: Tensor) -> Tensor:
    for _ in range(int(times.item())):
        x = torch.tanh(functional.linear(x, weight)) + x
    return x


class Branching(nn.Module):
    """Layers around a branch on the data; the branch has layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32)), nn.Linear(48, 8)
        self.left, self.right = (nn.Parameter(torch.randn(48, 32)) for _ in range(2))
        self.rest = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 48))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.rest(_either(self.first(x), self.left, self.right)))


class PlainBranch(nn.Module):
    """A branch of element-wise functions between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 48)), nn.Linear(48, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(_halve(self.first(x)))


class Looping(nn.Module):
    """Layers around a loop as long as an input says."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        self.weight, self.last = nn.Parameter(torch.randn(32, 32)), nn.Linear(32, 8)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        return self.last(_repeat(self.first(x), times, self.weight))


def _words(build: Callable[[], nn.Module], length: int = 9) -> Callable[[], Network]:
    return lambda: Network(build(), (torch.randint(0, 40, (1, length)),), ("words",))


def _cached() -> Network:
    inputs = (torch.randint(0, 40, (1, 3)), torch.randn(2, 2, 1, 4, 5, 8))
    return Network(CachedDecoder(), inputs, ("words", "past"), batch=False)


def _translator() -> Network:
    inputs = (torch.randint(0, 40, (1, 7)), torch.randint(0, 40, (1, 4)))
    return Network(Translator(), inputs, ("source", "target"))


SEQUENCES: dict[str, Callable[[], Network]] = {
    "cached_decoder": _cached,
    "conformer": lambda: Network(Speech(), (torch.randn(1, 48, 20),), ("x",)),
    "wavenet": lambda: Network(WaveNet(), (torch.randn(1, 1, 40),), ("x",)),
    "tcn": lambda: Network(Causal(), (torch.randn(1, 4, 24),), ("x",)),
    "alibi": _words(LinearBias),
    "perceiver": lambda: Network(Perceiver(), (torch.randn(1, 30, 12),), ("x",)),
    "attentive_lstm": _translator,
    "packed_gru": lambda: Network(
        Packed(), (torch.randint(0, 40, (3, 7)), torch.tensor([7, 5, 2])), ("words", "lengths"), batch=False
    ),
    "tacotron": _words(Synthesizer),
    "if_layers": lambda: Network(Branching(), (torch.randn(4, 16),), ("x",)),
    "if_plain": lambda: Network(PlainBranch(), (torch.randn(4, 16),), ("x",)),
    "loop": lambda: Network(Looping(), (torch.randn(4, 16), torch.tensor(3)), ("x", "times"), batch=False),
}
