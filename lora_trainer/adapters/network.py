"""The network: additions of any kind on the layers of a plan. The layers' own weights are read, never written."""

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
from lora_trainer.adapters.kinds.base import Forward, Layer
from lora_trainer.adapters.layer_plan import LayerPlan
from lora_trainer.adapters.rng import LayerRng
from lora_trainer.adapters.targets import module_at
from lora_trainer.errors import ModelError
from lora_trainer.models.bundle import ModelBundle


class NetworkAdapter:
    """What is trained: one `Layer` for each row of a plan, by part ("unet", "text_encoder") and name in a file.

    `below`: other networks that count as part of the model, and stay as they are.
    """

    def __init__(self, bundle: ModelBundle, plan: Sequence[LayerPlan], *, seed: int = 0, below: Sequence[MergedNetwork] = ()) -> None:
        self.plan, self.below = tuple(plan), tuple(below)
        self.layers: dict[str, dict[str, Layer]] = {}
        model = MergedModel(bundle, self.below)
        with torch.no_grad():
            for row in self.plan:
                self.layers.setdefault(row.part, {})[row.name] = make_layer(row, model.site(bundle, row.path), seed)
        self._multiplier = 1.0
        self._attached: list[nn.Module] = []
        self._model = MergedModel(bundle, ())

    @property
    def multiplier(self) -> float:
        """How many times the whole network counts."""
        return self._multiplier

    @multiplier.setter
    def multiplier(self, value: float) -> None:
        self._multiplier = value
        for layer in self.iter_layers():
            layer.multiplier = value
            layer.refresh()

    def iter_layers(self) -> Iterator[Layer]:
        """All layers, in the order of the parts."""
        for layers in self.layers.values():
            yield from layers.values()

    @torch.inference_mode(False)
    def attach(self, bundle: ModelBundle) -> None:
        """Replaces `forward` of each layer's module on the instance; the class and the weights stay untouched."""
        self.detach()
        self._model = MergedModel(bundle, self.below)
        self._model.attach(bundle, frozenset(row.path for row in self.plan))
        for layer in self.iter_layers():
            module = module_at(bundle, layer.plan.path)
            module.forward = forward_of(self._model.site(bundle, layer.plan.path), layer)  # type: ignore[method-assign]
            self._attached.append(module)

    def detach(self) -> None:
        """Gives every module its own `forward` back."""
        for module in self._attached:
            module.__dict__.pop("forward", None)
        self._attached.clear()
        self._model.detach()
        self._model.sites.clear()

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """Trainable float32 tensors by part, layer after layer, each in the order of its kind's shapes."""
        return {part: [tensor for layer in layers.values() for tensor in layer.parameters.values()] for part, layers in self.layers.items()}

    def rates(self) -> dict[str, tuple[float, ...]]:
        """By part, for each of its parameters the share of the part's learning rate."""
        return {part: tuple(layer.plan.rate for layer in layers.values() for _ in layer.parameters) for part, layers in self.layers.items()}

    def upper(self, part: str) -> tuple[int, ...]:
        """The places of the upper matrices, which start at zero, among the part's parameters."""
        suffixes = [(layer.kind.facts.upper, suffix) for layer in self.layers[part].values() for suffix in layer.parameters]
        return tuple(place for place, (upper, suffix) in enumerate(suffixes) if suffix in upper)

    @contextmanager
    def using_tensors(self, tensors: Iterable[Sequence[Tensor]], chance: LayerRng | None = None) -> Iterator[None]:
        """Layers use these instead of `parameters()` (same order, equal values, any format) while the block runs.

        With `chance` they leave out what dropout draws, as training wants it; without it they are whole.
        """
        for layers, given in zip(self.layers.values(), tensors, strict=True):
            place = 0
            for layer in layers.values():
                count = len(layer.parameters)
                layer.used, place = tuple(given[place : place + count]), place + count
                layer.rng = chance
        try:
            yield
        finally:
            for layer in self.iter_layers():
                layer.used, layer.rng = tuple(layer.parameters.values()), None

    @cached_property
    def is_random(self) -> bool:
        """Whether anything in it is drawn at random while it learns."""
        return any(layer.kind.is_random(layer.options) for layer in self.iter_layers())

    @torch.no_grad()
    def clip_weight_norms(self, limit: float) -> int:
        """Makes every addition whose norm is beyond `limit` as long as that, and says how many there were (max-norm, sd-scripts')."""
        measured = [layer for layer in self.iter_layers() if layer.kind.factors(layer.parameters)]
        norms = torch.stack([norm_of(layer) for layer in measured]).tolist() if measured else []
        return sum(clip_norm(layer, norm, limit) for layer, norm in zip(measured, norms, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """NAME.alpha and NAME.SUFFIX; float32, detached."""
        state: dict[str, Tensor] = {}
        for layer in self.iter_layers():
            if layer.kind.facts.always_alpha:
                state[f"{layer.plan.name}.alpha"] = torch.tensor(layer.alpha)
            state |= {f"{layer.plan.name}.{suffix}": tensor.detach() for suffix, tensor in layer.parameters.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies tensors of a file into the layers. Raises ModelError when names or shapes do not fit."""
        own = self.state_dict()
        wrong = sorted(set(own) ^ set(state)) or [name for name in own if own[name].shape != state[name].shape]
        if wrong:
            raise ModelError(
                "the network does not fit this model: {name}.", name=wrong[0], fix="Use a file of the same family, type and rank."
            )
        with torch.no_grad():
            for layer in self.iter_layers():
                if layer.kind.facts.always_alpha:
                    layer.alpha = float(state[f"{layer.plan.name}.alpha"])
                for suffix, tensor in layer.parameters.items():
                    tensor.copy_(state[f"{layer.plan.name}.{suffix}"])
                layer.refresh()

    def metadata(self) -> dict[str, str]:
        """The header's words for this network: its kinds, and the rank and alpha that most layers have."""
        rows = [(row.rank, row.alpha) for row in self.plan if kind_named(row.kind).facts.ranked] or [(1, 1.0)]
        ((rank, alpha), _), *_ = Counter(rows).most_common(1)
        return {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(alpha)}

    def untrained_layers(self) -> dict[str, list[str]]:
        """By part, the layers of which everything that began at zero is still zero: they were not trained.

        Those that chance leaves out are not counted: a few steps may have missed one.
        """
        return {
            part: [name for name, layer in layers.items() if not layer.options.get("module_dropout") and not has_moved(layer)]
            for part, layers in self.layers.items()
        }


def make_layer(row: LayerPlan, site: BaseLayer, seed: int) -> Layer:
    """A fresh layer of a plan's row, on the weight's device. A layer starts the same whatever else is trained. Under no_grad."""
    kind = kind_named(row.kind)
    options = kind.facts.settings(row.options)
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(f"{seed}:{row.name}".encode()).digest()[:8], "little") >> 1)
    shapes = kind.facts.shapes(site.shape, row.rank, row.options)
    tensors = {suffix: nn.Parameter(torch.zeros(shape, device=site.weight.device)) for suffix, shape in shapes.items()}
    kind.init_tensors(tensors, site, row, generator)
    return Layer(row, kind, options, tensors, kind.alpha_in_file(row, tensors), site.shape.weight)


def forward_of(site: BaseLayer, layer: Layer) -> Forward:
    """The layer with its addition; with module dropout it is now and then left out whole while it learns."""
    whole, share = layer.kind.forward(site, layer), layer.options.get("module_dropout", 0.0)
    if not share:
        return whole

    def sometimes(x: Tensor) -> Tensor:
        left_out = layer.rng is not None and layer.rng.uniform(layer.plan.name, "module") < share
        return site.base(x) if left_out else whole(x)

    return sometimes


def has_moved(layer: Layer) -> bool:
    """Whether a tensor that began at zero is not zero any more."""
    zero = layer.kind.facts.zero
    return any(bool(tensor.detach().any()) for suffix, tensor in layer.parameters.items() if suffix in zero)


def norm_of(layer: Layer) -> Tensor:
    """The norm of what a layer adds to its weight."""
    return layer.kind.norm(layer.parameters, torch.empty(layer.shape, device="meta")) * abs(layer.scale)


def clip_norm(layer: Layer, norm: float, limit: float) -> bool:
    """Shortens one addition to `limit` where it is longer. The product is of the first degree in each tensor: all shrink alike."""
    if not norm > limit:
        return False
    factors = layer.kind.factors(layer.parameters)
    for tensor in factors:
        tensor.mul_((limit / norm) ** (1 / len(factors)))
    return True
