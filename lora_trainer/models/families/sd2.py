"""Stable Diffusion 2.0 and 2.1: one OpenCLIP-H encoder whose last layer is never read, heads 64 wide, noise or v predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.conditioning import Conditioning
from lora_trainer.models.detection import infer_config
from lora_trainer.models.tokenize import LENGTH, joined, padded_with

PAD = 0
"""What fills up a caption behind its end token: open_clip's, where CLIP-L repeats the end token."""


class SD2:
    """The family of Stable Diffusion 2.x."""

    name = "sd2"
    latent_scale = 0.18215
    reads_clip_skip = False
    reads_sizes = False
    upcast_attention = True

    def unet_config(self, state: Mapping[str, Tensor], heads: infer_config.Heads | None) -> dict[str, Any]:
        """Arguments of UNet2DConditionModel; 2.1 overflows in half precision unless attention is summed in float32."""
        return infer_config.unet_config(state, heads or infer_config.Heads(width=64), upcast_attention=True)

    def text_encoder(self, number: int, state: Mapping[str, Tensor], heads: int) -> nn.Module:
        """An empty text encoder of the right shape, without the layer that is never read."""
        from transformers import CLIPTextConfig, CLIPTextModel

        return CLIPTextModel(CLIPTextConfig(**infer_config.text_config(state, heads, activation="gelu")))

    def encode_text(self, bundle: ModelBundle, ids: Tensor, clip_skip: int) -> Conditioning:
        """Token ids [batch, 77 * n] -> states [batch, 75 * n + 2, width]; the layer is fixed, `clip_skip` changes nothing."""
        pieces = padded_with(ids.reshape(-1, LENGTH), PAD)
        return Conditioning(joined(bundle.text_encoder(pieces, return_dict=True).last_hidden_state, len(ids)))

    def unread_layers(self, bundle: ModelBundle, clip_skip: int) -> tuple[int, ...]:
        """All that the module has are read."""
        return (0,)

    def denoise(self, bundle: ModelBundle, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's prediction for noisy latents [batch, 4, h, w]."""
        answer: Tensor = bundle.unet(noisy, timesteps, encoder_hidden_states=conditioning.states, return_dict=False)[0]
        return answer


FAMILY = SD2()
