"""The optimizer of a run: parameters in flat buffers, stepped whole where it works element by element, else matrix by matrix."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import chain, groupby
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from lora_trainer.config.choices.optimizers import optimizer_named
from lora_trainer.errors import TrainerError
from lora_trainer.optim.builders import maker
from lora_trainer.optim.state import moved, other_state, pack_state, unpack_state

PROBED = (64, 64)
"""A matrix of 4096 numbers: from there on the 8-bit optimizers keep 8 bits."""


class CannotStep(TrainerError):
    """An optimizer that is installed but does not work here: its package lacks kernels for this device."""


def probe(name: str, options: Mapping[str, Any], device: str = "cpu") -> None:
    """One real step of the optimizer on one matrix.

    Raises MissingPackage, TrainerError for options that it does not take, CannotStep when it fails on this device.
    """
    parameter = nn.Parameter(torch.ones(PROBED, device=device))
    try:
        with torch.inference_mode(False), torch.enable_grad():
            made = make_optimizer(name, {"probe": [parameter]}, [GroupPlan("probe", "probe", 1.0)], options)
            (made.tensors()[0][0] ** 2).sum().backward()
            made.step(1e-4)
    except (TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise TrainerError(
            "{name} does not take these arguments: {reason}.",
            path="optimizer.args",
            name=name,
            reason=str(error) or type(error).__name__,
            fix="Correct or empty the field.",
        ) from error
    except (RuntimeError, ImportError, OSError, AttributeError) as error:
        raise CannotStep(
            "{name} does not work on this machine ({device}): {reason}.",
            path="optimizer.type",
            name=name,
            device=device,
            reason=str(error)[:200],
            fix="Choose AdamW, or AdaFactor where memory is short.",
        ) from error


@attrs.frozen
class GroupPlan:
    """One learning rate: `places` are the numbers of its parameters within the adapter's part (None: all of them)."""

    name: str
    part: str
    rate: float
    places: tuple[int, ...] | None = None


class Group:
    """The parameters of one learning rate in one flat float32 buffer, equal shapes side by side; the parameters become views of it."""

    def __init__(self, plan: GroupPlan, parameters: Sequence[nn.Parameter]) -> None:
        self.name, self.part, self.rate = plan.name, plan.part, plan.rate
        self.places = plan.places or tuple(range(len(parameters)))
        self.parameters = list(parameters)
        order = sorted(range(len(parameters)), key=lambda number: tuple(parameters[number].shape))
        self._blocks = [(len(list(same)), shape) for shape, same in groupby(parameters[number].shape for number in order)]
        self._inverse = sorted(range(len(order)), key=order.__getitem__)
        self.buffer = nn.Parameter(torch.cat([parameters[number].detach().reshape(-1) for number in order]))
        self._lay()

    @torch.no_grad()
    def _lay(self) -> None:
        for parameter, view in zip(self.parameters, self.cut(self.buffer.detach()), strict=True):
            parameter.data = view

    def cut(self, flat: Tensor) -> list[Tensor]:
        """The parameters in their own order, cut from a flat tensor in so few operations that each costs next to nothing."""
        blocks = flat.split([count * shape.numel() for count, shape in self._blocks])
        cut = [block.view(count, *shape).unbind() for block, (count, shape) in zip(blocks, self._blocks, strict=True)]
        tensors = list(chain.from_iterable(cut))
        return [tensors[place] for place in self._inverse]

    def move(self, device: torch.device) -> None:
        """Fresh storage on `device`, equal values; parameters are views of it, the gradient is dropped."""
        self.buffer.grad = None
        self.buffer.data = self.buffer.detach().to(device, copy=True)
        self._lay()


