"""Every kind of network against lycoris-lora 3.4.0: forward, gradients, addition to the weight, names and shapes in a file, both ways.

The oracle is installed on the newer leg only (requirements-test.txt). Where it is known to be wrong, the case says so.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from lora_trainer.adapters.base_layer import base_layer
from lora_trainer.adapters.kinds import kind_of
from lora_trainer.adapters.kinds.base import AdapterLayer
from lora_trainer.adapters.layer_plan import LayerPlan
from lora_trainer.adapters.network import make_forward, make_layer
from lora_trainer.adapters.network_file import bias_delta_of, delta_of, modules_of
from lora_trainer.config.choices.networks import NETWORK_KINDS, factors

RANK, ALPHA = 2, 3.0
NEAR = {"atol": 1e-5, "rtol": 1e-5}


@attrs.frozen
class Case:
    """One way of one kind: our options, and the oracle's class with its arguments."""

    kind: str
    oracle: str
    ours: Mapping[str, Any] = attrs.field(factory=dict)
    theirs: Mapping[str, Any] = attrs.field(factory=dict)
    rank: int = RANK


INPUT = {"weight_decompose": True, "wd_on_out": False}
OUTPUT = {"weight_decompose": True, "wd_on_out": True}
TUCKER = {"use_tucker": True}
CASES = {
    "lora": Case("lora", "locon.LoConModule"),
    "lora, tucker": Case("lora", "locon.LoConModule", {"tucker": True}, TUCKER),
    "lora, rank-stabilised": Case("lora", "locon.LoConModule", {"rs_lora": True}, {"rs_lora": True}),
    "lora, input magnitude": Case("lora", "locon.LoConModule", {"dora": "in"}, INPUT),
    "lora, output magnitude": Case("lora", "locon.LoConModule", {"dora": "out"}, OUTPUT),
    "lora, tucker, input magnitude": Case("lora", "locon.LoConModule", {"dora": "in", "tucker": True}, {**INPUT, **TUCKER}),
    "loha": Case("loha", "loha.LohaModule"),
    "loha, high rank": Case("loha", "loha.LohaModule", rank=12),
    "loha, tucker": Case("loha", "loha.LohaModule", {"tucker": True}, TUCKER),
    "loha, rank-stabilised": Case("loha", "loha.LohaModule", {"rs_lora": True}, {"rs_lora": True}),
    "loha, input magnitude": Case("loha", "loha.LohaModule", {"dora": "in"}, INPUT),
    "loha, output magnitude": Case("loha", "loha.LohaModule", {"dora": "out"}, OUTPUT),
    "lokr": Case("lokr", "lokr.LokrModule"),
    "lokr, factor": Case("lokr", "lokr.LokrModule", {"factor": 3}, {"factor": 3}),
    "lokr, both": Case("lokr", "lokr.LokrModule", {"decompose_both": True}, {"decompose_both": True}, rank=1),
    "lokr, whole": Case("lokr", "lokr.LokrModule", {"full_matrix": True}, {"full_matrix": True}),
    "lokr, whole because of its rank": Case("lokr", "lokr.LokrModule", rank=16),
    "lokr, tucker": Case("lokr", "lokr.LokrModule", {"tucker": True}, TUCKER),
    "lokr, rank-stabilised": Case("lokr", "lokr.LokrModule", {"rs_lora": True}, {"rs_lora": True}),
    "lokr, input magnitude": Case("lokr", "lokr.LokrModule", {"dora": "in"}, INPUT),
    "oft": Case("oft", "diag_oft.DiagOFTModule", rank=4),
    "oft, limited and rescaled": Case(
        "oft", "diag_oft.DiagOFTModule", {"constraint": 0.01, "rescaled": True}, {"constraint": 0.01, "rescaled": True}, rank=4
    ),
    "full": Case("full", "full.FullModule"),
}
PLACES = {"linear": nn.Linear, "conv 1x1": nn.Conv2d, "conv 3x3": nn.Conv2d}
NORMS = {"layer norm": lambda: nn.LayerNorm(24), "group norm": lambda: nn.GroupNorm(4, 24)}


