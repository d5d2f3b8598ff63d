"""Every registered optimizer: one real step, a state that goes on in every bit, a way off the device and back."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from lora_trainer.config.choices.optimizers import OPTIMIZER_CHOICES, OPTIMIZER_SPECS, SCHEDULE_CHOICES, optimizer_spec
from lora_trainer.errors import MissingPackage, TrainerError
from lora_trainer.optim import state
from lora_trainer.optim.builders import OPTIMIZERS
from lora_trainer.optim.optimizers import CannotStep, GroupPlan, TrainingOptimizer, make_optimizer, probe
from lora_trainer.optim.schedules import SCHEDULES

EIGHT_BIT = [known.name for known in OPTIMIZER_SPECS if known.package == "bitsandbytes"]
HERE = [name for name in OPTIMIZER_CHOICES if name not in EIGHT_BIT or sys.version_info >= (3, 11)]
"""Python 3.10 is tested with torch 2.1, for which there are no 8-bit optimizers on the CPU."""
WITH_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in HERE),
    ("AdaFactor", {"relative_step": False, "scale_parameter": False}),
    ("AdaFactor", {"warmup_init": True}),
    ("Prodigy", {"slice_p": 11, "safeguard_warmup": True, "use_bias_correction": True}),
    ("ProdigyPlus", {"use_speed": True}),
    ("torch.optim.RMSprop", {"momentum": 0.9, "centered": True}),
    ("torch.optim.Adam", {"amsgrad": True}),
]
SHAPES = {"unet": [(16, 320), (320, 16), (16, 96), (8, 16, 1, 1)], "text_encoder": [(96, 64), (64,)]}
Parts = dict[str, list[nn.Parameter]]


def made(name: str, options: dict[str, Any]) -> tuple[Parts, TrainingOptimizer]:
    """Two parts of matrices at the rate that the family wants; in torch's numbers the same each time."""
    drawn = torch.Generator().manual_seed(5)
    parts = {part: [nn.Parameter(torch.randn(shape, generator=drawn) * 0.1) for shape in shapes] for part, shapes in SHAPES.items()}
    rate = optimizer_spec(name).rate_range.hint
    return parts, make_optimizer(name, parts, [GroupPlan(part, part, rate) for part in parts], options)


def train(optimizer: TrainingOptimizer, first: int, last: int) -> None:
    """Steps towards targets that change from step to step, with a warm-up of three."""
    for step in range(first, last):
        drawn = torch.Generator().manual_seed(step)
        tensors = [tensor for part in optimizer.tensors() for tensor in part]
        torch.stack([((tensor - torch.randn(tensor.shape, generator=drawn) * 0.05) ** 2).sum() for tensor in tensors]).sum().backward()
        optimizer.step(min(1.0, step / 3))


def values(parts: Parts) -> list[Tensor]:
    return [parameter.detach().clone() for parameters in parts.values() for parameter in parameters]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_choice_of_the_form_can_be_built():
    assert OPTIMIZERS.names() and set(OPTIMIZERS.names()) == set(OPTIMIZER_CHOICES)
    assert set(SCHEDULES.names()) == set(SCHEDULE_CHOICES)


