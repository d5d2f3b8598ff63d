"""Networks of every type on a whole model: on and off, files, what is left to chance, other networks below."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import load_file

from lora_trainer.adapters.base_layer import base_layer
from lora_trainer.adapters.base_weights import MergedNetwork
from lora_trainer.adapters.initial_weights import load_initial_weights, ranks_of_file
from lora_trainer.adapters.layer_plan import LayerPlan
from lora_trainer.adapters.lora_file import read_base_weights, with_loras, write_lora
from lora_trainer.adapters.network import NetworkAdapter, delta_norm, make_forward, make_layer
from lora_trainer.adapters.network_file import delta_of, modules_of
from lora_trainer.adapters.rng import LayerRng
from lora_trainer.adapters.targets import module_at, plan_layers
from lora_trainer.config.choices.networks import NETWORK_KINDS, NETWORK_TYPES
from lora_trainer.config.schema import NetworkConfig
from lora_trainer.errors import ModelError, TrainerError
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource
from lora_trainer.optim.optimizers import GroupPlan, make_optimizer
from tests.adapters.small import PARTS, answer, network_of, stir

CPU = torch.device("cpu")
WAYS = {
    **{name: {"type": name} for name in NETWORK_TYPES},
    "locon, tucker": {"type": "locon", "use_tucker": True},
    "loha, tucker": {"type": "loha", "use_tucker": True},
    "lokr, small factor": {"type": "lokr", "factor": 2, "decompose_both": True},
    "lokr, whole": {"type": "lokr", "full_matrix": True},
    "dora, outputs": {"type": "dora", "dora_axis": "out"},
    "locon with dora": {"type": "locon", "dora_wd": True},
    "norms": {"type": "lora", "train_norm": True},
    "oft, rescaled": {"type": "oft", "rescaled": True, "constraint": 0.1},
    "orthogonal": {"type": "lora", "initialization": "orthogonal"},
}
SHORT = ("locon, tucker", "loha", "lokr", "dora", "oft, rescaled", "full", "norms")
"""Together they go through every kind; the others run with the slow tests."""
every_way = pytest.mark.parametrize("way", [way if way in SHORT else pytest.param(way, marks=pytest.mark.slow) for way in WAYS])


@pytest.fixture(scope="module")
def bundle(toy_checkpoint: Path):
    return load(FileSource(toy_checkpoint), CPU)


@pytest.fixture
def put_on(bundle):
    """Makes networks, and takes them off again."""
    made_networks = []

    def make(stirred: bool = True, **options) -> NetworkAdapter:
        made_networks.append(network_of(bundle, **options))
        if stirred:
            stir(made_networks[-1])
        return made_networks[-1]

    yield make
    for network in made_networks:
        network.detach()


def written(network: NetworkAdapter, path: Path) -> Path:
    write_lora(path, network.state_dict(), {}, "float")
    return path


@every_way
def test_a_fresh_network_changes_nothing_and_one_taken_off_leaves_nothing(bundle, put_on, way: str):
    before = answer(bundle)
    network = put_on(stirred=False, **WAYS[way])
    network.attach(bundle)
    assert torch.allclose(answer(bundle), before, atol=2e-5)
    stir(network)
    assert not torch.allclose(answer(bundle), before, atol=1e-3)
    network.detach()
    assert torch.equal(answer(bundle), before)


@every_way
def test_a_file_draws_what_was_trained_and_adds_the_same_to_every_weight(bundle, put_on, way: str, tmp_path: Path):
    network = put_on(**WAYS[way])
    network.attach(bundle)
    trained = answer(bundle)
    network.detach()
    path = written(network, tmp_path / "x.safetensors")
    with with_loras(bundle, [(path, 1.0)]):
        assert torch.allclose(answer(bundle), trained, atol=2e-4)
    found = modules_of(load_file(str(path)), str(path))
    assert set(found) == {row.name for row in network.plan}
    for row in network.plan[::17]:
        weight = module_at(bundle, row.path).weight.detach()
        layer = network.layers[row.part][row.name]
        own = layer.kind.weight_delta({name: tensor.detach() for name, tensor in layer.parameters.items()}, layer.alpha, weight)
        assert torch.allclose(delta_of(found[row.name], weight), own, atol=1e-6)


@every_way
def test_a_file_holds_as_many_numbers_as_were_foretold(bundle, put_on, way: str):
    network = put_on(**WAYS[way])
    foretold = sum(
        NETWORK_KINDS[row.kind].parameter_count(base_layer(module_at(bundle, row.path)).shape, row.rank, row.options)
        for row in network.plan
    )
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == foretold


@every_way
def test_training_goes_on_where_a_file_ends(bundle, put_on, way: str, tmp_path: Path):
    one, other = put_on(**WAYS[way]), put_on(seed=3, **WAYS[way])
    load_initial_weights(other, written(one, tmp_path / "x.safetensors"))
    own, taken = one.state_dict(), other.state_dict()
    assert all(torch.equal(tensor, taken[name]) for name, tensor in own.items())


@every_way
def test_gradients_reach_the_optimizers_buffers_and_a_step_moves_every_layer(bundle, put_on, way: str):
    network = put_on(stirred=False, **WAYS[way])
    plans = [GroupPlan(part, part, 1e-3) for part in network.parameters()]
    optimizer = make_optimizer("AdamW", network.parameters(), plans, {})
    network.attach(bundle)
    x = torch.ones(1, 4, 8, 8)
    with network.using_tensors(optimizer.tensors(), LayerRng(1, 1)):
        words = bundle.family.encode_text(bundle, bundle.tokenizer("a", return_tensors="pt", padding="max_length").input_ids, 1)
        bundle.family.denoise(bundle, x, torch.tensor([500]), words).square().sum().backward()
    assert all(len(names) == len(network.layers[part]) for part, names in network.untrained_layers().items())
    optimizer.step(1.0)
    single = re.compile("mid_block.*_attn1_to_[qk]|_attn2_to_[qk]")  # one token has nothing to choose from
    still = [name for names in network.untrained_layers().values() for name in names if not single.search(name)]
    assert still == [] or way == "dylora"


@pytest.mark.parametrize("way", ["locon", "full"])
def test_weights_of_several_files_of_different_kinds_add_up(bundle, put_on, way: str, tmp_path: Path):
    path, plain = (written(put_on(**options), tmp_path / f"{name}.safetensors") for name, options in ((1, WAYS[way]), (2, {})))
    before = answer(bundle)
    with with_loras(bundle, [(path, 0.25), (plain, 1.0), (path, 0.75)]):
        parted = answer(bundle)
    with with_loras(bundle, [(plain, 1.0), (path, 1.0)]):
        assert torch.allclose(answer(bundle), parted, atol=2e-4)
    assert not torch.allclose(parted, before, atol=1e-3)
    assert torch.equal(answer(bundle), before)


@pytest.mark.parametrize("way", ["dora"])
def test_training_on_top_of_a_frozen_network_begins_with_it_and_leaves_it_as_it_is(bundle, put_on, way: str, tmp_path: Path):
    path = written(put_on(type="loha"), tmp_path / "below.safetensors")
    with with_loras(bundle, [(path, 0.5)]):
        base_weights = answer(bundle)
    before, weights = answer(bundle), {name: value.clone() for name, value in bundle.unet.named_parameters()}
    rows = plan_layers(bundle, NetworkConfig(dim=4, alpha=2.0, **WAYS[way]), PARTS)
    network = NetworkAdapter(bundle, rows, base_weights=read_base_weights([str(path)], 0.5))
    network.attach(bundle)
    assert torch.allclose(answer(bundle), base_weights, atol=2e-4)
    stir(network)
    assert not torch.allclose(answer(bundle), base_weights, atol=1e-3)
    network.detach()
    assert torch.equal(answer(bundle), before)
    assert all(torch.equal(value, weights[name]) for name, value in bundle.unet.named_parameters())


def test_half_a_module_and_a_module_of_another_model_are_named(bundle, put_on, tmp_path: Path):
    state = put_on(type="lokr", decompose_both=True).state_dict()
    half = {name: tensor for name, tensor in state.items() if not name.endswith("lokr_w2_a")}
    with pytest.raises(ModelError, match=r"lora_unet_.*lokr"):
        modules_of(half, "x.safetensors")
    strange = MergedNetwork(modules_of({f"lora_unet_nowhere.{word}": torch.ones(2, 2) for word in ("diff",)}, "x"), 1.0, "x.safetensors")
    with pytest.raises(ModelError, match="lora_unet_nowhere"):
        NetworkAdapter(bundle, [], base_weights=[strange])


def test_an_option_that_a_kind_does_not_read_is_refused(bundle):
    with pytest.raises(TrainerError, match="block_size"):
        NetworkAdapter(bundle, [attrs.evolve(network_of(bundle).plan[0], options={"block_size": 2})])


def layer_on(module: torch.nn.Module, kind: str, rank: int = 8, seed: int = 2, **options):
    with torch.no_grad():
        layer = make_layer(LayerPlan("unet", "x", "", kind, rank, 4.0, options), base_layer(module), 1)
        for number, tensor in enumerate(layer.parameters.values()):
            tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed + number)) * 0.3)
    return layer


@pytest.mark.parametrize("module", [torch.nn.Linear(12, 10), torch.nn.Conv2d(12, 10, 3, padding=1)], ids=["linear", "conv"])
def test_a_slice_of_dylora_is_the_same_slice_of_its_file_and_only_its_last_block_learns(module):
    x = torch.randn(2, 5, 12) if isinstance(module, torch.nn.Linear) else torch.randn(2, 12, 5, 5)
    layer = layer_on(module, "dylora", block_size=2)
    down, up = (tensor.detach() for tensor in layer.parameters.values())
    seen = set()
    for step in range(12):
        layer.rng = LayerRng(0, step)
        rank = 2 * (1 + layer.rng.randint(4, "x", "block"))
        seen.add(rank)
        cut = (up[:, :rank].flatten(1) @ down[:rank].flatten(1)).reshape(module.weight.shape) * (4.0 / 8)
        site = base_layer(module)
        said = make_forward(site, layer)(x)
        assert torch.allclose(said, site.operation(x, module.weight + cut, module.bias), atol=1e-5)
        for tensor in layer.parameters.values():
            tensor.grad = None
        said.sum().backward()
        learned = layer.parameters["lora_down.weight"].grad.flatten(1).any(1)
        assert learned.nonzero().flatten().tolist() == [rank - 2, rank - 1]
    assert seen == {2, 4, 6, 8}
    layer.rng = None
    whole = (up.flatten(1) @ down.flatten(1)).reshape(module.weight.shape) * (4.0 / 8)
    assert torch.allclose(make_forward(site, layer)(x), site.operation(x, module.weight + whole, module.bias), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "option"),
    [("lora", "dropout"), *((kind, option) for kind in ("lora", "loha", "lokr") for option in ("rank_dropout", "module_dropout"))],
)
def test_dropout_leaves_out_in_training_only_and_keeps_the_mean(kind: str, option: str):
    module = torch.nn.Linear(12, 10)
    plain, layer = layer_on(module, kind), layer_on(module, kind, **{option: 0.5})
    x = torch.randn(4, 12)
    with torch.no_grad():
        whole, forward = make_forward(base_layer(module), plain)(x), make_forward(base_layer(module), layer)
        assert torch.allclose(forward(x), whole, atol=1e-5)
        drawn = []
        for step in range(300):
            layer.rng = LayerRng(0, step)
            drawn.append(forward(x))
            assert torch.equal(forward(x), drawn[-1])  # computed again in the backward pass
        spread = torch.stack(drawn)
        assert not torch.allclose(spread[0], spread[1]) or option == "module_dropout"
        kept = 1.0 if kind == "lora" and option != "module_dropout" else 0.5
        base = module(x)
        assert torch.allclose(spread.mean(0), base + kept * (whole - base), atol=0.25 * float((whole - base).abs().max()))


@pytest.mark.parametrize("way", ["locon, tucker", "lokr"])
def test_no_addition_is_longer_than_the_limit_and_shorter_ones_stay(put_on, way: str):
    network = put_on(**WAYS[way])
    norms = sorted(float(delta_norm(layer)) for layer in network.iter_layers())
    limit = norms[len(norms) // 2]
    before = {layer.plan.name: float(delta_norm(layer)) for layer in network.iter_layers()}
    assert network.clip_weight_norms(limit) == sum(norm > limit for norm in norms) > 0
    for layer in network.iter_layers():
        delta = layer.kind.weight_delta(layer.parameters, layer.alpha, torch.empty(layer.shape, device="meta"))
        assert float(delta.norm()) == pytest.approx(min(before[layer.plan.name], limit), rel=1e-3)


def test_orthogonal_rows_stand_upright_on_each_other():
    with torch.no_grad():
        layer = make_layer(LayerPlan("unet", "x", "", "lora", 4, 4.0, {"init": "orthogonal"}), base_layer(torch.nn.Linear(12, 10)), 1)
    down = layer.parameters["lora_down.weight"].detach()
    assert torch.allclose(down @ down.t(), torch.eye(4) / 3, atol=1e-6)
    assert not layer.parameters["lora_up.weight"].any()


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        ({"type": "locon", "conv_dim": 2, "conv_alpha": 1.0}, {"": (4, 2.0), "conv_": (2, 1.0)}),
        ({"type": "rslora", "text_encoder_dim": 9, "text_encoder_alpha": 3.0}, {"": (4, 2.0), "text_encoder_": (9, 3.0)}),
        ({"type": "loha"}, {"": (4, 2.0)}),
    ],
)
def test_the_ranks_of_a_file_are_found_by_group(put_on, options, ranks, tmp_path: Path):
    network = put_on(stirred=False, **options)
    rs_lora = options["type"] == "rslora"
    assert ranks_of_file(written(network, tmp_path / "x.safetensors"), rs_lora=rs_lora) == {
        group: (rank, pytest.approx(alpha)) for group, (rank, alpha) in ranks.items()
    }


@pytest.mark.parametrize(
    "options", [{}, {"type": "rslora"}, {"type": "loha"}, {"type": "locon", "conv_dim": 3}, {"type": "lokr", "factor": 4}]
)
@pytest.mark.parametrize("precision", ["float", "fp16", "bf16"])
def test_a_file_whose_layers_differ_gives_each_layer_its_own_rank(put_on, bundle, options, precision: str, tmp_path: Path):
    network = put_on(stirred=False, block_dims=",".join(["2"] * 12 + ["4"] * 13), block_alphas=",".join(["1"] * 12 + ["3"] * 13), **options)
    write_lora(tmp_path / "x.safetensors", network.state_dict(), network.metadata(), precision)
    assert ranks_of_file(tmp_path / "x.safetensors") is None
    again = {"type": options["type"]} if "type" in options else {}
    if "factor" in options:
        again["factor"] = options["factor"]
    config = NetworkConfig(dim=9, alpha=9.0, network_weights=str(tmp_path / "x.safetensors"), dim_from_weights=True, **again)
    rows = {row.name: row for row in plan_layers(bundle, config, PARTS)}
    assert rows.keys() == {row.name for row in network.plan}
    layers = {layer.plan.name: layer for layer in network.iter_layers()}
    for name, row in rows.items():
        if network.plan[0].kind != "lokr":
            assert (row.rank, row.alpha) == (layers[name].plan.rank, pytest.approx(layers[name].plan.alpha, rel=0.01))
    other = NetworkAdapter(bundle, list(rows.values()))
    load_initial_weights(other, tmp_path / "x.safetensors")
    assert other.state_dict().keys() == network.state_dict().keys()


def test_a_file_without_ranks_has_none_to_take(put_on, tmp_path: Path):
    with pytest.raises(ModelError, match="have no ranks"):
        ranks_of_file(written(put_on(stirred=False, type="full"), tmp_path / "x.safetensors"))
