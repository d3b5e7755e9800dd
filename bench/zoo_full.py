"""Networks at the size at which they are published, for shares of MACs and for the time of the analysis."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from zoo_network import Architecture, Network, image_network, torchvision_operators
from zoo_own import Detector
from zoo_transformers import Pick

LENGTH = 128

LLAMA = {
    "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8,
    "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 512,
}  # fmt: skip

IMAGE_NETWORKS = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "vgg16_bn",
    "googlenet", "inception_v3", "regnet_y_400mf", "resnext50_32x4d", "convnext_tiny", "vit_b_16", "swin_t",
    "shufflenet_v2_x1_0", "squeezenet1_1", "mnasnet1_0",
)  # fmt: skip


def full_architectures() -> Iterator[Architecture]:
    """Yields the networks: torchvision at 224 pixels (inception at 299), a detector at 320, text at 128 tokens."""
    for name in IMAGE_NETWORKS:
        yield Architecture(f"full/{name}", partial(_image, name))
    yield Architecture("full/yolo", lambda: image_network(Detector(16, 80, 16), (1, 3, 320, 320)))
    yield Architecture("full/bert_base", partial(_text, "BertModel", {}))
    yield Architecture("full/llama", partial(_text, "LlamaModel", LLAMA))


def _image(name: str) -> Network:
    torchvision_operators()
    from torchvision import models

    plain: dict[str, Any] = (
        {"aux_logits": False, "init_weights": False} if "ception" in name or name == "googlenet" else {}
    )
    module: nn.Module = models.get_model(name, weights=None, **plain)
    size = 299 if name == "inception_v3" else 224
    return image_network(module, (1, 3, size, size))


def _text(model: str, options: dict[str, Any]) -> Network:
    import transformers

    config = getattr(transformers, model.replace("Model", "Config"))(**options)
    inner = getattr(transformers, model)(config)
    inner.config._attn_implementation = "eager"
    fixed: dict[str, Any] = {"use_cache": False}
    names = ("input_ids", "attention_mask")
    tokens = torch.randint(0, config.vocab_size, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    return Network(Pick(inner, names, fixed), (tokens, torch.ones(1, LENGTH, dtype=torch.long)), names)
