"""Small random models of Stable Diffusion 2 and SDXL for a real A1111: as many layers as the released ones, described by a yaml beside.

Its yaml files name an open_clip architecture of the same size, which the probe extension makes known to the host.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from lora_trainer import assets

SMALL_CLIP = "lora-trainer-small"
OPEN_CLIP = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 4},
}
CLIP_L = {
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
LDM = """model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "{prediction}"
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    cond_stage_key: txt
    image_size: 8
    channels: 4
    conditioning_key: crossattn
    scale_factor: 0.18215
    use_ema: False
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params: {{image_size: 32, in_channels: 4, out_channels: 4, model_channels: 64, attention_resolutions: [4, 2, 1], num_res_blocks: 2,
        channel_mult: [1, 2, 2, 2], num_head_channels: 64, use_spatial_transformer: True, use_linear_in_transformer: True,
        transformer_depth: 1, context_dim: 64, legacy: False}}
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params: {vae}
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder
      params: {{arch: {arch}, freeze: True, layer: penultimate}}
"""
SGM = """model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    scale_factor: 0.13025
    disable_first_stage_autocast: True
    denoiser_config:
      target: sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser
      params:
        num_idx: 1000
        weighting_config: {{target: sgm.modules.diffusionmodules.denoiser_weighting.EpsWeighting}}
        scaling_config: {{target: sgm.modules.diffusionmodules.denoiser_scaling.{scaling}}}
        discretization_config: {{target: sgm.modules.diffusionmodules.discretizer.LegacyDDPMDiscretization}}
    network_config:
      target: sgm.modules.diffusionmodules.openaimodel.UNetModel
      params: {{adm_in_channels: 1600, num_classes: sequential, in_channels: 4, out_channels: 4, model_channels: 32,
        attention_resolutions: [4, 2], num_res_blocks: 2, channel_mult: [1, 2, 4], num_head_channels: 64, use_spatial_transformer: True,
        use_linear_in_transformer: True, transformer_depth: [1, 2, 10], context_dim: 96, spatial_transformer_attn_type: softmax,
        legacy: False}}
    conditioner_config:
      target: sgm.modules.GeneralConditioner
      params:
        emb_models:
          - {{is_trainable: False, input_key: txt, target: sgm.modules.encoders.modules.FrozenCLIPEmbedder,
              params: {{version: {clip}, layer: hidden, layer_idx: 3}}}}
          - {{is_trainable: False, input_key: txt, target: sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder2,
              params: {{arch: {arch}, version: laion2b_s39b_b160k, freeze: True, layer: penultimate, always_return_pooled: True,
                legacy: False}}}}
          - {{is_trainable: False, input_key: original_size_as_tuple, params: {{outdim: 256}},
              target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND}}
          - {{is_trainable: False, input_key: crop_coords_top_left, params: {{outdim: 256}},
              target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND}}
          - {{is_trainable: False, input_key: target_size_as_tuple, params: {{outdim: 256}},
              target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND}}
    first_stage_config:
      target: sgm.models.autoencoder.AutoencoderKLInferenceWrapper
      params: {vae}
"""
VAE = (
    "{embed_dim: 4, monitor: val/rec_loss, lossconfig: {target: torch.nn.Identity}, ddconfig: {double_z: true, z_channels: 4, "
    "resolution: 64, in_channels: 3, out_ch: 3, ch: 32, ch_mult: [1, 1, 1, 1], num_res_blocks: 2, attn_resolutions: [], dropout: 0.0}}"
)


def add_families(data: Path) -> None:
    """Checkpoints zz-sd2 (noise), zz-sd2-v, zz-sdxl, and zz-sdxl-v, whose file says v by a key and whose yaml says nothing of it."""
    from benchmarks import random_checkpoint  # here: the probe, which reads this file too, is to leave the host's paths alone

    checkpoints, clip = data / "models" / "Stable-diffusion", data / "clip-l"
    shutil.copytree(assets.clip_vocabulary(), clip, dirs_exist_ok=True)
    (clip / "config.json").write_text(json.dumps(CLIP_L), encoding="utf-8")
    common = {"vae": VAE, "arch": SMALL_CLIP, "clip": clip.as_posix()}
    for name, family, marks, described in (
        ("zz-sd2", "sd2", (), LDM.format(prediction="eps", **common)),
        ("zz-sd2-v", "sd2", (), LDM.format(prediction="v", **common)),
        ("zz-sdxl", "sdxl", (), SGM.format(scaling="EpsScaling", **common)),
        ("zz-sdxl-v", "sdxl", ("v_pred", "ztsnr"), SGM.format(scaling="EpsScaling", **common)),
    ):
        path = checkpoints / f"{name}.safetensors"
        state = random_checkpoint.checkpoint(random_checkpoint.SHAPES[family][1], torch.float32, marks=marks)
        save_file({key: _uneven(key, tensor).contiguous() for key, tensor in state.items()}, str(path))
        path.with_suffix(".yaml").write_text(described, encoding="utf-8")


def _uneven(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """A text encoder's last norm with a mean: the host divides by the mean of what it reads of a text."""
    return tensor + torch.linspace(-0.2, 0.6, len(tensor)) if key.endswith(("ln_final.bias", "final_layer_norm.bias")) else tensor
