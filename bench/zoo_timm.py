"""Architectures of timm, narrowed by their own arguments."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from zoo_network import Architecture, Network, image_network, torchvision_operators

SMALL_VIT: dict[str, Any] = {"img_size": 64, "embed_dim": 64, "depth": 2, "num_heads": 4}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": SMALL_VIT,
    "deit_tiny_distilled_patch16_224": SMALL_VIT,
    "ghostnet_100": {"width": 0.5},
    "mixer_s16_224": {"img_size": 64, "embed_dim": 64, "num_blocks": 2},
    "repvgg_a0": {},
    "convnextv2_atto": {"depths": (1, 1, 2, 1)},
}


def timm_architectures() -> Iterator[Architecture]:
    """Yields the architectures of timm."""
    for name, options in ARCHITECTURES.items():
        yield Architecture(f"timm/{name}", partial(_build, name, options))


def _build(name: str, options: dict[str, Any]) -> Network:
    torchvision_operators()
    import timm

    arguments = {"num_classes": 10, **options}
    size = arguments.get("img_size", arguments.pop("size", 64))
    size = size if isinstance(size, int) else size[0]
    return image_network(timm.create_model(name, pretrained=False, **arguments), (1, 3, size, size))
