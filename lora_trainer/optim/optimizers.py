"""The optimizer of a run: parameters in flat buffers, which elementwise optimizers step whole, and others matrix by matrix."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import chain, groupby
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from lora_trainer.config.choices.optimizers import optimizer_spec
from lora_trainer.errors import TrainerError
from lora_trainer.host.out_of_memory import is_out_of_memory
from lora_trainer.optim.builders import optimizer_choice
from lora_trainer.optim.state import move_state, pack_state, state_mismatch, unpack_state

PROBE_SHAPE = (64, 64)
"""4096 elements: the size from which 8-bit optimizers keep their state in 8 bits."""


class CannotStep(TrainerError):
    """An optimizer that is installed but fails on this device, for example because its package has no kernels for it."""


def probe(name: str, options: Mapping[str, Any], device: str = "cpu") -> None:
    """Takes one real step of the optimizer on one matrix.

    Raises MissingPackage, TrainerError for options that it does not accept, CannotStep where it fails on this device.
    """
    parameter = nn.Parameter(torch.ones(PROBE_SHAPE, device=device))
    try:
        with torch.inference_mode(False), torch.enable_grad():
            optimizer = make_optimizer(name, {"probe": [parameter]}, [GroupPlan("probe", "probe", 1.0)], options)
            (optimizer.tensors()[0][0] ** 2).sum().backward()
            optimizer.step(1e-4)
    except (TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise TrainerError(
            "{name} does not take these arguments: {reason}.",
            path="optimizer.args",
            name=name,
            reason=str(error) or type(error).__name__,
            fix="Correct or empty the field.",
        ) from error
    except (RuntimeError, ImportError, OSError, AttributeError) as error:
        if is_out_of_memory(error):  # says nothing about the optimizer
            raise
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
    """A parameter group to build: its part of the adapter, learning rate, and the indices of its parameters in that part (None: all)."""

    name: str
    part: str
    lr: float
    indices: tuple[int, ...] | None = None


class ParamGroup:
    """The parameters of one learning rate in one flat float32 buffer, ordered by shape; the parameters become views of it."""

    def __init__(self, plan: GroupPlan, parameters: Sequence[nn.Parameter]) -> None:
        self.name, self.part, self.lr = plan.name, plan.part, plan.lr
        self.indices = plan.indices or tuple(range(len(parameters)))
        self.parameters = list(parameters)
        order = sorted(range(len(parameters)), key=lambda index: tuple(parameters[index].shape))
        self._blocks = [(len(list(same)), shape) for shape, same in groupby(parameters[index].shape for index in order)]
        self._inverse = sorted(range(len(order)), key=order.__getitem__)
        self.buffer = nn.Parameter(torch.cat([parameters[index].detach().reshape(-1) for index in order]))
        self._make_views()

    @torch.no_grad()
    def _make_views(self) -> None:
        for parameter, view in zip(self.parameters, self.split(self.buffer.detach()), strict=True):
            parameter.data = view

    def split(self, flat: Tensor) -> list[Tensor]:
        """A flat tensor as the group's parameters, in their own order: views, from one operation for each shape."""
        blocks = flat.split([count * shape.numel() for count, shape in self._blocks])
        views = [block.view(count, *shape).unbind() for block, (count, shape) in zip(blocks, self._blocks, strict=True)]
        tensors = list(chain.from_iterable(views))
        return [tensors[index] for index in self._inverse]

    def move(self, device: torch.device) -> None:
        """Moves the buffer to fresh storage on `device`; the gradient is dropped."""
        self.buffer.grad = None
        self.buffer.data = self.buffer.detach().to(device, copy=True)
        self._make_views()