def module_of(place: str, case: str = "") -> nn.Module:
    """A layer. For the full difference it has no bias: the oracle fails on one before it is applied, and on any call afterwards."""
    torch.manual_seed(3)
    if place in NORMS:
        return NORMS[place]()
    bias = case != "full"
    if place == "linear":
        return nn.Linear(24, 36, bias=bias)
    return nn.Conv2d(24, 36, 1, bias=bias) if place == "conv 1x1" else nn.Conv2d(24, 36, 3, stride=2, padding=1, bias=bias)


def pictures(place: str) -> Tensor:
    torch.manual_seed(4)
    return torch.randn(2, 5, 24) if place in ("linear", "layer norm") else torch.randn(2, 24, 6, 6)


def layer_of(case: Case, module: nn.Module) -> AdapterLayer:
    """Ours, with every tensor moved away from where it begins."""
    with torch.no_grad():
        layer = make_layer(LayerPlan("unet", "x", "", case.kind, case.rank, ALPHA, case.ours), base_layer(module), 7)
        generator = torch.Generator().manual_seed(8)
        for tensor in layer.parameters.values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return layer


def oracle_of(case: Case, module: nn.Module) -> Any:
    import importlib

    where, name = case.oracle.split(".")
    kind = getattr(importlib.import_module(f"lycoris.modules.{where}"), name)
    return kind("x", module, lora_dim=case.rank, alpha=ALPHA, **case.theirs)


def file_of(layer: AdapterLayer) -> dict[str, Tensor]:
    """Its tensors by suffix, as a file holds them."""
    alpha = {"alpha": torch.tensor(layer.alpha)} if layer.kind.spec.saves_alpha else {}
    return {**alpha, **{suffix: tensor.detach().clone() for suffix, tensor in layer.parameters.items()}}


def given(case: Case, module: nn.Module, layer: AdapterLayer) -> Any:
    """The oracle with our tensors, read from the names of our file. Its scale stays that of its own construction."""
    oracle = oracle_of(case, module)
    oracle.load_state_dict({**oracle.state_dict(), **file_of(layer)} if case.kind != "full" else file_of(layer))
    return oracle


