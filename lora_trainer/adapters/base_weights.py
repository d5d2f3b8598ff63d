"""Networks' files that count as part of the model: weights of its layers with what the files add, the layers' own left as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs
import torch
from torch import Tensor, nn

from lora_trainer.adapters.base_layer import BaseLayer, add_delta, base_layer
from lora_trainer.adapters.network_file import ModuleState, bias_delta_of, delta_of
from lora_trainer.adapters.targets import layers_of, module_at
from lora_trainer.errors import ModelError
from lora_trainer.models.bundle import ModelBundle


@attrs.frozen(eq=False)
class MergedNetwork:
    """A file's modules by name, how strongly they count, and what an error calls it."""

    modules: Mapping[str, ModuleState]
    strength: float
    name: str


class MergedModel:
    """Sites of a bundle's layers by path with the files added, one after the other as hosts do; copies of the layers that they touch."""

    def __init__(self, bundle: ModelBundle, sources: Sequence[MergedNetwork]) -> None:
        paths = {layer.name: layer.path for layer in layers_of(bundle)} if sources else {}
        self.sites: dict[str, BaseLayer] = {}
        self._attached: list[nn.Module] = []
        with torch.no_grad():
            for source, name, state in _every(sources):
                if name not in paths:
                    raise ModelError(
                        "{path} holds {name}, which this model has not.", path=source.name, name=name, fix="Use a file of the same family."
                    )
                self.sites[paths[name]] = _added(self.site(bundle, paths[name]), state, source, name)

    def site(self, bundle: ModelBundle, path: str) -> BaseLayer:
        """The layer's site, changed or its own."""
        return self.sites.get(path) or base_layer(module_at(bundle, path))

    def attach(self, bundle: ModelBundle, besides: frozenset[str] = frozenset()) -> None:
        """The touched layers work with the changed weights, but for those of `besides`, whose own network reads the site."""
        for path in self.sites.keys() - besides:
            module = module_at(bundle, path)
            module.forward = self.sites[path].base  # type: ignore[method-assign]
            self._attached.append(module)

    def detach(self) -> None:
        """Gives every layer its own `forward` back."""
        for module in self._attached:
            module.__dict__.pop("forward", None)
        self._attached.clear()


def _every(sources: Sequence[MergedNetwork]) -> Iterator[tuple[MergedNetwork, str, ModuleState]]:
    for source in sources:
        for name, state in source.modules.items():
            yield source, name, state


def _added(site: BaseLayer, state: ModuleState, source: MergedNetwork, name: str) -> BaseLayer:
    try:
        delta = delta_of(on(state, site.weight.device), site.weight)
    except ModelError as error:
        raise ModelError(
            "{path}: {name} has another shape than the model.", path=source.name, name=name, fix="Use a file of the same family."
        ) from error
    bias, more = site.bias, bias_delta_of(state)
    if more is not None and bias is not None:
        bias = add_delta(bias, more.to(bias.device), source.strength)
    return attrs.evolve(site, weight=add_delta(site.weight, delta, source.strength), bias=bias)


def on(state: ModuleState, device: torch.device) -> ModuleState:
    """A module's tensors on a device, float32."""
    tensors: dict[str, Tensor] = {suffix: tensor.to(device, torch.float32) for suffix, tensor in state.tensors.items()}
    return attrs.evolve(state, tensors=tensors)
