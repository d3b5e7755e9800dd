"""What an architecture of the zoo is, and weights under which a wrong slice cannot hide."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

IMAGE = (1, 3, 64, 64)


@dataclass(frozen=True)
class Network:
    """A module with its example inputs; ``batch`` says whether the first axis of every input may be left free."""

    module: nn.Module
    inputs: tuple[torch.Tensor, ...]
    names: tuple[str, ...]
    batch: bool = True


@dataclass(frozen=True)
class Architecture:
    """A name with its family in front, and what builds it."""

    name: str
    build: Callable[[], Network]


def image_network(module: nn.Module, shape: tuple[int, ...] = IMAGE, batch: bool = True) -> Network:
    return Network(module, (torch.randn(shape),), ("x",), batch)


def images(prefix: str, builders: dict[str, Callable[[], nn.Module]], shape: tuple[int, ...] = IMAGE) -> Any:
    """Yields architectures that take one image."""
    for name, build in builders.items():
        yield Architecture(f"{prefix}/{name}", lambda build=build: image_network(build(), shape))


def fill(module: nn.Module, seed: int = 0) -> None:
    """Gives every parameter and statistic random values.

    Fresh networks hold ones, zeros and tiny layer scales, and a wrong slice of equal numbers passes unseen. Scales of
    matrices follow He et al. 2015, so that magnitudes stay in range.
    """
    generator = torch.Generator().manual_seed(seed)
    linear = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear | nn.Embedding)}
    with torch.no_grad():
        for name, values in (*module.named_parameters(), *module.named_buffers()):
            if not values.is_floating_point() or _is_table(name):
                continue
            if values.dim() > 1 and min(values.shape[:2]) > 0:
                gain = 1.0 if id(values) in linear or values.dim() < 4 else 2.0
                deviation = (gain / max(1, values[0].numel())) ** 0.5
                values.copy_(torch.randn(values.shape, generator=generator) * deviation)
            elif values.dim() == 1 and values.numel():
                positive = name.rpartition(".")[2] not in ("bias", "running_mean", "beta", "in_proj_bias")
                noise = torch.rand(values.shape, generator=generator)
                values.copy_(noise + 0.5 if positive else (noise - 0.5) * 0.2)


def settle(network: Network) -> None:
    """Gives batch normalizations the statistics of random inputs.

    With others, activations of deep networks grow until a softmax is a maximum, and rounding decides which one.
    """
    norms = [module for module in network.module.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    try:
        with torch.no_grad():
            network.module(*(torch.cat([_like(value) for _ in range(4)]) for value in network.inputs))
    except (RuntimeError, ValueError):
        return  # takes no other batch: the statistics stay random
    finally:
        for norm in norms:
            norm.eval()


def _like(value: torch.Tensor) -> torch.Tensor:
    return torch.randn(value.shape) if value.is_floating_point() else value


def _is_table(name: str) -> bool:
    """Whether a buffer or parameter holds positions, masks, frequencies or decay rates, not learned numbers."""
    return bool(re.search(r"inv_freq|mask|index|coords|sinusoid|anchor|A_log|dt_bias|logit_scale|window$|filter", name))


def torchvision_operators() -> None:
    """Declares the compiled operators of torchvision where its wheel does not fit the installed torch.

    The wheels on PyPI are built against CUDA. None of the networks here calls these operators, but importing the
    package registers shapes for them.
    """
    if "torchvision" in sys.modules:
        return
    import importlib.util

    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    source = (Path(found.origin).parent / "_meta_registrations.py").read_text()
    for name in re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', source):
        signature = "(Tensor dets, Tensor scores, float iou_threshold)" if name == "nms" else "(Tensor input)"
        _LIBRARY.define(f"{name}{signature} -> Tensor")


_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
