"""Which modules get a LoRA, and their names in a file (sd-scripts' names, as the WebUI reads them)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from lora_trainer.models.bundle import ModelBundle

PREFIX = {"unet": "lora_unet", "text_encoder": "lora_te"}
UNET_OWNERS = frozenset({"Transformer2DModel"})
TEXT_OWNERS = frozenset({"CLIPAttention", "CLIPSdpaAttention", "CLIPFlashAttention2", "CLIPMLP"})


def targets(bundle: ModelBundle, part: str) -> Iterator[tuple[str, nn.Module]]:
    """File name and module of every layer that LoRA is put on; `part` is "unet" or "text_encoder".

    U-Net: linear layers and 1 x 1 convolutions of the attention blocks (192 in Stable Diffusion 1.x);
    text encoder: linear layers of attention and MLP (72). Some transformers releases drop `text_model.`: it is put back.
    """
    root = bundle.unet if part == "unet" else bundle.text_encoder
    owners = UNET_OWNERS if part == "unet" else TEXT_OWNERS
    for owner_name, owner in root.named_modules():
        if type(owner).__name__ not in owners:
            continue
        for name, module in owner.named_modules():
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
                path = f"{owner_name}.{name}"
                if part == "text_encoder" and not path.startswith("text_model."):
                    path = f"text_model.{path}"
                yield f"{PREFIX[part]}_{path.replace('.', '_')}", module
