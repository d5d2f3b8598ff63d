"""Forge: what can be seen of its host without one. The contract runs inside a real one (test_contract.py)."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import attrs
import pytest
import torch
from safetensors.torch import save_file

from lora_trainer.errors import ModelError
from lora_trainer.host.detect import detect
from lora_trainer.host.forge import engine, lease, model
from lora_trainer.models.source import LiveSource
from tests.host import contract_networks  # noqa: F401 - its checks join FAMILIES
from tests.host.contract_forge import FORGE_ONLY
from tests.host.contract_forge_families import FAMILIES, LACKING


@pytest.fixture
def forge(monkeypatch):
    """As much of Forge's modules as knows the user's choice."""
    data = SimpleNamespace(forge_loading_parameters={"checkpoint_info": "his"}, forge_hash="", sd_model=None)
    sd_models, main_thread = ModuleType("modules.sd_models"), ModuleType("modules_forge.main_thread")
    sd_models.model_data = data

    def swallows(work):
        try:
            return work()
        except Exception:
            return None

    main_thread.run_and_wait_result = swallows
    parents = {"modules": SimpleNamespace(sd_models=sd_models), "modules_forge": SimpleNamespace(main_thread=main_thread)}
    for name, module in {**parents, "modules.sd_models": sd_models, "modules_forge.main_thread": main_thread}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return data


def test_forge_and_reforge_are_told_from_a1111_by_their_own_package(monkeypatch):
    for name in ("modules.script_callbacks", "modules.shared"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert detect().name == "a1111"
    monkeypatch.setitem(sys.modules, "modules_forge", ModuleType("modules_forge"))
    assert detect().name == "reforge"
    monkeypatch.setitem(sys.modules, "modules_forge.main_entry", ModuleType("modules_forge.main_entry"))
    assert detect().name == "forge"


def test_a_tensor_of_inference_mode_is_learned_through_on_the_same_memory():
    with torch.inference_mode():
        held = torch.nn.Parameter(torch.randn(6, 4))[1:5].t()
    seen = model.normal_tensor(held)
    assert (seen.data_ptr(), seen.shape, seen.stride()) == (held.data_ptr(), held.shape, held.stride())
    factor = torch.ones(4, requires_grad=True)
    (seen @ factor).sum().backward()
    torch.testing.assert_close(factor.grad, held.sum(0), rtol=1e-6, atol=1e-6)  # a sum of four, in another order


def test_a_number_format_that_cannot_be_shared_is_called_by_its_name():
    def with_weight(weight):
        layer = torch.nn.Linear(2, 2)
        layer.weight = weight
        plain = SimpleNamespace(first_stage_model=torch.nn.Linear(2, 2))
        texts = SimpleNamespace(cond_stage_model=SimpleNamespace(clip_l=torch.nn.Linear(2, 2)))
        unet = SimpleNamespace(model=SimpleNamespace(diffusion_model=layer))
        return SimpleNamespace(forge_objects_original=SimpleNamespace(unet=unet, vae=plain, clip=texts))

    frozen = {"requires_grad": False}
    packed = torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), **frozen)
    packed.gguf_cls = object()
    four = torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), **frozen)
    four.quant_type = "nf4"
    eight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float8_e4m3fn), **frozen)
    half = torch.nn.Parameter(torch.zeros(2, dtype=torch.float16), **frozen)
    assert [model.number_format_not_shared(with_weight(weight)) for weight in (packed, four, eight, half)] == [
        "gguf",
        "nf4",
        "float8_e4m3fn",
        "",
    ]


def test_prediction_is_the_one_that_the_host_samples_with():
    """reForge reads a checkpoint's marks when it makes the sampling, and says "eps" all the same."""

    class V_PREDICTION:
        pass

    def with_unet(**held):
        objects = SimpleNamespace(unet=SimpleNamespace(model=SimpleNamespace(**held)))
        return model.prediction_of(SimpleNamespace(parameterization="eps", forge_objects_original=objects))

    sampling = type("ModelSampling", (V_PREDICTION,), {})()
    assert [with_unet(model_sampling=sampling), with_unet(model_sampling=object())] == ["v", "epsilon"]
    told = [with_unet(predictor=SimpleNamespace(prediction_type=kind)) for kind in ("v_prediction", "epsilon")]
    assert told == ["v", "epsilon"]


def test_weights_that_wait_in_main_memory_are_counted_and_said():
    here, away = torch.zeros(1000, 1000), torch.zeros(1000, 1000, dtype=torch.float16, device="meta")
    heads = {"unet_heads": 8, "text_heads": 4}
    source = LiveSource({"a": here, "b": away}, {}, {"c": here}, tokenizer=None, path=Path("x"), text_2_state={"d": away}, **heads)
    assert "4 MB" in str(model.notes(source, torch.device("cpu"))[0])
    assert model.notes(attrs.evolve(source, unet_state={"a": here}, text_2_state={}), torch.device("cpu")) == ()


def test_a_file_whose_own_weights_are_packed_is_refused_by_what_it_is(tmp_path):
    """Forge draws with such files; there is nothing that could be read instead."""
    four = torch.zeros(2, 1, dtype=torch.uint8)
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    save_file({name: four, f"{name}.quant_state.bitsandbytes__nf4": four.clone()}, tmp_path / "four.safetensors")
    (tmp_path / "packed.gguf").write_bytes(b"GGUF\x03" + b"\0" * 100)
    for file in ("four.safetensors", "packed.gguf"):
        with pytest.raises(ModelError, match="packed in a few bits"):
            lease.inspect(SimpleNamespace(filename=str(tmp_path / file)))


def test_what_the_main_thread_raises_is_raised_here_though_the_host_swallows_it(forge):
    assert engine.on_main_thread(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        engine.on_main_thread(lambda: 1 / 0)


def test_the_users_choice_stands_again_after_a_loan_and_a_new_one_is_kept(forge):
    his, ours = forge.forge_loading_parameters, {"checkpoint_info": "ours"}
    with engine.pinned(ours):
        assert forge.forge_loading_parameters is ours
    assert forge.forge_loading_parameters is his
    with engine.pinned(ours):
        forge.forge_loading_parameters = new = {"checkpoint_info": "chosen meanwhile"}
    assert forge.forge_loading_parameters is new


@pytest.mark.needs_webui
@pytest.mark.parametrize("name", [*FORGE_ONLY, *FAMILIES, *LACKING])
def test_real_forge(name, real_webui):
    answer = real_webui.post(f"/lora-trainer-probe/check/{name}", timeout=600)
    assert answer["ok"], answer["error"]
    if answer.get("elsewhere"):
        pytest.skip("another host's own ways")