class TrainingOptimizer:
    """What steps the parameters of a run, one group for each learning rate.

    What a batch calculates with comes from `tensors`, so that its gradients arrive in the groups' buffers whole: a handful of
    operations instead of several for each of hundreds of matrices. `inner` is the torch optimizer; where it does not work element by
    element it sees the matrices themselves, as views of the buffers.
    """

    def __init__(
        self, name: str, parts: Mapping[str, Sequence[nn.Parameter]], plans: Sequence[GroupPlan], options: Mapping[str, Any]
    ) -> None:
        choice, known = maker(name), optimizer_named(name)
        self.name, self.options = choice.name, dict(options)
        self.elementwise, self.bytes_per_parameter, self.finds = known.elementwise, known.bytes, known.finds
        self.groups = [
            Group(plan, [parts[plan.part][place] for place in plan.places] if plan.places else parts[plan.part]) for plan in plans
        ]
        self._parts = {part: [group for group in self.groups if group.part == part] for part in parts}
        self._seen = [[group.buffer] if self.elementwise else group.parameters for group in self.groups]
        made = [{"params": seen, "lr": group.rate} for seen, group in zip(self._seen, self.groups, strict=True)]
        with redirect_stdout(sys.stderr):  # some of them talk
            self.inner = choice.make(made, options)
        if callable(getattr(self.inner, "train", None)):
            self.inner.train()  # type: ignore[attr-defined]

    @property
    def capturable(self) -> bool:
        """Whether a step may be replayed by a CUDA graph: AdamW where it keeps its count of steps on the device."""
        return self.name == "AdamW" and bool(self.inner.param_groups[0].get("fused") or self.inner.param_groups[0].get("capturable"))

    def tensors(self, dtype: torch.dtype | None = None) -> list[list[Tensor]]:
        """Each part's parameters for one forward and backward, in `dtype` (None: float32); their gradients add up in the buffers."""
        return [
            _merged([(group.places, group.cut(group.buffer.to(dtype or group.buffer.dtype))) for group in groups])
            for groups in self._parts.values()
        ]

    def gradients(self) -> list[Tensor]:
        """The flat gradients, one per group that has one."""
        return [group.buffer.grad for group in self.groups if group.buffer.grad is not None]

    def unscale(self, scaler: Any) -> None:
        """Takes the loss scale out of the gradients; the GradScaler remembers whether they are finite."""
        self._hand_out()
        scaler.unscale_(self.inner)

    def step(self, factor: float) -> None:
        """One step at `factor` times each group's rate; gradients are dropped after it.

        At a rate of 0 an optimizer that finds the size of its steps learns nothing of it (and some divide by it).
        """
        for made, group in zip(self.inner.param_groups, self.groups, strict=True):
            made["lr"] = group.rate * factor
        self._hand_out()
        if not self.finds or any(made["lr"] for made in self.inner.param_groups):
            self.inner.step()
        self.drop()

    def drop(self) -> None:
        """Forgets the gradients."""
        for group, seen in zip(self.groups, self._seen, strict=True):
            group.buffer.grad = None
            for parameter in seen:
                parameter.grad = None

    def rates(self, factor: float) -> dict[str, float]:
        """Each group's learning rate at `factor`, as it takes effect: with the step size that the optimizer found itself."""
        return {
            group.name: self._effective(made, group.rate * factor) for group, made in zip(self.groups, self.inner.param_groups, strict=True)
        }

    def _effective(self, made: Mapping[str, Any], rate: float) -> float:
        if made.get("relative_step"):  # AdaFactor: of the group's first matrix
            state = self.inner.state.get(made["params"][0])
            return float(self.inner._get_lr(made, state)) if state else 0.0  # type: ignore[attr-defined]
        return rate * float(made.get("d", 1.0))

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """New rates by group name, from the next step on."""
        for group in self.groups:
            group.rate = rates.get(group.name, group.rate)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors by name, the rest as JSON can hold it). With the parameters' values it is all that the next step depends on."""
        tensors, plain = pack_state(self.inner, self._names(), self.options)
        return tensors, {"name": self.name, **plain}

    def load_state_dict(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave: the next step is the same in every bit. Raises TrainerError where it does not fit."""
        if plain["name"] != self.name:
            raise other_state()
        unpack_state(self.inner, self._names(), self.options, tensors, plain)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the parameters are those to save, draw and validate with: the average of a schedule-free optimizer, else unchanged."""
        if not callable(getattr(self.inner, "eval", None)):
            yield
            return
        kept = [group.buffer.detach().clone() for group in self.groups]
        self.inner.eval()  # type: ignore[attr-defined]
        try:
            yield
        finally:
            self.inner.train()  # type: ignore[attr-defined]
            with torch.no_grad():  # back and forth would round
                for group, values in zip(self.groups, kept, strict=True):
                    group.buffer.copy_(values)

    def park(self) -> None:
        """Parameters and state as fresh copies on the CPU: nothing of theirs stays on the device."""
        self._move(torch.device("cpu"))

    def unpark(self, device: torch.device) -> None:
        """Back on `device` as they were."""
        self._move(device)

    def _move(self, device: torch.device) -> None:
        self.drop()
        for group in self.groups:
            group.move(device)
        moved(self.inner, device)

    def _names(self) -> dict[str, nn.Parameter]:
        named = zip(self.groups, self._seen, strict=True)
        return {f"{group.name}.{number}": parameter for group, seen in named for number, parameter in enumerate(seen)}

    def _hand_out(self) -> None:
        """Where the optimizer sees matrices: their gradients are views of the flat ones."""
        if self.elementwise:
            return
        for group in self.groups:
            if group.buffer.grad is not None:
                for parameter, gradient in zip(group.parameters, group.cut(group.buffer.grad), strict=True):
                    parameter.grad = gradient


def _merged(cut: Sequence[tuple[Sequence[int], list[Tensor]]]) -> list[Tensor]:
    """Tensors of the groups of one part in the part's own order."""
    if len(cut) == 1:
        return cut[0][1]
    return [
        tensor
        for _, tensor in sorted(
            ((place, tensor) for places, tensors in cut for place, tensor in zip(places, tensors, strict=True)), key=lambda pair: pair[0]
        )
    ]


def make_optimizer(
    name: str, parts: Mapping[str, Sequence[nn.Parameter]], plans: Sequence[GroupPlan], options: Mapping[str, Any]
) -> TrainingOptimizer:
    """The optimizer `name` over an adapter's parameters by part; every parameter belongs to exactly one of `plans`."""
    return TrainingOptimizer(name, parts, plans, options)