@pytest.mark.parametrize(("name", "options"), WITH_OPTIONS, ids=[f"{name} {' '.join(options)}".strip() for name, options in WITH_OPTIONS])
def test_after_a_pause_and_from_its_state_an_optimizer_goes_on_in_every_bit(name: str, options: dict[str, Any]):
    probe(name, options)
    parts, optimizer = made(name, options)
    begin = values(parts)
    train(optimizer, 0, 5)
    middle = values(parts)
    tensors, plain = optimizer.state_dict()
    tensors, plain = {key: tensor.clone() for key, tensor in tensors.items()}, json.loads(json.dumps(plain))
    optimizer.move(torch.device("cpu"))
    optimizer.move(torch.device("cpu"))
    train(optimizer, 5, 10)
    uninterrupted = values(parts)
    assert not same(middle, begin) and not same(uninterrupted, middle)

    parts, optimizer = made(name, options)
    with torch.no_grad():
        for parameter, value in zip([parameter for part in parts.values() for parameter in part], middle, strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(tensors, plain)
    train(optimizer, 5, 10)
    assert same(values(parts), uninterrupted)


def test_the_state_is_written_and_read_as_a_safetensors_file(tmp_path):
    from safetensors.torch import load_file, save_file

    for name in ("AdamW", "AdaFactor", "ProdigyPlus", *EIGHT_BIT[: sys.version_info >= (3, 11)]):
        _, optimizer = made(name, {})
        train(optimizer, 0, 2)
        tensors, _ = optimizer.state_dict()
        save_file(tensors, tmp_path / "state.safetensors")
        read = load_file(tmp_path / "state.safetensors")
        assert sorted(read) == sorted(tensors) and all(torch.equal(read[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("name", ["AdamW", "AdaFactor", "Prodigy", "AdamWScheduleFree"])
def test_a_parked_optimizer_leaves_no_storage_of_its_own_behind(name: str):
    parts, optimizer = made(name, {})
    train(optimizer, 0, 2)
    held = [tensor for state in optimizer.inner.state.values() for tensor in state.values() if isinstance(tensor, Tensor)]
    held += [group.buffer.detach() for group in optimizer.groups]
    storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in held]
    before = values(parts)
    addresses = {tensor.untyped_storage().data_ptr() for tensor in held}
    optimizer.move(torch.device("cpu"))
    after = [tensor for state in optimizer.inner.state.values() for tensor in state.values() if isinstance(tensor, Tensor)]
    after += [group.buffer for group in optimizer.groups] + [parameter for part in parts.values() for parameter in part]
    assert not addresses & {tensor.untyped_storage().data_ptr() for tensor in after}
    del held
    assert all(storage.expired() for storage in storages)
    assert same(values(parts), before)


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree", "ProdigyPlus"])
def test_a_schedule_free_optimizer_shows_its_average_and_trains_on_as_if_nothing_had_been_shown(name: str):
    parts, optimizer = made(name, {})
    train(optimizer, 1, 12)
    trained = values(parts)
    with optimizer.averaged_weights():
        averaged = values(parts)
    assert not same(averaged, trained) and same(values(parts), trained)
    train(optimizer, 12, 15)
    watched = values(parts)

    parts, optimizer = made(name, {})
    train(optimizer, 1, 15)
    assert same(values(parts), watched)


def test_other_optimizers_have_nothing_to_average():
    parts, optimizer = made("AdamW", {})
    train(optimizer, 0, 3)
    trained = values(parts)
    with optimizer.averaged_weights():
        assert same(values(parts), trained)


def test_a_state_of_other_rates_or_another_optimizer_is_refused():
    parts, optimizer = made("AdamW", {})
    train(optimizer, 0, 2)
    tensors, plain = optimizer.state_dict()
    alone = make_optimizer("AdamW", {"unet": parts["unet"]}, [GroupPlan("unet", "unet", 1e-3)], {})
    with pytest.raises(TrainerError, match="another optimizer or other learning rates"):
        alone.load_state_dict(tensors, plain)
    with pytest.raises(TrainerError, match="another optimizer"):
        made("AdaFactor", {})[1].load_state_dict(tensors, plain)


def test_an_argument_that_was_changed_for_the_resumed_part_holds():
    parts, optimizer = made("AdamW", {"weight_decay": 0.1})
    train(optimizer, 0, 2)
    tensors, plain = optimizer.state_dict()
    resumed = make_optimizer("AdamW", parts, [GroupPlan(part, part, 1e-3) for part in parts], {"weight_decay": 0.3})
    resumed.load_state_dict(tensors, plain)
    assert [group["weight_decay"] for group in resumed.inner.param_groups] == [0.3, 0.3]


def test_eight_bits_are_eight_bits_where_they_step():
    if "AdamW8bit" not in HERE:
        with pytest.raises(TrainerError, match="bitsandbytes"):
            probe("AdamW8bit", {})
        return
    _, optimizer = made("AdamW8bit", {})
    train(optimizer, 0, 2)
    tensors, _ = optimizer.state_dict()
    assert {tensors[f"unet.{number}.state1"].dtype for number in (0, 1)} == {torch.uint8}
    assert tensors["unet.2.state1"].dtype == torch.float32  # fewer than 4096 numbers


def test_a_missing_package_is_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setattr("lora_trainer.registry.find_spec", lambda name: None)
    with pytest.raises(MissingPackage) as told:
        probe("CAME", {})
    (problem,) = told.value.problems
    assert problem.path == "optimizer.type"
    assert problem.message.text("en") == "CAME needs the package came-pytorch, which is not installed."
    assert problem.fix.text("en").endswith(f'{sys.executable} -m pip install --no-deps "came-pytorch==0.1.3"')


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("nowhere_at_all.Optimizer", 'pip install --no-deps "nowhere-at-all"'),
        ("torch.optim.Nothing", "not an optimizer of an installed package"),
        ("os.system", "not an optimizer of an installed package"),
        ("torch.nn.Linear", "not an optimizer of an installed package"),
        ("torch.optim.lr_scheduler.StepLR", "not an optimizer of an installed package"),
    ],
)
def test_only_classes_of_optimizers_are_ever_called(path: str, told: str):
    with pytest.raises(TrainerError, match=told):
        probe(path, {})


@pytest.mark.parametrize(
    ("name", "options"),
    [("AdamW", {"frob": 1}), ("Prodigy", {"d0": -1.0}), ("AdaFactor", {"weight_decay": "much"}), ("CAME", {"betas": (2, 2, 2)})],
)
def test_wrong_arguments_are_named_before_anything_is_trained(name: str, options: dict[str, Any]):
    with pytest.raises(TrainerError) as told:
        probe(name, options)
    assert told.value.problems[0].path == "optimizer.args"


def test_one_that_cannot_step_here_is_told_with_the_reason(monkeypatch):
    def broken(self: Any, closure: Any = None) -> None:
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.optim.SGD, "step", broken)
    with pytest.raises(CannotStep, match="no kernel image"):
        probe("SGDNesterov", {})


