"""CLIP's text encoders as modules whose names are the same in every version of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


class NamedTextModel(nn.Module):
    """transformers 5 drops `text_model.` from the names inside CLIPTextModel; below this module they have it again."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text_model, self.config = model, model.config

    def forward(self, *args: Any, **options: Any) -> Any:
        """What CLIPTextModel answers."""
        return self.text_model(*args, **options)


def clip_text_model(config: Mapping[str, Any], *, projection: bool = False) -> nn.Module:
    """An empty CLIPTextModel for arguments of CLIPTextConfig. `projection`: with the projection of the pooled text."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    if projection:
        with_projection: nn.Module = CLIPTextModelWithProjection(CLIPTextConfig(**config))
        return with_projection
    model: nn.Module = CLIPTextModel(CLIPTextConfig(**config))
    return model if hasattr(model, "text_model") else NamedTextModel(model)
