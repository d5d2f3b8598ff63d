"""How A1111's models of each family are read, and what is known of them, without A1111: modules shaped as it holds them."""

import sys
from types import SimpleNamespace

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks import random_checkpoint
from lora_trainer.errors import ModelError
from lora_trainer.host.a1111 import facts, model
from lora_trainer.models import layout
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource
from lora_trainer.train.previews.preview_prompts import SampleRequest
from tests.host.data_folder import info_of, tree

CPU = torch.device("cpu")
NO_FLAGS = {"v2": None, "prediction": "auto", "v_parameterization": None, "zero_terminal_snr": None}


@pytest.fixture(scope="module", params=["sd2", "sdxl"])
def checkpoint(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("host-families") / f"{request.param}.safetensors"
    random_checkpoint.write(path, random_checkpoint.SHAPES[request.param][1], torch.float32)
    path.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "eps"\n', encoding="utf-8")
    return request.param, path


def held_as_a1111_does(family, path):
    """A checkpoint's tensors in modules that are named as A1111's are."""
    state = load_file(path)
    parts = {
        part: tree({key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)})
        for part, prefix in layout.part_prefixes(family).items()
    }
    held = nn.Module()
    held.model, held.first_stage_model = nn.Module(), parts["vae"]
    held.model.diffusion_model = parts["unet"]
    parts["unet"].__dict__.update(in_channels=4, num_heads=-1, num_head_channels=64)
    around = [_hijacked(parts[part]) for part in parts if part.startswith("text")]
    if family == "sd2":
        held.cond_stage_model = around[0]
    else:
        held.conditioner = nn.Module()
        held.conditioner.embedders = nn.ModuleList([*around, nn.Module(), nn.Module()])  # the others tell the picture's sizes
        held.cond_stage_model = held.conditioner
    held.__dict__.update({f"is_{family}": True, "parameterization": "eps", "sd_checkpoint_info": info_of(path)})
    return held


def _hijacked(encoder):
    """The host's wrapper around a text encoder, and the one around its embedding of words."""
    around = nn.Module()
    around.wrapped = nn.Module()
    open_clip = hasattr(encoder, "transformer")
    place = encoder if open_clip else encoder.text_model.embeddings
    words, place.token_embedding = place.token_embedding, nn.Module()
    place.token_embedding.wrapped = words
    if open_clip:
        encoder.transformer.resblocks = nn.ModuleList(encoder.transformer.resblocks.children())
        encoder.transformer.resblocks[0].attn.num_heads = 4
        around.wrapped.model = encoder
    else:
        encoder.config = SimpleNamespace(num_attention_heads=2)
        around.wrapped.transformer = encoder
    return around


def test_a_lent_model_is_the_file_itself_and_nothing_of_it_is_copied(checkpoint):
    family, path = checkpoint
    held = held_as_a1111_does(family, path)
    own = {tensor.untyped_storage().data_ptr() for tensor in held.state_dict().values()}
    source = model.live_source(held)
    shared, read = load(source, CPU), load(FileSource(path), CPU)
    assert (shared.family.name, shared.prediction, source.sure) == (family, "epsilon", True)
    for ours, theirs in zip(shared.modules(), read.modules(), strict=True):
        others = dict(theirs.named_parameters())
        assert ours.config == theirs.config or ours.config.to_dict() == theirs.config.to_dict()
        assert {name: torch.equal(value, others[name]) for name, value in ours.named_parameters()} == dict.fromkeys(others, True)
        assert all(value.untyped_storage().data_ptr() in own for value in ours.parameters())
    assert model.shares_memory(source, held)
    held.model.diffusion_model.half()
    assert not model.shares_memory(source, held)


def test_a_change_of_either_encoder_is_seen(checkpoint):
    held = held_as_a1111_does(*checkpoint)
    before = model.weight_fingerprints(held)
    for encoder in model.text_encoders(held).values():
        next(encoder.parameters()).data.view(-1)[0] += 1
    changed = [name for name, number in model.weight_fingerprints(held).items() if before[name] != number]
    assert len(changed) == len(model.text_encoders(held)), changed


def test_what_a_hypernetwork_left_in_the_layers_is_no_weight_of_the_model(checkpoint):
    held = held_as_a1111_does(*checkpoint)
    before = model.weight_fingerprints(held)
    attention = held.model.diffusion_model.middle_block._modules["1"].transformer_blocks._modules["0"].attn1
    attention.hyper_k = nn.Linear(4, 4)
    assert any(".hyper_k." in name for name in held.state_dict())
    assert model.weight_fingerprints(held) == before


def known_of(tmp_path, family="sdxl", *, marks=(), yaml="", host="eps", name="model", **more):
    path = tmp_path / f"{name}.safetensors"
    if not path.exists():
        random_checkpoint.write(path, random_checkpoint.SHAPES[family][1], torch.float16, marks=marks)
    path.with_suffix(".yaml").write_text(yaml, encoding="utf-8")
    return facts.from_model(SimpleNamespace(**{f"is_{family}": True}, parameterization=host, sd_checkpoint_info=info_of(path), **more))