def run(forward: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer says, and the gradient of a function of it for the input."""
    x = x.clone().requires_grad_()
    answer = forward(x)
    (answer * torch.linspace(-1, 1, answer.numel(), dtype=answer.dtype).reshape(answer.shape)).sum().backward()
    return answer.detach(), x.grad


def gradients_of(oracle: Any, x: Tensor) -> dict[str, Tensor]:
    """By our suffixes. Its own backward of LoHa with Tucker mixes up the two cores: there autograd goes through its formula instead."""
    if getattr(oracle, "hada_t1", None) is not None:
        from lycoris.functional import rebuild_tucker

        oracle.zero_grad()
        first = rebuild_tucker(oracle.hada_t1, oracle.hada_w1_a, oracle.hada_w1_b)
        second = rebuild_tucker(oracle.hada_t2, oracle.hada_w2_a, oracle.hada_w2_b)
        weight = oracle.org_module[0].weight + first * second * oracle.scale
        run(lambda given: oracle.op(given, weight, oracle.org_module[0].bias, **oracle.kw_dict), x)
    names = {"weight": "diff", "bias": "diff_b"} if type(oracle).__name__ == "FullModule" else {}
    return {names.get(name, name): tensor.grad for name, tensor in oracle.named_parameters() if tensor.grad is not None}


everywhere = pytest.mark.parametrize(
    ("case", "place"),
    [*((case, place) for case in CASES for place in PLACES), *(("norm", place) for place in NORMS)],
)


def case_of(name: str) -> Case:
    return Case("norm", "norms.NormModule") if name == "norm" else CASES[name]


@everywhere
def test_a_layer_says_and_learns_what_the_oracle_does(case: str, place: str):
    module, way, x = module_of(place, case), case_of(case), pictures(place)
    module.requires_grad_(False)
    layer = layer_of(way, module)
    oracle = given(way, module, layer)
    ours, theirs = run(make_forward(base_layer(module), layer), x), run(oracle, x)
    assert torch.allclose(ours[0], theirs[0], **NEAR)
    assert torch.allclose(ours[1], theirs[1], atol=1e-4, rtol=1e-5)
    assert not torch.allclose(ours[0], module(x), atol=1e-3)
    for suffix, gradient in gradients_of(oracle, x).items():
        near = 1e-5 * max(1.0, float(gradient.abs().max()))
        assert torch.allclose(layer.parameters[suffix].grad, gradient, atol=near, rtol=1e-5), suffix


@everywhere
def test_a_file_has_the_oracles_names_shapes_and_alpha(case: str, place: str):
    module, way = module_of(place), case_of(case)
    ours = file_of(layer_of(way, module))
    oracle = oracle_of(way, copy.deepcopy(module))
    if way.kind == "full":
        oracle.apply_to()  # only then does it know what to save
    theirs = oracle.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    if "alpha" in theirs and case != "lokr, rank-stabilised":
        assert float(ours["alpha"]) == pytest.approx(float(theirs["alpha"]))


@everywhere
def test_the_oracles_file_adds_the_same_to_the_weight(case: str, place: str):
    module, way = module_of(place, case), case_of(case)
    layer = layer_of(way, module)
    oracle = given(way, module, layer)
    state = modules_of({f"x.{name}": tensor.detach() for name, tensor in {**oracle.state_dict(), **file_of(layer)}.items()}, "x")["x"]
    assert state.kind is kind_of(layer.parameters)
    with torch.no_grad():
        if way.kind == "loha" and not way.theirs.get("weight_decompose"):
            theirs, bias = oracle.get_weight(module.weight.shape), None  # get_diff_weight multiplies by the scale twice
        elif way.theirs.get("weight_decompose"):
            plain = oracle.make_weight() * oracle.scale if way.kind == "lora" else oracle.get_weight(module.weight.shape)
            theirs, bias = oracle.apply_weight_decompose(module.weight + plain) - module.weight, None
        elif way.kind == "lokr":
            theirs, bias = oracle.get_weight(module.weight.shape), None  # the same
        elif way.kind == "oft":
            theirs, bias = oracle.make_weight() - module.weight, None  # get_diff_weight fails where outputs are rescaled
        else:
            theirs, bias = oracle.get_diff_weight(shape=module.weight.shape)
    assert torch.allclose(delta_of(state, module.weight.detach()), theirs, **NEAR)
    own = bias_delta_of(state)
    assert (own is None and bias is None) or torch.allclose(own, bias, **NEAR)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@everywhere
def test_in_short_formats_a_layer_is_as_near_to_the_truth_as_the_oracle(case: str, place: str, dtype: torch.dtype):
    module, way, x = module_of(place, case), case_of(case), pictures(place)
    layer = layer_of(way, module)
    truth, _ = run(make_forward(base_layer(module), layer), x)
    short = copy.deepcopy(module).to(dtype)
    layer = attrs.evolve(layer)
    layer.compute_tensors = tuple(tensor.to(dtype) for tensor in layer.parameters.values())
    oracle = given(way, short, layer).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        ours, gradient = run(make_forward(base_layer(short), layer), x.to(dtype))
        theirs, _ = run(oracle, x.to(dtype))
    distances = [float((answer.float() - truth).abs().mean()) for answer in (ours, theirs)]
    assert distances[0] <= 1.25 * distances[1] + float(truth.abs().mean()) * torch.finfo(dtype).eps
    assert gradient.isfinite().all()


def test_dimensions_are_taken_apart_as_the_oracle_does():
    from lycoris.functional import factorization

    for dimension in (1, 2, 7, 36, 127, 128, 250, 320, 360, 512, 640, 768, 1024, 1280, 2048, 2560, 3072, 5120, 10240):
        for factor in (-1, 1, 2, 3, 4, 5, 8, 12, 16, 30, 64, 200):
            assert factors(dimension, factor) == factorization(dimension, factor), (dimension, factor)


def test_every_kind_has_a_case():
    assert {case.kind for case in CASES.values()} | {"norm", "dylora"} == set(NETWORK_KINDS)