class TrainingOptimizer:
    """The optimizer of a run, with one parameter group for each learning rate.

    A batch computes with `tensors`, so that its gradients accumulate in the groups' flat buffers: a few operations in all, not several
    for each of hundreds of matrices. `inner` is the torch optimizer; one that is not elementwise gets the matrices, as views of the
    buffers.
    """

    def __init__(
        self, name: str, parts: Mapping[str, Sequence[nn.Parameter]], plans: Sequence[GroupPlan], options: Mapping[str, Any]
    ) -> None:
        choice, spec = optimizer_choice(name), optimizer_spec(name)
        self.name, self.options = choice.name, dict(options)
        self.elementwise, self.adaptive = spec.elementwise, spec.adaptive
        self.groups = [
            ParamGroup(plan, [parts[plan.part][index] for index in plan.indices] if plan.indices else parts[plan.part]) for plan in plans
        ]
        self._parts = {part: [group for group in self.groups if group.part == part] for part in parts}
        self._stepped = [[group.buffer] if self.elementwise else group.parameters for group in self.groups]
        param_groups = [{"params": params, "lr": group.lr} for params, group in zip(self._stepped, self.groups, strict=True)]
        with redirect_stdout(sys.stderr):  # some of them print
            self.inner = choice.build(param_groups, options)
        if callable(getattr(self.inner, "train", None)):
            self.inner.train()  # type: ignore[attr-defined]

    def tensors(self, dtype: torch.dtype | None = None) -> list[list[Tensor]]:
        """Each part's parameters for one forward and backward, in `dtype` (None: float32); their gradients accumulate in the buffers."""
        return [
            _in_part_order([(group.indices, group.split(group.buffer.to(dtype or group.buffer.dtype))) for group in groups])
            for groups in self._parts.values()
        ]

    def gradients(self) -> list[Tensor]:
        """The flat gradients, one per group that has one."""
        return [group.buffer.grad for group in self.groups if group.buffer.grad is not None]

    def unscale(self, scaler: Any) -> None:
        """Divides the gradients by the loss scale; the GradScaler records whether they are finite."""
        self._share_gradients()
        scaler.unscale_(self.inner)

    def step(self, factor: float) -> None:
        """One step at `factor` times each group's learning rate; gradients are dropped after it.

        An adaptive optimizer is not stepped at a learning rate of 0: it would adapt to nothing, and some divide by it.
        """
        for param_group, group in zip(self.inner.param_groups, self.groups, strict=True):
            param_group["lr"] = group.lr * factor
        self._share_gradients()
        if not self.adaptive or any(param_group["lr"] for param_group in self.inner.param_groups):
            self.inner.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drops the gradients."""
        for group, params in zip(self.groups, self._stepped, strict=True):
            group.buffer.grad = None
            for parameter in params:
                parameter.grad = None

    def learning_rates(self, factor: float) -> dict[str, float]:
        """Each group's effective learning rate at `factor`: with the step size that an adaptive optimizer found."""
        return {
            group.name: self._effective_lr(param_group, group.lr * factor)
            for group, param_group in zip(self.groups, self.inner.param_groups, strict=True)
        }

    def _effective_lr(self, param_group: Mapping[str, Any], lr: float) -> float:
        if param_group.get("relative_step"):  # AdaFactor: of the group's first matrix
            state = self.inner.state.get(param_group["params"][0])
            return float(self.inner._get_lr(param_group, state)) if state else 0.0  # type: ignore[attr-defined]
        return lr * float(param_group.get("d", 1.0))

    def set_learning_rates(self, learning_rates: Mapping[str, float]) -> None:
        """New learning rates by group name, from the next step on."""
        for group in self.groups:
            group.lr = learning_rates.get(group.name, group.lr)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors by name, everything else as JSON values): with the parameters, all that the next step depends on."""
        tensors, plain = pack_state(self.inner, self._names(), self.options)
        return tensors, {"name": self.name, **plain}

    def load_state_dict(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Restores a `state_dict`: the next step is the same in every bit. Raises TrainerError where it does not fit."""
        if plain["name"] != self.name:
            raise state_mismatch()
        unpack_state(self.inner, self._names(), self.options, tensors, plain)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside, the parameters are those to save, preview and validate with: a schedule-free optimizer's average, else unchanged."""
        if not callable(getattr(self.inner, "eval", None)):
            yield
            return
        training_values = [group.buffer.detach().clone() for group in self.groups]
        self.inner.eval()  # type: ignore[attr-defined]
        try:
            yield
        finally:
            self.inner.train()  # type: ignore[attr-defined]
            with torch.no_grad():  # converting back would round
                for group, values in zip(self.groups, training_values, strict=True):
                    group.buffer.copy_(values)

    def move(self, device: torch.device) -> None:
        """Parameters and state as fresh copies on `device`: no storage stays on the old one. Gradients are dropped."""
        self.zero_grad()
        for group in self.groups:
            group.move(device)
        move_state(self.inner, device)

    def _names(self) -> dict[str, nn.Parameter]:
        groups = zip(self.groups, self._stepped, strict=True)
        return {f"{group.name}.{index}": parameter for group, params in groups for index, parameter in enumerate(params)}

    def _share_gradients(self) -> None:
        """Gives the matrices of an optimizer that is not elementwise their gradients, as views of the flat ones."""
        if self.elementwise:
            return
        for group in self.groups:
            if group.buffer.grad is not None:
                for parameter, gradient in zip(group.parameters, group.split(group.buffer.grad), strict=True):
                    parameter.grad = gradient


def _in_part_order(groups: Sequence[tuple[Sequence[int], list[Tensor]]]) -> list[Tensor]:
    """The tensors of one part's groups, (indices, tensors), in the order of the part's parameters."""
    if len(groups) == 1:
        return groups[0][1]
    return [
        tensor
        for _, tensor in sorted(
            ((index, tensor) for indices, tensors in groups for index, tensor in zip(indices, tensors, strict=True)),
            key=lambda pair: pair[0],
        )
    ]


def make_optimizer(
    name: str, parts: Mapping[str, Sequence[nn.Parameter]], plans: Sequence[GroupPlan], options: Mapping[str, Any]
) -> TrainingOptimizer:
    """The optimizer `name` of an adapter's parameters by part; every parameter is in exactly one of `plans`.

    Raises MissingPackage, TrainerError for an unknown name.
    """
    return TrainingOptimizer(name, parts, plans, options)
