"""LoRA (Hu et al. 2021): each layer gains up(down(x)) * alpha / rank; the layer's own weight is read, never written."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_trainer.adapters.targets import targets
from lora_trainer.errors import ModelError
from lora_trainer.models.bundle import ModelBundle


class Pair:
    """The two matrices of one layer, float32: down [rank, in(, 1, 1)], up [out, rank(, 1, 1)]."""

    def __init__(self, name: str, module: nn.Module, rank: int, alpha: float, seed: int) -> None:
        weight = module.weight
        tail = tuple(weight.shape[2:])  # type: ignore[index]
        self.name, self.alpha, self.rank = name, alpha, rank
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little") >> 1)
        bound = 1.0 / math.sqrt(weight.shape[1])  # kaiming uniform with a = sqrt(5), as sd-scripts starts
        down = torch.empty(rank, weight.shape[1], *tail).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, *tail, device=weight.device))
        self.used: tuple[Tensor, Tensor] = (self.down, self.up)

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank


class LoraAdapter:
    """LoRA on a model's attention layers. `parts` names what is trained: "unet", "text_encoder" or both."""

    def __init__(self, bundle: ModelBundle, *, rank: int, alpha: float, parts: Sequence[str], seed: int = 0) -> None:
        self.multiplier = 1.0
        self.rank, self.alpha = rank, alpha
        self.pairs: dict[str, dict[str, Pair]] = {
            part: {name: Pair(name, module, rank, alpha, seed) for name, module in targets(bundle, part)} for part in parts
        }
        self._attached: list[nn.Module] = []

    def attach(self, bundle: ModelBundle) -> None:
        """Replaces `forward` of each target on the instance; the class and the weights stay untouched."""
        self.detach()
        for part, pairs in self.pairs.items():
            for name, module in targets(bundle, part):
                module.forward = self._forward(module, pairs[name])  # type: ignore[method-assign]
                self._attached.append(module)

    def detach(self) -> None:
        """Gives every target its own `forward` back."""
        for module in self._attached:
            module.__dict__.pop("forward", None)
        self._attached.clear()

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """Trainable tensors by part."""
        return {part: [tensor for pair in pairs.values() for tensor in (pair.down, pair.up)] for part, pairs in self.pairs.items()}

    def upper(self, part: str) -> tuple[int, ...]:
        """The places of the upper matrices, which start at zero, among the part's parameters."""
        return tuple(range(1, 2 * len(self.pairs[part]), 2))

    @contextmanager
    def calculating_with(self, tensors: Iterable[Sequence[Tensor]]) -> Iterator[None]:
        """Layers use these instead of `parameters()` (same order, equal values, any format) while the block runs."""
        for pairs, given in zip(self.pairs.values(), tensors, strict=True):
            for pair, down, up in zip(pairs.values(), given[::2], given[1::2], strict=True):
                pair.used = (down, up)
        try:
            yield
        finally:
            for pairs in self.pairs.values():
                for pair in pairs.values():
                    pair.used = (pair.down, pair.up)

    def state_dict(self) -> dict[str, Tensor]:
        """`NAME.alpha`, `NAME.lora_down.weight`, `NAME.lora_up.weight`; float32, detached."""
        state: dict[str, Tensor] = {}
        for pairs in self.pairs.values():
            for name, pair in pairs.items():
                state[f"{name}.alpha"] = torch.tensor(pair.alpha)
                state[f"{name}.lora_down.weight"] = pair.down.detach()
                state[f"{name}.lora_up.weight"] = pair.up.detach()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies tensors of a file into the pairs. Raises ModelError when names or shapes do not fit."""
        own = self.state_dict()
        wrong = sorted(set(own) ^ set(state)) or [name for name in own if own[name].shape != state[name].shape]
        if wrong:
            raise ModelError("the LoRA does not fit this model: {name}.", name=wrong[0], fix="Use a LoRA of the same family and rank.")
        for pairs in self.pairs.values():
            for name, pair in pairs.items():
                pair.alpha = float(state[f"{name}.alpha"])
                with torch.no_grad():
                    pair.down.copy_(state[f"{name}.lora_down.weight"])
                    pair.up.copy_(state[f"{name}.lora_up.weight"])

    def metadata(self) -> dict[str, str]:
        """The header's words for this network."""
        return {"ss_network_module": "networks.lora", "ss_network_dim": str(self.rank), "ss_network_alpha": str(self.alpha)}

    def unmoved(self) -> dict[str, list[str]]:
        """By part, the layers whose `up` is still all zero: they were not trained."""
        return {part: [name for name, pair in pairs.items() if not pair.up.detach().any()] for part, pairs in self.pairs.items()}

    def _forward(self, module: nn.Module, pair: Pair) -> Callable[[Tensor], Tensor]:
        weight, bias = module.weight, module.bias
        if isinstance(module, nn.Linear):

            def linear(x: Tensor) -> Tensor:
                down, up = pair.used
                rows = x.reshape(-1, x.shape[-1])
                base = functional.linear(rows, weight, bias)  # type: ignore[arg-type]
                inner = functional.linear(rows, down)
                return torch.addmm(base, inner, up.t(), alpha=pair.scale * self.multiplier).view(*x.shape[:-1], -1)

            return linear

        def pointwise(x: Tensor) -> Tensor:
            down, up = pair.used
            base = functional.conv2d(x, weight, bias)  # type: ignore[arg-type]
            inner = functional.conv2d(functional.conv2d(x, down), up)
            return torch.add(base, inner, alpha=pair.scale * self.multiplier)

        return pointwise
