"""Where each pattern of real exports is tested: a case of the law, a small network, and a model that contains it.

Models with a slash are built and exported by ``bench/zoo.py``; the others are found in packages or in ``models/``.
"""

from pathlib import Path
from typing import NamedTuple

import pytest
from cases import CASES
from networks import NETWORKS

BENCH = Path(__file__).parents[2] / "bench"


class Where(NamedTuple):
    """Names of cases (or of a module of tests) and networks (either may be empty, not both), and of models."""

    cases: str
    networks: str
    models: str


INDEX = {
    "graph input or output carries the channel axis": Where("", "split_outputs", "transformers/bert torchvision/raft_encoder"),
    "global pooling, Flatten, Gemm": Where("globalaveragepool flatten gemm", "plain", "torchvision/resnet50"),
    "Flatten or Reshape with pixels before Gemm": Where("flatten reshape_rest", "flatten flatten_reshape", "torchvision/vgg16"),
    "Reshape with a constant shape": Where("reshape_merge reshape_copied reshape_heads reshape_no_common_factor", "flatten_shared_constant", "torchvision/vit"),
    "Reshape with a computed shape": Where("reshape_computed_constant reshape_from_shape reshape_unknown", "attention_computed flatten_shared_computed flatten_multiplied", "torchvision/swin transformers/bert"),
    "Split in every form": Where("split split_attribute split_equal split_equal_old split_num_outputs split_halves_meet", "split_uneven", "own/yolo_c2f"),
    "C2f and CSP": Where("split concat", "c2f", "own/yolo_c2f timm/cspdarknet53"),
    "Slice and Gather on the channel axis": Where("slice slice_negative slice_backwards slice_computed gather gather_order gather_single", "gather_positions slice_negative", "timm/ghostnet_050"),
    "channel shuffle": Where("transpose_equal_sizes", "shuffle shuffle_residual", "torchvision/shufflenet_v2_x1_0"),
    "residual Add, Sub, Mul": Where("add sub mul", "residual", "torchvision/resnet50"),
    "broadcast": Where("add_channel_vector add_no_batch add_last mul_one mul_scalar", "layer_scale", "timm/cait_xxs24_224"),
    "squeeze-and-excite": Where("", "squeeze_excite", "torchvision/efficientnet_b0"),
    "Concat on another axis": Where("concat_first", "class_token", "torchvision/vit"),
    "option-A shortcut": Where("pad_channels slice", "option_a_shortcut", "own/cifar_resnet_option_a"),
    "depthwise convolution": Where("conv_depthwise conv_multiplier", "multiplier", "torchvision/mobilenet_v2"),
    "grouped convolution": Where("conv_group2 conv_group_of_two conv_group_one_output", "shuffle", "torchvision/resnext50_32x4d torchvision/regnet_y_400mf"),
    "ConvTranspose": Where("conv_transpose conv_transpose_group2 conv_transpose_depthwise", "unet grouped_transpose", "own/unet odd/grouped_transpose rapidocr_onnxruntime/ch_PP-OCRv4_det_infer"),
    "BatchNormalization unfused": Where("batch_norm batch_norm_places", "dense", "light_densenet121"),
    "PRelu": Where("prelu prelu_shared prelu_channel", "", "odd/mobile_face"),
    "GroupNormalization": Where("group_norm_18 group_norm_21 group_norm_each", "group_norm_written_out", "own/diffusion_unet"),
    "norms, GELU and attention in parts": Where("reduce_mean_channels", "decomposed_layer_norm", "transformers/bert timm/gmlp_ti16_224"),
    "normalization over the channel axis": Where("layer_norm rms_norm simplified_norm", "layer_norm", "transformers/llama torchvision/convnext_tiny"),
    "Softmax, ArgMax, TopK over channels": Where("softmax_axis arg_max top_k", "sum_over_channels", "timm/nest_tiny"),
    "embedding, tied head, shared weights": Where("gather_embedding", "tied_embedding weight_used_twice", "transformers/gpt2 transformers/albert"),
    "multi-head attention": Where("reshape_heads reshape_heads_back", "attention attention_biased heads_divided", "transformers/bert"),
    "fused QKV": Where("reshape_fused_qkv", "fused_qkv_gather fused_qkv_split fused_qkv_split_heads", "torchvision/vit transformers/gpt_neox"),
    "grouped-query attention": Where("attention_grouped", "grouped_query", "transformers/llama transformers/qwen2"),
    "windows, shifts and position tables": Where("", "windowed_attention", "torchvision/swin torchvision/swin_v2"),
    "rotary embeddings": Where("rotary", "rotary", "transformers/llama transformers/roformer"),
    "key/value cache": Where("attention_cached", "", "odd/cached_decoder silero_vad"),
    "Attention and RotaryEmbedding operators": Where("attention attention_cached rotary", "attention_operator attention_operator_heads_apart", "transformers/bert"),
    "com.microsoft operators": Where("fused_conv fused_gemm skip_layer_norm", "fused_convolutions fused_transformer", "transformers/bert torchvision/resnet18"),
    "gated units": Where("split", "gated_unit gated_halves gated_slices", "transformers/llama transformers/t5_gated"),
    "Einsum": Where("einsum_scores einsum_matrix", "einsum_attention", "torchvision/maxvit timm/mvitv2_tiny"),
    "MatMul with two dynamic sides": Where("matmul_batches", "attention", "torchvision/vit"),
    "Gemm in every form": Where("gemm gemm_trans_a gemm_trans_b gemm_bias_row gemm_bias_one", "plain", "torchvision/resnet50"),
    "weights behind nodes": Where("", "weight_behind_nodes weights_in_constants concatenated_weights", "rapidocr_onnxruntime/ch_PP-OCRv4_det_infer timm/nf_regnet_b0"),
    "quantized weights": Where("dequantize_weight dequantize_bias", "quantized_weights", "transformers/bert"),
    "PixelShuffle": Where("depth_to_space depth_to_space_crd", "pixel_shuffle pixel_shuffle_written_out", "own/edsr"),
    "Resize, Pad, Expand, Tile, ConstantOfShape": Where("resize_scales pad_channels expand tile constant_of_shape", "resized expand_as upsample_like", "own/unet"),
    "recurrent units": Where("lstm gru rnn lstm_everything", "lstm_tagger gru_state_of_zeros", "own/lstm_tagger odd/attentive_lstm"),
    "detection heads": Where("", "c2f", "own/yolo_c2f odd/yolo_distribution odd/retina"),
    "dynamic sizes": Where("reshape_from_shape", "attention_rest length_compared", "own/diffusion_unet"),
    "lengths used as data": Where("length_as_data size_as_data", "scale_from_width mean_over_size", "torchvision/swin own/diffusion_unet"),
    "If, Loop and Scan": Where("test_control_flow", "", "odd/if_plain odd/loop silero_vad"),
    "groups of two operators": Where("conv_group2", "shuffle shuffle_residual", "odd/two_group_counts odd/shufflenet_v1"),
    "channels last": Where("transpose", "channels_last mixer", "basic_pitch"),
}  # fmt: skip
# ruff: noqa: E501


@pytest.mark.parametrize("pattern", INDEX)
def test_every_pattern_has_a_case_and_a_model(pattern: str) -> None:
    where = INDEX[pattern]
    assert where.cases or where.networks
    assert where.models
    modules = {path.stem for path in Path(__file__).parent.glob("test_*.py")}
    assert set(where.cases.split()) <= {case.name for case in CASES} | modules
    assert set(where.networks.split()) <= {network.name for network in NETWORKS}


def test_models_of_the_index_are_built_or_found_somewhere() -> None:
    sources = "\n".join(path.read_text() for path in [*BENCH.glob("*.py"), Path(__file__).parents[1] / "test_zoo.py"])
    named = {model.rpartition("/")[2] for where in INDEX.values() for model in where.models.split()}
    assert {name for name in named if name not in sources} == set()
