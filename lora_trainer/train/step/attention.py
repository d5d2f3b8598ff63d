"""Implementations of the U-Net's attention; which of them work here is found out by trying them, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lora_trainer.events import Warned
from lora_trainer.host.out_of_memory import is_out_of_memory
from lora_trainer.messages import say
from lora_trainer.models.bundle import ModelBundle

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values [batch, heads, tokens, head width] to the attended values, of the queries' shape."""
MAX_SLICE = 2**24
"""Attention weights of one slice: 64 MB in float32."""
ORDER = ("xformers", "sdpa", "sliced")
TRIED_TOKENS, TRIED_TEXT_TOKENS = 64, 77


def sdpa(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """torch's scaled_dot_product_attention, which picks the fastest kernel."""
    return functional.scaled_dot_product_attention(queries, keys, values)


def xformers(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """xformers' memory-efficient attention. Raises ImportError when it is not installed (a WebUI hides it unless it uses it itself)."""
    import xformers.ops

    tokens_first = (tensor.transpose(1, 2) for tensor in (queries, keys, values))
    return xformers.ops.memory_efficient_attention(*tokens_first).transpose(1, 2)  # type: ignore[no-any-return]


def sliced(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Some heads at a time, or some queries of one head; the weights of each slice are recomputed in backward instead of being kept."""
    tokens, key_tokens = queries.shape[-2], keys.shape[-2]
    heads_at_once, queries_at_once = max(1, MAX_SLICE // (tokens * key_tokens)), max(1, min(tokens, MAX_SLICE // key_tokens))
    outputs = []
    for query, key, value in zip(*(each.flatten(0, 1).split(heads_at_once) for each in (queries, keys, values)), strict=True):
        slices = [_attend_slice(piece, key, value) for piece in query.split(queries_at_once, dim=1)]
        outputs.append(torch.cat(slices, dim=1))
    return torch.cat(outputs).view(queries.shape)


def _attend_slice(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return _attend(queries, keys, values)
    return checkpoint(_attend, queries, keys, values, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    weights = (queries @ keys.transpose(-1, -2)).float() / math.sqrt(queries.shape[-1])
    return weights.softmax(-1).to(values.dtype) @ values


ATTENTION: dict[str, Attend] = {"xformers": xformers, "sdpa": sdpa, "sliced": sliced}


class AttentionProcessor:
    """A processor of diffusers' Attention modules. `upcast`: computes in float32, for models whose attention overflows fp16 (SD 2)."""

    def __init__(self, attend: Attend, *, upcast: bool = False) -> None:
        self.attend, self.upcast = attend, upcast

    def __call__(self, attention: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        queries, keys, values = (
            layer(states).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for layer, states in ((attention.to_q, hidden_states), (attention.to_k, context), (attention.to_v, context))
        )
        if self.upcast:
            with torch.autocast(queries.device.type, enabled=False):
                attended = self.attend(queries.float(), keys.float(), values.float()).to(values.dtype)
        else:
            attended = self.attend(queries, keys, values)
        out = attention.to_out[1](attention.to_out[0](attended.transpose(1, 2).flatten(2)))
        return out / attention.rescale_output_factor  # type: ignore[no-any-return]


def set_processors(unet: nn.Module, name: str, *, upcast: bool = False) -> None:
    """Sets the attention processors of a U-Net to an implementation of ATTENTION; "sdpa" without upcast is diffusers' default."""
    if name == "sdpa" and not upcast:
        from diffusers.models.attention_processor import AttnProcessor2_0

        processor: Any = AttnProcessor2_0()
    else:
        processor = AttentionProcessor(ATTENTION[name], upcast=upcast)
    for module in unet.modules():
        if hasattr(module, "set_processor"):
            module.set_processor(processor)  # type: ignore[operator]


def why_not(name: str, device: torch.device, dtype: torch.dtype, widths: Sequence[int]) -> str:
    """Tries an implementation forward and backward on a few tokens, with heads of these widths; "" when it works, else the reason.

    Re-raises out-of-memory errors.
    """
    try:
        with torch.enable_grad():
            for width in widths:
                for key_tokens in (TRIED_TOKENS, TRIED_TEXT_TOKENS):
                    queries, keys, values = (
                        torch.ones(2, 1, count, width, device=device, dtype=dtype, requires_grad=True)
                        for count in (TRIED_TOKENS, key_tokens, key_tokens)
                    )
                    ATTENTION[name](queries, keys, values).sum().backward()
                    if not all(bool(torch.isfinite(each.grad).all()) for each in (queries, keys, values) if each.grad is not None):
                        return "its gradients are not finite"
    except (ImportError, RuntimeError, NotImplementedError, ValueError, AttributeError) as error:
        if is_out_of_memory(error, device):  # says nothing about the implementation
            raise
        return str(error).strip().partition("\n")[0][:200] or type(error).__name__
    return ""


def choose(requested: str, bundle: ModelBundle, host_attention: str = "") -> tuple[str, list[Warned]]:
    """The name of the implementation to use, and warnings: a requested one that does not work here gives way to the next.

    `host_attention`: the one that the host itself uses, "" where it is none of ATTENTION; "auto" tries it first.
    """
    widths, failure = head_widths(bundle.unet), ""
    order = dict.fromkeys([host_attention, *ORDER] if host_attention in ATTENTION else ORDER)
    for name in order if requested == "auto" else ORDER[ORDER.index(requested) :]:
        reason = why_not(name, bundle.device, bundle.dtype, widths)
        if not reason:
            return name, _warn_of_fallback(requested, name, failure)
        failure = reason if name == requested else failure
    return ORDER[-1], _warn_of_fallback(requested, ORDER[-1], failure)  # where it fails too, its own error will say more


def _warn_of_fallback(requested: str, used: str, reason: str) -> list[Warned]:
    if requested in ("auto", used):
        return []
    template = "Attention by {asked} does not work here ({reason}): {taken} is used."
    return [Warned(say(template, asked=requested, taken=used, reason=reason), "memory.attention")]


def head_widths(unet: nn.Module) -> list[int]:
    """Widths of a U-Net's attention heads, ascending."""
    widths = {module.to_q.out_features // module.heads for module in unet.modules() if hasattr(module, "to_q") and hasattr(module, "heads")}
    return sorted(widths)


def wants_upcast(bundle: ModelBundle) -> bool:
    """Whether the model is in fp16 and of a family whose attention overflows it (SD 2)."""
    return bundle.dtype is torch.float16 and bundle.family.upcast_attention
