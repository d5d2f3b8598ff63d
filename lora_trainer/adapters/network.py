"""The network: adapter layers of any kind on the layers of a plan. The frozen weights are read, never written."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from lora_trainer.adapters.base_layer import BaseLayer
from lora_trainer.adapters.base_weights import MergedModel, MergedNetwork
from lora_trainer.adapters.kinds import kind_named
from lora_trainer.adapters.kinds.base import AdapterLayer, Forward
from lora_trainer.adapters.layer_plan import LayerPlan
from lora_trainer.adapters.rng import LayerRng
from lora_trainer.adapters.targets import module_at
from lora_trainer.errors import ModelError
from lora_trainer.models.bundle import ModelBundle


class NetworkAdapter:
    """What is trained: one `AdapterLayer` for each row of a plan, by part ("unet", "text_encoder") and name in a file.

    `base_weights`: networks that are part of the base model, and are not trained.
    """

    def __init__(
        self, bundle: ModelBundle, plan: Sequence[LayerPlan], *, seed: int = 0, base_weights: Sequence[MergedNetwork] = ()
    ) -> None:
        self.plan, self.base_weights = tuple(plan), tuple(base_weights)
        self.layers: dict[str, dict[str, AdapterLayer]] = {}
        model = MergedModel(bundle, self.base_weights)
        with torch.no_grad():
            for row in self.plan:
                self.layers.setdefault(row.part, {})[row.name] = make_layer(row, model.layer_at(bundle, row.path), seed, bundle.device)
        self.family = bundle.family.name
        self._multiplier = 1.0
        self._attached: list[nn.Module] = []
        self._merged_model = MergedModel(bundle, ())

    @property
    def multiplier(self) -> float:
        """The factor of the whole network's effect."""
        return self._multiplier

    @multiplier.setter
    def multiplier(self, value: float) -> None:
        self._multiplier = value
        for layer in self.iter_layers():
            layer.multiplier = value
            layer.refresh()

    def iter_layers(self) -> Iterator[AdapterLayer]:
        """All layers, in the order of the parts."""
        for layers in self.layers.values():
            yield from layers.values()

    @torch.inference_mode(False)
    def attach(self, bundle: ModelBundle, others: Sequence[MergedNetwork] = ()) -> None:
        """Replaces `forward` of each layer's module on the instance; class and weights are not touched.

        `others` are networks that work as well until it is detached, beside `base_weights`.
        """
        self.detach()
        self._merged_model = MergedModel(bundle, (*self.base_weights, *others))
        self._merged_model.attach(bundle, frozenset(row.path for row in self.plan))
        for layer in self.iter_layers():
            module = module_at(bundle, layer.plan.path)
            module.forward = make_forward(self._merged_model.layer_at(bundle, layer.plan.path), layer)  # type: ignore[method-assign]
            self._attached.append(module)

    def detach(self) -> None:
        """Gives every module its own `forward` back."""
        for module in self._attached:
            module.__dict__.pop("forward", None)
        self._attached.clear()
        self._merged_model.detach()
        self._merged_model.layers.clear()

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """Trainable float32 tensors by part, layer by layer, each in the order of its kind's shapes."""
        return {part: [tensor for layer in layers.values() for tensor in layer.parameters.values()] for part, layers in self.layers.items()}

    def lr_weights(self) -> dict[str, tuple[float, ...]]:
        """By part, the learning rate weight of each of its parameters."""
        return {
            part: tuple(layer.plan.lr_weight for layer in layers.values() for _ in layer.parameters) for part, layers in self.layers.items()
        }

    def lora_plus_indices(self, part: str) -> tuple[int, ...]:
        """Indices, among the part's parameters, of those to which LoRA+ gives a higher learning rate (B of B A)."""
        suffixes = [(layer.kind.spec.lora_plus, suffix) for layer in self.layers[part].values() for suffix in layer.parameters]
        return tuple(index for index, (lora_plus, suffix) in enumerate(suffixes) if suffix in lora_plus)

    @contextmanager
    def using_tensors(self, tensors: Iterable[Sequence[Tensor]], rng: LayerRng | None = None) -> Iterator[None]:
        """Layers compute with these instead of `parameters()` (same order, equal values, any dtype) while the block runs.

        With `rng` dropout is on, as in training; without it off.
        """
        for layers, part_tensors in zip(self.layers.values(), tensors, strict=True):
            start = 0
            for layer in layers.values():
                end = start + len(layer.parameters)
                layer.compute_tensors, start = tuple(part_tensors[start:end]), end
                layer.rng = rng
        try:
            yield
        finally:
            for layer in self.iter_layers():
                layer.compute_tensors, layer.rng = tuple(layer.parameters.values()), None

    @cached_property
    def is_random(self) -> bool:
        """Whether any layer draws random numbers in training."""
        return any(layer.kind.is_random(layer.options) for layer in self.iter_layers())

    @torch.no_grad()
    def clip_weight_norms(self, max_norm: float) -> int:
        """Scales every delta whose norm is above `max_norm` down to it; returns how many there were (sd-scripts' scale_weight_norms)."""
        measured = [layer for layer in self.iter_layers() if layer.kind.factors(layer.parameters)]
        norms = torch.stack([delta_norm(layer) for layer in measured]).tolist() if measured else []
        return sum(clip_norm(layer, norm, max_norm) for layer, norm in zip(measured, norms, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """NAME.alpha and NAME.SUFFIX for each layer; float32, detached."""
        state: dict[str, Tensor] = {}
        for layer in self.iter_layers():
            if layer.kind.spec.saves_alpha:
                state[f"{layer.plan.name}.alpha"] = torch.tensor(layer.alpha)
            state |= {f"{layer.plan.name}.{suffix}": tensor.detach() for suffix, tensor in layer.parameters.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies a file's tensors into the layers. Raises ModelError where names or shapes do not fit."""
        own = self.state_dict()
        mismatched = sorted(set(own) ^ set(state)) or [name for name in own if own[name].shape != state[name].shape]
        if mismatched:
            raise ModelError(
                "the network does not fit this model: {name}.", name=mismatched[0], fix="Use a file of the same family, type and rank."
            )
        with torch.no_grad():
            for layer in self.iter_layers():
                if layer.kind.spec.saves_alpha:
                    layer.alpha = float(state[f"{layer.plan.name}.alpha"])
                for suffix, tensor in layer.parameters.items():
                    tensor.copy_(state[f"{layer.plan.name}.{suffix}"])
                layer.refresh()

    def metadata(self) -> dict[str, str]:
        """A file's `ss_network_*`: the module, and the rank and alpha that most layers have."""
        rows = [(layer.plan.rank, _alpha_of(layer)) for layer in self.iter_layers() if layer.kind.spec.has_rank] or [(1, 1.0)]
        ((rank, alpha), _), *_ = Counter(rows).most_common(1)
        return {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(alpha)}

    def untrained_layers(self) -> dict[str, list[str]]:
        """By part, the names of layers whose zero-initialised tensors are all still zero: they were not trained.

        Layers with module dropout are left out: a few steps may have skipped one.
        """
        return {
            part: [name for name, layer in layers.items() if not layer.options.get("module_dropout") and not is_trained(layer)]
            for part, layers in self.layers.items()
        }


def _alpha_of(layer: AdapterLayer) -> float:
    """The alpha that settings would have for the layer, whose strength may be that of a file which the training began with."""
    planned = layer.kind.alpha_in_file(layer.plan, layer.parameters)
    return layer.plan.alpha * layer.alpha / planned if planned and layer.alpha != planned else layer.plan.alpha


def make_layer(plan: LayerPlan, base: BaseLayer, seed: int, device: torch.device | None = None) -> AdapterLayer:
    """A fresh layer on the device (None: the weight's); it is initialised the same whatever else is trained. Call under no_grad."""
    kind = kind_named(plan.kind)
    options = kind.spec.with_defaults(plan.options)
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(f"{seed}:{plan.name}".encode()).digest()[:8], "little") >> 1)
    shapes = kind.spec.shapes(base.shape, plan.rank, plan.options)
    tensors = {suffix: nn.Parameter(torch.zeros(shape, device=device or base.weight.device)) for suffix, shape in shapes.items()}
    kind.init_tensors(tensors, base, plan, generator)
    return AdapterLayer(plan, kind, options, tensors, kind.alpha_in_file(plan, tensors), base.shape.weight)


def make_forward(base: BaseLayer, layer: AdapterLayer) -> Forward:
    """The forward of the layer with its adapter; with module dropout, training sometimes skips the adapter."""
    adapted, p = layer.kind.forward(base, layer), layer.options.get("module_dropout", 0.0)
    if not p:
        return adapted

    def with_module_dropout(x: Tensor) -> Tensor:
        dropped = layer.rng is not None and layer.rng.uniform(layer.plan.name, "module") < p
        return base.forward(x) if dropped else adapted(x)

    return with_module_dropout


def is_trained(layer: AdapterLayer) -> bool:
    """Whether a tensor that was initialised to zero is not zero any more."""
    zero_init = layer.kind.spec.zero_init
    return any(bool(tensor.detach().any()) for suffix, tensor in layer.parameters.items() if suffix in zero_init)


def delta_norm(layer: AdapterLayer) -> Tensor:
    """Frobenius norm of a layer's weight delta."""
    return layer.kind.norm(layer.parameters, torch.empty(layer.shape, device="meta")) * abs(layer.scale)


def clip_norm(layer: AdapterLayer, norm: float, max_norm: float) -> bool:
    """Scales one delta down to `max_norm` where it is longer. The product is linear in each factor: all shrink alike."""
    if not norm > max_norm:
        return False
    factors = layer.kind.factors(layer.parameters)
    for tensor in factors:
        tensor.mul_((max_norm / norm) ** (1 / len(factors)))
    return True
