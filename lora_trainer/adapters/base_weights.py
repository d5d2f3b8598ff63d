"""Networks merged into a model's weights as part of the model: changed copies of the layers' weights, the layers' own left untouched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs
import torch
from torch import Tensor, nn

from lora_trainer.adapters.base_layer import BaseLayer, add_delta, base_layer
from lora_trainer.adapters.network_file import ModuleState, bias_delta_of, delta_of
from lora_trainer.adapters.targets import module_at, trainable_layers
from lora_trainer.errors import ModelError
from lora_trainer.models.bundle import ModelBundle


@attrs.frozen(eq=False)
class MergedNetwork:
    """A file's modules by name, the strength that they are merged with, and the file's name for errors."""

    modules: Mapping[str, ModuleState]
    strength: float
    name: str


class MergedModel:
    """A bundle's layers, by path, with networks merged one after the other as hosts do it; holds copies of the layers that they touch.

    Raises ModelError for a network that names a layer which the model does not have, or whose shapes do not fit.
    """

    def __init__(self, bundle: ModelBundle, networks: Sequence[MergedNetwork]) -> None:
        paths = {layer.name: layer.path for layer in trainable_layers(bundle)} if networks else {}
        self.layers: dict[str, BaseLayer] = {}
        self._attached: list[nn.Module] = []
        with torch.no_grad():
            for network, name, state in _iter_modules(networks):
                if name not in paths:
                    raise ModelError(
                        "{path} holds {name}, which this model does not have.",
                        path=network.name,
                        name=name,
                        fix="Use a file of the same family.",
                    )
                self.layers[paths[name]] = _merge(self.layer_at(bundle, paths[name]), state, network, name)

    def layer_at(self, bundle: ModelBundle, path: str) -> BaseLayer:
        """The merged layer, or the model's own where no network touches it."""
        return self.layers.get(path) or base_layer(module_at(bundle, path))

    def attach(self, bundle: ModelBundle, except_paths: frozenset[str] = frozenset()) -> None:
        """Makes the touched layers use the merged weights, but for `except_paths`, whose own adapter reads `layer_at`."""
        for path in self.layers.keys() - except_paths:
            module = module_at(bundle, path)
            module.forward = self.layers[path].forward  # type: ignore[method-assign]
            self._attached.append(module)

    def detach(self) -> None:
        """Gives every layer its own `forward` back."""
        for module in self._attached:
            module.__dict__.pop("forward", None)
        self._attached.clear()


def _iter_modules(networks: Sequence[MergedNetwork]) -> Iterator[tuple[MergedNetwork, str, ModuleState]]:
    for network in networks:
        for name, state in network.modules.items():
            yield network, name, state


def _merge(base: BaseLayer, state: ModuleState, network: MergedNetwork, name: str) -> BaseLayer:
    try:
        delta = delta_of(to_device(state, base.weight.device), base.weight)
    except ModelError as error:
        raise ModelError(
            "{path}: {name} has another shape than the model.", path=network.name, name=name, fix="Use a file of the same family."
        ) from error
    bias, bias_delta = base.bias, bias_delta_of(state)
    if bias_delta is not None and bias is not None:
        bias = add_delta(bias, bias_delta.to(bias.device), network.strength)
    return attrs.evolve(base, weight=add_delta(base.weight, delta, network.strength), bias=bias)


def to_device(state: ModuleState, device: torch.device) -> ModuleState:
    """A module with its tensors on a device, float32."""
    tensors: dict[str, Tensor] = {suffix: tensor.to(device, torch.float32) for suffix, tensor in state.tensors.items()}
    return attrs.evolve(state, tensors=tensors)
