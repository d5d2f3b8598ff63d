"""How the U-Net's attention is calculated: what works here is found out by trying it, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lora_trainer.events import Warned
from lora_trainer.messages import say
from lora_trainer.models.bundle import ModelBundle

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values [batch, heads, tokens, width] to what comes out, of the queries' shape."""
SLICE = 2**24
"""Numbers of one slice's table of weights: 64 MB in float32."""
ORDER = ("xformers", "sdpa", "sliced")
TRIED_TOKENS, TRIED_WORDS = 64, 77


def sdpa(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """torch's own, by the fastest kernel that it has here."""
    return functional.scaled_dot_product_attention(queries, keys, values)


def xformers(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """xformers' memory-efficient attention. Raises ImportError where it is not there (a WebUI hides it unless it uses it itself)."""
    import xformers.ops

    turned = (tensor.transpose(1, 2) for tensor in (queries, keys, values))
    return xformers.ops.memory_efficient_attention(*turned).transpose(1, 2)  # type: ignore[no-any-return]


def sliced(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Some heads at a time, or some queries of one; the weights of each slice are computed again in the backward pass, none is kept."""
    tokens, words = queries.shape[-2], keys.shape[-2]
    heads, together = max(1, SLICE // (tokens * words)), max(1, min(tokens, SLICE // words))
    found = []
    for asked, key, value in zip(*(each.flatten(0, 1).split(heads) for each in (queries, keys, values)), strict=True):
        pieces = [_kept_out(piece, key, value) for piece in asked.split(together, dim=1)]
        found.append(torch.cat(pieces, dim=1))
    return torch.cat(found).view(queries.shape)


def _kept_out(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return _plain(queries, keys, values)
    return checkpoint(_plain, queries, keys, values, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]


def _plain(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    weights = (queries @ keys.transpose(-1, -2)).float() / math.sqrt(queries.shape[-1])
    return weights.softmax(-1).to(values.dtype) @ values


WAYS: dict[str, Attend] = {"xformers": xformers, "sdpa": sdpa, "sliced": sliced}


class Processor:
    """What diffusers' Attention modules of a U-Net call. `upcast`: in float32, for models whose weights overflow fp16 (SD 2)."""

    def __init__(self, attend: Attend, *, upcast: bool = False) -> None:
        self.attend, self.upcast = attend, upcast

    def __call__(self, attention: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        words = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        asked, keys, values = (
            layer(given).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for layer, given in ((attention.to_q, hidden_states), (attention.to_k, words), (attention.to_v, words))
        )
        if self.upcast:
            with torch.autocast(asked.device.type, enabled=False):
                found = self.attend(asked.float(), keys.float(), values.float()).to(values.dtype)
        else:
            found = self.attend(asked, keys, values)
        out = attention.to_out[1](attention.to_out[0](found.transpose(1, 2).flatten(2)))
        return out / attention.rescale_output_factor  # type: ignore[no-any-return]


def use(unet: nn.Module, name: str, *, upcast: bool = False) -> None:
    """Lets every attention of a U-Net be calculated so; "sdpa" without upcast is what diffusers does by itself."""
    if name == "sdpa" and not upcast:
        from diffusers.models.attention_processor import AttnProcessor2_0

        processor: Any = AttnProcessor2_0()
    else:
        processor = Processor(WAYS[name], upcast=upcast)
    for module in unet.modules():
        if hasattr(module, "set_processor"):
            module.set_processor(processor)  # type: ignore[operator]


def why_not(name: str, device: torch.device, dtype: torch.dtype, widths: Sequence[int]) -> str:
    """Tries a way forward and backward on a few tokens, with heads of these widths; "" when it works, else the reason."""
    try:
        with torch.enable_grad():
            for width in widths:
                for words in (TRIED_TOKENS, TRIED_WORDS):
                    asked, keys, values = (
                        torch.ones(2, 1, count, width, device=device, dtype=dtype, requires_grad=True)
                        for count in (TRIED_TOKENS, words, words)
                    )
                    WAYS[name](asked, keys, values).sum().backward()
                    if not all(bool(torch.isfinite(each.grad).all()) for each in (asked, keys, values) if each.grad is not None):
                        return "its gradients are no numbers"
    except (ImportError, RuntimeError, NotImplementedError, ValueError, AttributeError) as error:
        return str(error).strip().partition("\n")[0][:200] or type(error).__name__
    return ""


def choose(asked: str, bundle: ModelBundle, hosts: str = "") -> tuple[str, list[Warned]]:
    """The way that is taken, and what to tell: a way that was asked for and does not work here gives way to the next.

    `hosts`: the way in which the host draws, "" where it is none of ours; "auto" tries it before the others.
    """
    widths, told = head_widths(bundle.unet), ""
    automatic = dict.fromkeys([hosts, *ORDER] if hosts in WAYS else ORDER)
    for name in automatic if asked == "auto" else ORDER[ORDER.index(asked) :]:
        reason = why_not(name, bundle.device, bundle.dtype, widths)
        if not reason:
            return name, _told(asked, name, told)
        told = reason if name == asked else told
    return ORDER[-1], _told(asked, ORDER[-1], told)  # its own failure will say more than this one


def _told(asked: str, taken: str, reason: str) -> list[Warned]:
    if asked in ("auto", taken):
        return []
    template = "Attention by {asked} does not work here ({reason}): {taken} is used."
    return [Warned(say(template, asked=asked, taken=taken, reason=reason), "memory.attention")]


def head_widths(unet: nn.Module) -> list[int]:
    """Widths of the heads that a U-Net has."""
    found = {module.to_q.out_features // module.heads for module in unet.modules() if hasattr(module, "to_q") and hasattr(module, "heads")}
    return sorted(found)


def wants_upcast(bundle: ModelBundle) -> bool:
    """Whether a family's attention overflows fp16, and that is what it is calculated in (SD 2)."""
    return bundle.dtype is torch.float16 and bundle.family.upcast_attention
