"""Architectures of torchvision; narrower where the constructor allows it."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn
from zoo_network import Architecture, Network, image_network, images, torchvision_operators

PLAIN = (
    "densenet121", "densenet161", "efficientnet_b0", "efficientnet_v2_s", "mnasnet0_5", "mnasnet1_0",
    "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "regnet_x_400mf", "regnet_y_400mf", "resnet18",
    "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0",
    "squeezenet1_0", "squeezenet1_1", "convnext_tiny",
)  # fmt: skip


def torchvision_architectures() -> Iterator[Architecture]:
    """Yields the architectures of torchvision."""
    torchvision_operators()
    from torchvision import models

    for name in PLAIN:
        yield Architecture(f"torchvision/{name}", partial(_plain, name))
    for name in ("googlenet", "inception_v3"):
        yield Architecture(f"torchvision/{name}", partial(_inception, name))
    yield from images("torchvision", {"alexnet": _alexnet, "vgg11_bn": lambda: _vgg("A"), "vgg16_bn": lambda: _vgg("D"),
                                      "vgg16": lambda: _vgg("D", norm=False)})  # fmt: skip
    transformer = partial(
        models.VisionTransformer, image_size=64, patch_size=8, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128,
        num_classes=10,
    )  # fmt: skip
    window: dict[str, Any] = {
        "patch_size": [2, 2], "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4],
        "num_classes": 10,
    }  # fmt: skip
    yield from images("torchvision", {
        "vit": transformer,
        "swin": partial(models.SwinTransformer, **window),
        "swin_v2": partial(models.SwinTransformer, **window, block=_swin_v2_block(), downsample_layer=_merge_v2()),
        "maxvit": lambda: models.MaxVit(
            (64, 64), stem_channels=16, partition_size=2, block_channels=[16, 32], block_layers=[1, 1], head_dim=8,
            stochastic_depth_prob=0.0, num_classes=10,
        ),
    })  # fmt: skip
    for name in ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"):
        yield Architecture(f"torchvision/{name}", partial(_segmentation, name))
    yield Architecture("torchvision/r2plus1d", partial(_video, "r2plus1d_18"))
    yield Architecture("torchvision/raft_encoder", _raft_encoder)


def _plain(name: str) -> Network:
    from torchvision import models

    return image_network(models.get_model(name, weights=None, num_classes=10))


def _inception(name: str) -> Network:
    from torchvision import models

    module = models.get_model(name, weights=None, num_classes=10, aux_logits=False, init_weights=False)
    return image_network(module, (1, 3, 96, 96))


def _alexnet() -> nn.Module:
    from torchvision import models

    module = models.alexnet(weights=None)
    module.avgpool = nn.AdaptiveAvgPool2d(1)
    module.classifier = nn.Sequential(nn.Dropout(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    return module


def _vgg(letter: str, norm: bool = True) -> nn.Module:
    from torchvision.models import vgg

    widths = [width if isinstance(width, str) else width // 4 for width in vgg.cfgs[letter]]
    module = vgg.VGG(vgg.make_layers(widths, batch_norm=norm), num_classes=10)
    module.avgpool = nn.AdaptiveAvgPool2d(2)
    module.classifier = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, 10))
    return module


def _swin_v2_block() -> Any:
    from torchvision.models.swin_transformer import SwinTransformerBlockV2

    return SwinTransformerBlockV2


def _merge_v2() -> Any:
    from torchvision.models.swin_transformer import PatchMergingV2

    return PatchMergingV2


class _Only(nn.Module):
    """Keeps one entry of a dictionary of outputs."""

    def __init__(self, inner: nn.Module, key: str) -> None:
        super().__init__()
        self.inner, self.key = inner, key

    def forward(self, x: Any) -> Any:
        return self.inner(x)[self.key]


def _segmentation(name: str) -> Network:
    from torchvision import models

    return image_network(_Only(models.get_model(name, weights=None, weights_backbone=None, num_classes=5), "out"))


def _video(name: str) -> Network:
    from torchvision import models

    return image_network(models.get_model(name, weights=None, num_classes=10), (1, 3, 4, 32, 32))


def _raft_encoder() -> Network:
    from torchvision.models.optical_flow.raft import FeatureEncoder, ResidualBlock

    encoder = FeatureEncoder(
        block=ResidualBlock, layers=(16, 16, 24, 32, 64), norm_layer=partial(nn.InstanceNorm2d, affine=True)
    )
    return image_network(encoder)
