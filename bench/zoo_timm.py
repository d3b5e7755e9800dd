"""Architectures of timm, narrowed by their own arguments."""

import importlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from zoo_network import Architecture, Network, image_network, torchvision_operators

SMALL: dict[str, Any] = {"img_size": 64, "embed_dim": 64, "depth": 2, "num_heads": 4}
FOUR: dict[str, Any] = {"depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 4)}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    # transformers
    "vit_tiny_patch16_224": SMALL,
    "vit_tiny_patch16_reg4_dinov2": {**SMALL, "as": "vit_small_patch14_reg4_dinov2", "img_size": 56},
    "vit_relpos_small_patch16_224": SMALL,
    "deit_tiny_distilled_patch16_224": SMALL,
    "deit3_small_patch16_224": SMALL,
    "beit_base_patch16_224": SMALL,
    "eva02_tiny_patch14_224": {**SMALL, "img_size": 56},
    "cait_xxs24_224": {**SMALL, "depth_token_only": 1},
    "convit_tiny": {**SMALL, "local_up_to_layer": 1},
    "xcit_nano_12_p16_224": SMALL,
    "swin_tiny_patch4_window7_224": {"img_size": 56, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)},
    "swin_s3_tiny_224": {"img_size": 56, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4),
                         "window_size": (7, 7)},
    "swinv2_tiny_window8_256": {"img_size": 64, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)},
    "swinv2_cr_tiny_224": {"img_size": 64, "window_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)},
    "maxvit_rmlp_pico_rw_256": {"img_size": 64, "embed_dim": (32, 64), "depths": (1, 1), "stem_width": 16},
    "coatnet_nano_rw_224": {"img_size": 64, "embed_dim": (16, 32, 64, 64), "depths": (1, 1, 1, 1), "stem_width": 16},
    "pvt_v2_b0": {"depths": (1, 1, 1, 1)},
    "twins_svt_small": {"img_size": 64, "embed_dims": (32, 64, 64, 64), "depths": (1, 1, 1, 2),
                        "num_heads": (1, 2, 4, 4), "wss": (4, 4, 4, 2)},
    "twins_pcpvt_small": {"img_size": 64, "embed_dims": (32, 64, 64, 64), "depths": (1, 1, 1, 1),
                          "num_heads": (1, 2, 4, 4)},
    "levit_128s": {"img_size": 64},
    "pit_ti_224": {"img_size": 64, "depth": (1, 1, 1), "base_dims": (16, 16, 16), "heads": (2, 4, 4)},
    "visformer_tiny": {"img_size": 64, "embed_dim": 64, "depth": (1, 1, 1)},
    "mobilevit_xxs": {},
    "mobilevitv2_050": {},
    "efficientformer_l1": {"depths": (1, 1, 1, 2), "embed_dims": (16, 32, 48, 64), "size": 224},
    "efficientformerv2_s0": {"img_size": 64, "depths": (1, 1, 2, 2)},
    "efficientvit_b0": {},
    "efficientvit_m0": {"img_size": 224},
    "edgenext_xx_small": {"depths": (1, 1, 2, 1)},
    "fastvit_t8": {"layers": (1, 1, 1, 1)},
    "davit_tiny": {"embed_dims": (16, 32, 64, 64), **FOUR},
    "focalnet_tiny_srf": {"class": "focalnet:FocalNet", "embed_dim": 32, "depths": (1, 1, 1, 1)},
    "gcvit_xxtiny": {"class": "gcvit:GlobalContextVit", "img_size": 64, "window_ratio": (4, 4, 2, 1),
                     "depths": (1, 1, 2, 1), "embed_dim": 16, "num_heads": (2, 4, 4, 4)},
    "hiera_tiny_224": {"img_size": (64, 64), "stages": (1, 1, 1, 1), "embed_dim": 32},
    "mvitv2_tiny": {"img_size": 64},
    "nest_tiny": {"class": "nest:Nest", "img_size": 64, "embed_dims": (32, 32, 64), "num_heads": (2, 2, 4),
                  "depths": (1, 1, 1)},
    "tnt_s_legacy_patch16_224": {"img_size": 64, "depth": 2, "embed_dim": 64, "inner_dim": 16, "num_heads_inner": 4,
                                 "num_heads_outer": 4},
    "volo_d1_224": {"class": "volo:VOLO", "img_size": 64, "layers": (1, 1, 1, 1),
                    "embed_dims": (32, 64, 64, 64), "num_heads": (2, 4, 4, 4)},
    "crossvit_tiny_240": {"img_scale": (1.0, 224 / 240), "embed_dim": (24, 48), "depth": ((1, 2, 0),), "size": 240},
    "coat_lite_tiny": {"img_size": 64, "embed_dims": (16, 32, 64, 64), "serial_depths": (1, 1, 1, 1)},
    "tiny_vit_5m_224": {"depths": (1, 1, 1, 1), "embed_dims": (32, 32, 64, 64), "num_heads": (1, 1, 2, 2),
                        "window_sizes": (2, 2, 2, 2)},
    "repvit_m0_9": {},
    "shvit_s1": {},
    "swiftformer_xs": {"layers": (1, 1, 1, 1)},
    "nextvit_small": {"depths": (1, 1, 5, 1)},
    "efficientvim_m1": {},
    # mixers and convolutional token mixers
    "mixer_s16_224": {"class": "mlp_mixer:MlpMixer", "img_size": 64, "embed_dim": 64, "num_blocks": 2},
    "gmixer_24_224": {"img_size": 64},
    "gmlp_ti16_224": {"img_size": 64},
    "resmlp_12_224": {"img_size": 64},
    "sequencer2d_s": {"layers": (1, 1, 1, 1), "img_size": 56},
    "poolformer_s12": {},
    "caformer_s18": {},
    "convmixer_768_32": {"class": "convmixer:ConvMixer", "dim": 64, "depth": 3, "kernel_size": 7, "patch_size": 7},
    "convnextv2_atto": {"depths": (1, 1, 2, 1)},
    "convnext_atto_ols": {"depths": (1, 1, 2, 1)},
    "inception_next_tiny": {"depths": (1, 1, 1, 1), "dims": (48, 48, 96, 96)},
    "mambaout_femto": {"depths": (1, 1, 1, 1), "dims": (24, 48, 96, 96)},
    "starnet_s050": {},
    "fasternet_t0": {},
    "rdnet_tiny": {},
    # convolutional networks
    "ghostnet_050": {},
    "ghostnetv2_100": {},
    "repghostnet_050": {},
    "repvgg_a0": {},
    "hrnet_w18_small": {},
    "res2net50_26w_4s": {"layers": (1, 1, 1, 1)},
    "resnest14d": {},
    "skresnet18": {},
    "ecaresnet26t": {},
    "resnet26t": {},
    "resnetv2_50": {"layers": (1, 1, 1, 1)},
    "resnetblur50": {"layers": (1, 1, 1, 1)},
    "seresnext26d_32x4d": {},
    "senet154": {"layers": (1, 1, 1, 1)},
    "dpn48b": {},
    "dla34": {},
    "dla60_res2next": {},
    "cspresnet50": {},
    "cspdarknet53": {},
    "darknet17": {},
    "ese_vovnet19b_dw": {},
    "hardcorenas_a": {},
    "rexnet_100": {},
    "selecsls42b": {},
    "tf_efficientnet_b0": {},
    "mixnet_s": {},
    "fbnetc_100": {},
    "spnasnet_100": {},
    "tinynet_e": {},
    "mobilenetv1_100": {},
    "mobilenetv4_conv_small": {},
    "mobilenetv4_hybrid_medium": {},
    "lcnet_050": {},
    "mobileone_s0": {},
    "regnety_002": {},
    "regnetz_005": {},
    "nf_regnet_b0": {},
    "dm_nfnet_f0": {"depths": (1, 1, 1, 1)},
    "inception_v4": {"size": 96},
    "inception_resnet_v2": {"size": 96},
    "xception41": {},
    "legacy_xception": {"size": 96},
    "nasnetalarge": {"size": 96},
    "pnasnet5large": {"size": 96},
    "botnet26t_256": {"img_size": 64},
    "halonet26t": {"size": 256},
    "lambda_resnet26t": {"img_size": 64},
    "gcresnet33ts": {},
    "hgnet_tiny": {},
    "hgnetv2_b0": {},
    "cspnext_tiny": {},
    "densenetblur121d": {"growth_rate": 16, "block_config": (2, 2, 2, 2)},
}  # fmt: skip


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
    name = arguments.pop("as", name)
    where = arguments.pop("class", "")
    if not where:
        return image_network(timm.create_model(name, pretrained=False, **arguments), (1, 3, size, size))
    file, kind = where.split(":")  # the named variant would not let its widths be changed
    build = getattr(importlib.import_module(f"timm.models.{file}"), kind)
    return image_network(build(**arguments), (1, 3, size, size))
