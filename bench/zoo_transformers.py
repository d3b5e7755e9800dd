"""Architectures of transformers: small configurations, random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from zoo_network import Architecture, Network, torchvision_operators

WORDS = 200
LENGTH = 12

SMALL: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED: dict[str, Any] = {**SMALL, "num_key_value_heads": 2, "head_dim": 16}


class Pick(nn.Module):
    """Calls a model by argument names and returns one tensor of its output."""

    def __init__(self, inner: nn.Module, names: tuple[str, ...], fixed: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.inner, self.names, self.fixed = inner, names, dict(fixed or {})

    def forward(self, *values: Any) -> Any:
        output = self.inner(**dict(zip(self.names, values, strict=True)), **self.fixed)
        return output if isinstance(output, torch.Tensor) else output[0]


def transformers_architectures() -> Iterator[Architecture]:
    """Yields the architectures of transformers."""
    for name, (model, options) in TEXT.items():
        yield Architecture(f"transformers/{name}", partial(_text, model, options))
    for name, build in OTHERS.items():
        yield Architecture(f"transformers/{name}", build)


def _model(name: str, options: dict[str, Any]) -> nn.Module:
    torchvision_operators()
    import transformers

    kind = getattr(transformers, name)
    return kind(kind.config_class(**options)).eval()


def _tokens(*shape: int) -> torch.Tensor:
    return torch.randint(3, WORDS, shape or (1, LENGTH))


def _text(model: str, options: dict[str, Any]) -> Network:
    inner = _model(model, options)
    fixed: dict[str, Any] = {"use_cache": False} if hasattr(inner.config, "use_cache") else {}
    names = ("input_ids", "attention_mask")
    inputs = (_tokens(), torch.ones(1, LENGTH, dtype=torch.long))
    return Network(Pick(inner, names, fixed), inputs, names)


TEXT: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", SMALL),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": WORDS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64,
                                 "bos_token_id": 1, "eos_token_id": 2}),
    "llama": ("LlamaForCausalLM", GROUPED),
    "qwen2": ("Qwen2ForCausalLM", GROUPED),
}  # fmt: skip


def _t5() -> Network:
    inner = _model("T5ForConditionalGeneration", {
        "vocab_size": WORDS, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
        "decoder_start_token_id": 0,
    })  # fmt: skip
    names = ("input_ids", "decoder_input_ids")
    return Network(Pick(inner, names, {"use_cache": False}), (_tokens(), _tokens(1, 5)), names)


def _whisper() -> Network:
    inner = _model("WhisperModel", {
        "vocab_size": WORDS, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "num_mel_bins": 20,
        "max_source_positions": 32, "max_target_positions": 32, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None,
    })  # fmt: skip
    names = ("input_features", "decoder_input_ids")
    return Network(Pick(inner, names, {"use_cache": False}), (torch.randn(1, 20, 64), _tokens(1, 5)), names)


OTHERS: dict[str, Callable[[], Network]] = {"t5": _t5, "whisper": _whisper}