def test_lora_plus_steps_the_upper_matrices_faster():
    parameters = [
        nn.Parameter(torch.ones(4, 8)),
        nn.Parameter(torch.ones(8, 4)),
        nn.Parameter(torch.ones(4, 6)),
        nn.Parameter(torch.ones(6, 4)),
    ]
    plans = [GroupPlan("unet", "unet", 1e-2, (0, 2)), GroupPlan("unet plus", "unet", 16e-2, (1, 3))]
    optimizer = make_optimizer("AdamW", {"unet": parameters}, plans, {"weight_decay": 0.0})
    (tensors,) = optimizer.tensors()
    assert [tuple(tensor.shape) for tensor in tensors] == [tuple(parameter.shape) for parameter in parameters]
    torch.stack([(tensor**2).sum() for tensor in tensors]).sum().backward()
    optimizer.step(1.0)
    assert [1.0 - float(parameter.detach().mean()) for parameter in parameters] == pytest.approx([0.01, 0.16, 0.01, 0.16], rel=1e-4)
    assert optimizer.learning_rates(0.5) == pytest.approx({"unet": 5e-3, "unet plus": 8e-2})


def test_rates_can_be_changed_between_steps():
    parts, optimizer = made("AdamW", {"weight_decay": 0.0})
    optimizer.set_learning_rates({"text_encoder": 0.0, "unet": 0.5})
    before = values(parts)
    train(optimizer, 3, 4)
    moved = [float((now - then).abs().max()) for now, then in zip(values(parts), before, strict=True)]
    assert all(distance == pytest.approx(0.5, rel=1e-3) for distance in moved[: len(SHAPES["unet"])]) and not any(
        moved[len(SHAPES["unet"]) :]
    )


def test_a_gradient_scaler_finds_what_is_not_finite_for_matrices_too():
    if not hasattr(torch.amp, "GradScaler"):
        return
    for name in ("AdamW", "AdaFactor"):
        parts, optimizer = made(name, {})
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        (tensors, _) = optimizer.tensors()
        scaler.scale(sum((tensor**2).sum() for tensor in tensors)).backward()
        optimizer.unscale(scaler)
        (gradient,) = optimizer.gradients()
        assert torch.allclose(gradient.abs().sum(), sum((2 * parameter).abs().sum() for parameter in parts["unet"]), rtol=1e-4)
        optimizer.zero_grad()
        scaler.update()
        assert scaler.get_scale() == 8.0
        (tensors, _) = optimizer.tensors()
        (scaler.scale(tensors[0].sum()) * float("inf")).backward()
        optimizer.unscale(scaler)
        scaler.update()
        assert scaler.get_scale() == 4.0


class Pages:
    """A stand-in for bitsandbytes' pageable memory, which CUDA alone has: a tensor that says that it is paged, on a list of the process."""

    def __init__(self, patch: pytest.MonkeyPatch, inner: Any) -> None:
        self.paged_tensors: list[Tensor] = [torch.zeros(1)]  # another optimizer's
        inner.is_paged, inner.page_mng = True, self
        inner.get_state_buffer = self.make
        patch.setattr(state, "_is_on_gpu", lambda parameter: True)

    def make(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        made = torch.zeros(parameter.shape, dtype=dtype)
        made.is_paged = True  # type: ignore[attr-defined]
        self.paged_tensors.append(made)
        return made


if "AdamW8bit" in HERE:  # bitsandbytes on the CPU needs a newer torch than that of the older leg

    @pytest.mark.parametrize("name", ["PagedAdamW8bit", "PagedAdamW", "PagedLion8bit"])
    def test_a_paged_optimizer_stays_paged_after_a_pause_and_from_its_state(name: str, monkeypatch: pytest.MonkeyPatch):
        _, optimizer = made(name, {})
        train(optimizer, 0, 2)
        pages = Pages(monkeypatch, optimizer.inner)

        def states() -> list[Tensor]:
            return [table[key] for table in optimizer.inner.state.values() for key in ("state1", "state2") if key in table]

        values_before = [value.clone() for value in states()]
        for _ in range(2):  # the second time what is paged leaves the list of the process again
            optimizer.move(torch.device("cpu"))
            assert states() and all(getattr(value, "is_paged", False) for value in states()) and same(states(), values_before)
            assert len(pages.paged_tensors) == 1 + len(states())
        optimizer.load_state_dict(*optimizer.state_dict())
        assert all(getattr(value, "is_paged", False) for value in states()) and same(states(), values_before)
        assert len(pages.paged_tensors) == 1 + len(states())
