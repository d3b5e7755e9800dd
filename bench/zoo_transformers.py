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
T5: dict[str, Any] = {
    "vocab_size": WORDS, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
BART: dict[str, Any] = {
    "vocab_size": WORDS, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
PATCHES: dict[str, Any] = {
    "image_size": 64, "patch_size": 8, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip
WAVES: dict[str, Any] = {
    **SMALL, "vocab_size": 30, "conv_dim": (32, 32, 32), "conv_stride": (5, 4, 2), "conv_kernel": (10, 8, 4),
    "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip


class Pick(nn.Module):
    """Calls a model by argument names and returns one tensor of its output."""

    def __init__(self, inner: nn.Module, names: tuple[str, ...], fixed: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.inner, self.names, self.fixed = inner, names, dict(fixed or {})

    def forward(self, *values: Any) -> Any:
        output = self.inner(**dict(zip(self.names, values, strict=True)), **self.fixed)
        return output if isinstance(output, torch.Tensor) else output[0]


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
    # encoders
    "bert": ("BertModel", SMALL),
    "bert_masked_words": ("BertForMaskedLM", SMALL),
    "roberta": ("RobertaForSequenceClassification", SMALL),
    "distilbert": ("DistilBertModel", {"vocab_size": WORDS, "dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4,
                                       "max_position_embeddings": 64}),
    "albert": ("AlbertModel", {**SMALL, "embedding_size": 32}),
    "electra": ("ElectraForTokenClassification", {**SMALL, "embedding_size": 32}),
    "deberta_v2": ("DebertaV2Model", {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
                                      "position_buckets": 8, "max_relative_positions": 16}),
    "mpnet": ("MPNetModel", SMALL),
    "modernbert": ("ModernBertModel", {**SMALL, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8}),
    "squeezebert": ("SqueezeBertModel", {**SMALL, "embedding_size": 64}),
    "mobilebert": ("MobileBertModel", {**SMALL, "embedding_size": 32, "intra_bottleneck_size": 32,
                                       "num_feedforward_networks": 2, "true_hidden_size": 32}),
    "convbert": ("ConvBertModel", {**SMALL, "embedding_size": 64, "conv_kernel_size": 3}),
    "fnet": ("FNetModel", {**SMALL, "tpu_short_seq_length": LENGTH}),
    "roformer": ("RoFormerModel", {**SMALL, "embedding_size": 64}),
    "esm": ("EsmModel", {**SMALL, "position_embedding_type": "rotary", "mask_token_id": 4}),
    "funnel": ("FunnelBaseModel", {"vocab_size": WORDS, "block_sizes": [1, 1], "num_decoder_layers": 1, "d_model": 64,
                                   "n_head": 4, "d_head": 16, "d_inner": 128}),
    "longformer": ("LongformerModel", {**SMALL, "attention_window": 4}),
    "layoutlm": ("LayoutLMModel", SMALL),
    # decoders
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": WORDS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64,
                                 "bos_token_id": 1, "eos_token_id": 2}),
    "gpt_neo": ("GPTNeoForCausalLM", {**SMALL, "num_layers": 2, "num_heads": 4, "window_size": 8,
                                      "attention_types": [[["global", "local"], 1]]}),
    "gpt_neox": ("GPTNeoXForCausalLM", SMALL),
    "gptj": ("GPTJForCausalLM", {"vocab_size": WORDS, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8,
                                 "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", {"vocab_size": WORDS, "n_embd": 64, "n_layer": 2, "n_head": 4,
                                              "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}),
    "opt": ("OPTForCausalLM", {**SMALL, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "bloom": ("BloomForCausalLM", {"vocab_size": WORDS, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "falcon": ("FalconForCausalLM", {**SMALL, "new_decoder_architecture": False, "multi_query": True}),
    "mpt": ("MptForCausalLM", {"vocab_size": WORDS, "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}),
    "llama": ("LlamaForCausalLM", GROUPED),
    "llama_wide": ("LlamaModel", {**GROUPED, "hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 8}),
    "mistral": ("MistralForCausalLM", {**GROUPED, "sliding_window": 8}),
    "mixtral": ("MixtralForCausalLM", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma": ("GemmaForCausalLM", GROUPED),
    "gemma2": ("Gemma2ForCausalLM", {**GROUPED, "sliding_window": 8}),
    "qwen2": ("Qwen2ForCausalLM", GROUPED),
    "qwen3": ("Qwen3ForCausalLM", GROUPED),
    "phi": ("PhiForCausalLM", SMALL),
    "phi3": ("Phi3ForCausalLM", GROUPED),
    "olmo2": ("Olmo2ForCausalLM", GROUPED),
    "stablelm": ("StableLmForCausalLM", GROUPED),
    "starcoder2": ("Starcoder2ForCausalLM", GROUPED),
    "cohere": ("CohereForCausalLM", GROUPED),
    "glm": ("GlmForCausalLM", GROUPED),
    "smollm3": ("SmolLM3ForCausalLM", GROUPED),
    "mamba": ("MambaForCausalLM", {"vocab_size": WORDS, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 1,
                                   "time_step_rank": 4}),
    "rwkv": ("RwkvModel", {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 64}),
    "biogpt": ("BioGptForCausalLM", SMALL),
    "xglm": ("XGLMForCausalLM", {"vocab_size": WORDS, "d_model": 64, "ffn_dim": 128, "num_layers": 2,
                                 "attention_heads": 4, "max_position_embeddings": 64}),
}  # fmt: skip

TWO_SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5ForConditionalGeneration", T5),
    "t5_gated": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}),
    "bart": ("BartModel", BART),
    "marian": ("MarianModel", {**BART, "decoder_start_token_id": 0}),
    "m2m_100": ("M2M100Model", BART),
    "pegasus": ("PegasusModel", BART),
    "blenderbot": ("BlenderbotModel", BART),
}

IMAGE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", PATCHES),
    "dinov2": ("Dinov2Model", {**PATCHES, "use_swiglu_ffn": True}),
    "siglip": ("SiglipVisionModel", PATCHES),
    "clip_vision": ("CLIPVisionModel", PATCHES),
    "ijepa": ("IJepaModel", PATCHES),
    "segformer": ("SegformerForSemanticSegmentation", {
        "depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 64], "num_attention_heads": [1, 2, 4, 4],
        "decoder_hidden_size": 32}),
    "dpt": ("DPTForDepthEstimation", {
        **PATCHES, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16, 16, 32, 32],
        "fusion_hidden_size": 16, "is_hybrid": False}),
    "yolos": ("YolosForObjectDetection", {**PATCHES, "image_size": [64, 64], "num_detection_tokens": 5}),
    "swin2sr": ("Swin2SRForImageSuperResolution", {
        "image_size": 16, "embed_dim": 32, "depths": [1, 1], "num_heads": [2, 2], "window_size": 8, "upscale": 2}),
    "glpn": ("GLPNForDepthEstimation", {
        "depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 64], "num_attention_heads": [1, 2, 4, 4],
        "decoder_hidden_size": 32}),
    "convnextv2": ("ConvNextV2ForImageClassification", {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}),
    "mobilevit": ("MobileViTForSemanticSegmentation", {"hidden_sizes": [32, 48, 64], "image_size": 64}),
    "pp_ocrv5_mobile": ("PPOCRV5MobileDetForObjectDetection", {}),
    "bit": ("BitForImageClassification", {"depths": [1, 1, 1, 1], "hidden_sizes": [64, 128, 128, 256],
                                          "embedding_size": 32, "num_groups": 8}),
    "regnet": ("RegNetForImageClassification", {"depths": [1, 1, 1, 1], "hidden_sizes": [32, 64, 64, 64],
                                                "embedding_size": 16, "groups_width": 16}),
}  # fmt: skip

SOUNDS: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2": ("Wav2Vec2ForCTC", WAVES),
    "hubert": ("HubertForCTC", WAVES),
    "wavlm": ("WavLMForCTC", WAVES),
    "sew": ("SEWForCTC", {**WAVES, "squeeze_factor": 2}),
    "data2vec_audio": ("Data2VecAudioForCTC", {**WAVES, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5}),
}


def _pair(model: str, options: dict[str, Any]) -> Network:
    inner = _model(model, options)
    names = ("input_ids", "decoder_input_ids", "decoder_attention_mask")
    inputs = (_tokens(), _tokens(1, 5), torch.ones(1, 5, dtype=torch.long))
    return Network(Pick(inner, names, {"use_cache": False}), inputs, names)


def _image(model: str, options: dict[str, Any]) -> Network:
    inner = _model(model, options)
    size = 16 if "upscale" in options else 64
    return Network(Pick(inner, ("pixel_values",)), (torch.randn(1, 3, size, size),), ("pixel_values",))


def _sound(model: str, options: dict[str, Any]) -> Network:
    return Network(Pick(_model(model, options), ("input_values",)), (torch.randn(1, 1600),), ("input_values",))


def _whisper() -> Network:
    inner = _model("WhisperModel", {
        "vocab_size": WORDS, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "num_mel_bins": 20,
        "max_source_positions": 32, "max_target_positions": 32, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None,
    })  # fmt: skip
    names = ("input_features", "decoder_input_ids", "decoder_attention_mask")
    inputs = (torch.randn(1, 20, 64), _tokens(1, 5), torch.ones(1, 5, dtype=torch.long))
    return Network(Pick(inner, names, {"use_cache": False}), inputs, names)


def _detr() -> Network:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    torchvision_operators()
    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64, 64], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage4"],
    )  # fmt: skip
    config = DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=64,
        num_queries=7, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=128, decoder_ffn_dim=128, num_labels=3,
    )  # fmt: skip
    names = ("pixel_values", "pixel_mask")
    inputs = (torch.randn(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.long))
    return Network(Pick(DetrForObjectDetection(config).eval(), names), inputs, names)


def _clip() -> Network:
    inner = _model("CLIPModel", {
        "text_config": {**SMALL, "projection_dim": 32}, "vision_config": {**PATCHES, "projection_dim": 32},
        "projection_dim": 32,
    })  # fmt: skip
    names = ("input_ids", "pixel_values", "attention_mask")
    inputs = (_tokens(), torch.randn(1, 3, 64, 64), torch.ones(1, LENGTH, dtype=torch.long))
    return Network(Pick(inner, names), inputs, names)


def _speech_to_text() -> Network:
    inner = _model("Speech2TextModel", {**BART, "num_conv_layers": 2, "conv_channels": 32, "input_feat_per_channel": 20,
                                        "max_source_positions": 64, "max_target_positions": 32})  # fmt: skip
    names = ("input_features", "decoder_input_ids", "decoder_attention_mask")
    inputs = (torch.randn(1, 40, 20), _tokens(1, 5), torch.ones(1, 5, dtype=torch.long))
    return Network(Pick(inner, names, {"use_cache": False}), inputs, names)


OTHERS: dict[str, Callable[[], Network]] = {
    "whisper": _whisper, "detr": _detr, "clip": _clip, "speech_to_text": _speech_to_text,
}  # fmt: skip


def transformers_architectures() -> Iterator[Architecture]:
    """Yields the architectures of transformers."""
    kinds = ((TEXT, _text), (TWO_SIDES, _pair), (IMAGE_MODELS, _image), (SOUNDS, _sound))
    for table, make in kinds:
        for name, (model, options) in table.items():
            yield Architecture(f"transformers/{name}", partial(make, model, options))
    for name, build in OTHERS.items():
        yield Architecture(f"transformers/{name}", build)