def test_marks_in_the_file_count_more_than_what_the_host_takes_it_for(tmp_path):
    known = known_of(tmp_path, marks=("v_pred", "ztsnr"))
    assert (known.prediction.kind, known.prediction.zero_terminal_snr, known.prediction.sure, known.host_prediction) == (
        "v",
        True,
        True,
        "epsilon",
    )
    assert "v_pred" in str(known.prediction.reason)


def test_where_nothing_tells_the_host_is_believed_if_it_knows_and_else_the_model_is_asked(tmp_path):
    plain = known_of(tmp_path)
    assert (plain.prediction.kind, plain.prediction.sure, plain.native_size) == ("epsilon", True, 1024)
    by_yaml = known_of(tmp_path, yaml="target: x.VScaling\n", host="v")
    assert (by_yaml.prediction.kind, by_yaml.prediction.is_marked) == ("v", True)
    (tmp_path / "model.safetensors").rename(tmp_path / "animal-vpred.safetensors")
    by_name = known_of(tmp_path, name="animal-vpred")
    assert (by_name.prediction.kind, by_name.prediction.sure) == ("v", False)
    later = known_of(tmp_path, name="animal-vpred", host="v", ztsnr=True)  # versions after 1.10.1 know the keys themselves
    assert (later.prediction.kind, later.prediction.zero_terminal_snr, later.host_zero_snr) == ("v", True, True)


def test_of_stable_diffusion_2_the_host_has_asked_the_model(tmp_path):
    for host, kind, size in (("v", "v", 768), ("eps", "epsilon", 512)):
        known = known_of(tmp_path, "sd2", host=host)
        assert (known.prediction.kind, known.prediction.sure, known.native_size) == (kind, True, size)


def test_a_flag_of_the_config_is_heeded_where_nothing_tells_and_refused_where_something_does(tmp_path):
    known = known_of(tmp_path)
    settled = known.with_flags(SimpleNamespace(**NO_FLAGS | {"v_parameterization": True}))
    assert (settled.prediction.kind, settled.prediction.sure) == ("v", True)
    marked = known_of(tmp_path, yaml="target: x.EpsScaling\n")
    with pytest.raises(ModelError, match="v_parameterization says otherwise"):
        marked.with_flags(SimpleNamespace(**NO_FLAGS | {"v_parameterization": True}))
    with pytest.raises(ModelError, match="v2 is set"):
        marked.with_flags(SimpleNamespace(**NO_FLAGS | {"v2": True}))


def test_a_file_that_is_gone_leaves_what_the_host_says(tmp_path):
    held = SimpleNamespace(is_sdxl=True, parameterization="v", sd_checkpoint_info=info_of(tmp_path / "gone.safetensors"))
    known = facts.from_model(held)
    assert (known.family, known.prediction.kind, known.native_size) == ("sdxl", "v", 1024)


def test_where_a_host_would_draw_a_flow_wrong_it_is_said_and_previews_are_ours(tmp_path, monkeypatch):
    options = SimpleNamespace(sd_noise_schedule="Default", CLIP_stop_at_last_layers=1)
    modules = SimpleNamespace(shared=SimpleNamespace(opts=options))
    monkeypatch.setitem(sys.modules, "modules", modules)
    known = known_of(tmp_path)
    told = known.with_flags(SimpleNamespace(**NO_FLAGS | {"prediction": "flow"}))
    assert told.prediction.kind == "flow" and facts.draws_alike(known) and not facts.draws_alike(told)
    (message,) = facts.notes(told, "model")
    assert "trainer's own sampler" in str(message) and "Forge Neo" in str(message)
    assert facts.notes(known, "model") == ()
    request = SampleRequest("a vase", sampler="ddim", flow_shift=2.0)
    assert facts.drawable(request, told) == attrs.evolve(request, sampler="euler")
    assert facts.drawable(request, known) is request and facts.drawable(request, None) is request
    drawn_so = attrs.evolve(told, host_prediction="flow")
    assert facts.draws_alike(drawn_so) and facts.notes(drawn_so, "model") == ()
    (message,) = facts.notes(attrs.evolve(known, host_prediction="flow"), "model")
    assert "Rename" in str(message)
    with pytest.raises(ModelError, match="rectified flow"):
        known.with_flags(SimpleNamespace(**NO_FLAGS | {"prediction": "flow", "zero_terminal_snr": True}))


def test_a_host_that_draws_along_the_flow_is_believed_where_the_file_says_nothing(tmp_path):
    known_of(tmp_path)  # writes the file
    info = info_of(tmp_path / "model.safetensors")
    known = facts.from_checkpoint(info, "sdxl", "flow", host_zero_snr=False)
    assert (known.prediction.kind, known.prediction.is_marked) == ("flow", True)
