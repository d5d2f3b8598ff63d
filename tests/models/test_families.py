"""Each family beside diffusers' own reading of the same file: every weight, what is read of a text, and the U-Net's answer."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest
import torch

from benchmarks import random_checkpoint
from lora_trainer.models import layout
from lora_trainer.models.conditioning import Conditioning, concat
from lora_trainer.models.files import save
from lora_trainer.models.files.tensor_file import tensors
from lora_trainer.models.load import clip_tokenizer, load, read_parts
from lora_trainer.models.source import FileSource, LiveSource
from lora_trainer.models.tokenize import tokenize
from tests.models.conftest import CPU, FAMILIES

TEXTS = ["a red circle on a white background", "", "two words, and then some more of them"]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, checkpoint, bundle_of, tmp_path_factory):
    """Our bundle, and the modules that diffusers' single-file loading makes of the same checkpoint and configs of its own."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    family, folder = request.param, tmp_path_factory.mktemp(f"config-{request.param}")
    unet, vae, *texts = random_checkpoint.SHAPES[family][1].modules()
    unet.save_config(folder / "unet")
    vae.save_config(folder / "vae")
    if family == "sd2":
        texts[0].config.num_hidden_layers -= 1  # as the released config has it: 23 of 24
    for number, text in enumerate(texts):
        text.config.save_pretrained(folder / ("text_encoder" if not number else "text_encoder_2"))
    held = {name: tensor.clone() for name, tensor in tensors(checkpoint(family)).items()}
    ready = {"config": str(folder), "local_files_only": True}
    classes = [CLIPTextModel, CLIPTextModelWithProjection][: len(texts)]
    theirs = SimpleNamespace(
        unet=UNet2DConditionModel.from_single_file(dict(held), subfolder="unet", **ready).eval(),
        vae=AutoencoderKL.from_single_file(dict(held), subfolder="vae", **ready).eval(),
        texts=[
            create_diffusers_clip_model_from_ldm(kind, dict(held), subfolder="text_encoder" if not number else "text_encoder_2", **ready)
            for number, kind in enumerate(classes)
        ],
    )
    return bundle_of(family), theirs


def test_every_weight_is_the_one_that_diffusers_reads(pair):
    ours, theirs = pair
    modules = zip((ours.unet, ours.vae, *ours.text_encoders), (theirs.unet, theirs.vae, *theirs.texts), strict=True)
    for own, other in modules:
        # transformers 5 drops the first part of a text encoder's names
        own_state, other_state = (
            {name.removeprefix("text_model."): tensor for name, tensor in module.named_parameters()} for module in (own, other)
        )
        assert set(own_state) == set(other_state)
        assert all(torch.equal(own_state[name], other_state[name]) for name in other_state)


def test_a_text_encoder_answers_as_diffusers_does_bit_for_bit_where_both_attend_alike(pair):
    ours, theirs = pair
    ids = torch.randint(0, 49406, (2, 77), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 49407
    for own, other in zip(ours.text_encoders, theirs.texts, strict=True):
        if hasattr(other.config, "_attn_implementation"):
            other.config._attn_implementation = own.config._attn_implementation  # diffusers' loading asks for the slow one
        with torch.no_grad():
            answers = [module(ids, output_hidden_states=True).hidden_states for module in (own, other)]
        attends = [type(getattr(module, "text_model", module).encoder.layers[0].self_attn) for module in (own, other)]
        pairs = zip(*answers, strict=True)
        if attends[0] is attends[1]:
            assert all(torch.equal(one, two) for one, two in pairs)
        else:
            assert all(torch.allclose(one, two, atol=1e-5) for one, two in pairs)


def test_what_is_read_of_a_text_is_what_diffusers_pipelines_read(pair):
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    ours, theirs = pair
    padded_with_zero = clip_tokenizer()
    padded_with_zero.pad_token = "!"
    with torch.no_grad():
        told = ours.family.encode_text(ours, tokenize(ours.tokenizer, TEXTS), 1)
        if ours.family.name == "sdxl":
            pipeline = SimpleNamespace(tokenizer=clip_tokenizer(), tokenizer_2=padded_with_zero, text_encoder=theirs.texts[0])
            pipeline.text_encoder_2, pipeline.unet = theirs.texts[1], None
            pipeline.config = SimpleNamespace(force_zeros_for_empty_prompt=True)
            states, _, pooled, _ = StableDiffusionXLPipeline.encode_prompt(pipeline, TEXTS, device=CPU, do_classifier_free_guidance=False)
            assert torch.allclose(told.pooled, pooled, atol=1e-5)  # the projection is read turned: summed in another order
        else:
            tokenizer = padded_with_zero if ours.family.name == "sd2" else clip_tokenizer()
            pipeline = SimpleNamespace(tokenizer=tokenizer, text_encoder=theirs.texts[0], unet=None)
            states, _ = StableDiffusionPipeline.encode_prompt(pipeline, TEXTS, CPU, 1, False)
            assert told.pooled is None
    assert states.shape == told.states.shape
    assert torch.allclose(told.states, states, atol=1e-5)


def test_the_answer_to_a_noisy_picture_is_that_of_diffusers_unet(pair):
    ours, theirs = pair
    noisy, steps = torch.randn(3, 4, 16, 24, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 500, 999])
    with torch.no_grad():
        told = ours.family.encode_text(ours, tokenize(ours.tokenizer, TEXTS), 1)
        added = None
        if ours.family.name == "sdxl":
            sizes = torch.tensor([[128, 192, 0, 0, 128, 192]]).expand(3, 6)  # the picture's own size, nothing cut off
            added = {"text_embeds": told.pooled, "time_ids": sizes}
        expected = theirs.unet(noisy, steps, told.states, added_cond_kwargs=added, return_dict=False)[0]
        answer = ours.family.denoise(ours, noisy, steps, told)
    assert expected.std() > 0.01
    assert torch.allclose(answer, expected, atol=1e-5)  # weights at other addresses: a CPU may add them in another order


def test_the_vae_reads_and_draws_as_diffusers_does(pair):
    ours, theirs = pair
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = theirs.vae.encode(pixels).latent_dist.mean
        # weights at other addresses: a CPU may add them in another order
        assert torch.allclose(ours.vae.encode(pixels).latent_dist.mean, latents, atol=1e-5)
        assert torch.allclose(ours.vae.decode(latents).sample, theirs.vae.decode(latents).sample, atol=1e-5)


@pytest.mark.parametrize(("family", "scale"), [("sd1", 0.18215), ("sd2", 0.18215), ("sdxl", 0.13025)])
def test_latents_are_scaled_as_the_family_was_trained(bundle_of, family, scale):
    assert bundle_of(family).family.latent_scale == scale


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_a_host_holds_is_shared_without_a_copy(family):
    widths = random_checkpoint.SHAPES[family][1]
    held = random_checkpoint.parts(attrs.evolve(widths, words=100), torch.float32)
    heads = {"unet_heads": 8 if family == "sd1" else 0, "text_heads": 4}
    live = LiveSource(
        held["unet"],
        held["vae"],
        held["text"],
        **heads,
        tokenizer=clip_tokenizer(),
        path=Path("x.safetensors"),
        family=family,
        text_2_state=held.get("text_2", {}),
    )
    made = load(live, CPU)
    known = {tensor.untyped_storage().data_ptr() for state in held.values() for tensor in state.values()}
    owned = [value for module in made.modules() for value in module.parameters()]
    assert [tuple(value.shape) for value in owned if value.untyped_storage().data_ptr() not in known] == []
    assert not any(value.requires_grad for value in owned)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_comes_back_from_the_modules_as_it_was(family, checkpoint, bundle_of):
    made, original = bundle_of(family), tensors(checkpoint(family))
    parts = {"unet": made.unet, "vae": made.vae, "text": made.text_encoder, "text_2": made.text_encoder_2}
    back = save.to_checkpoint({part: dict(module.named_parameters()) for part, module in parts.items() if module is not None}, family)
    unread = {name for name in original if family == "sd2" and (".resblocks.3." in name or name.endswith("text_projection"))}
    assert set(back) == set(original) - unread
    assert all(torch.equal(back[name], original[name]) for name in back)


@pytest.mark.parametrize("family", FAMILIES)
def test_model_tokenizer_and_text_need_no_network(family, checkpoint, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    made = load(FileSource(checkpoint(family), prediction="epsilon"), CPU)
    with torch.no_grad():
        assert torch.isfinite(made.family.encode_text(made, tokenize(made.tokenizer, TEXTS), 1).states).all()


def parts_of(made) -> dict[str, dict[str, torch.Tensor]]:
    modules = {"unet": made.unet, "vae": made.vae, "text": made.text_encoder, "text_2": made.text_encoder_2}
    return {part: dict(module.named_parameters()) for part, module in modules.items() if module is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_checkpoint_keeps_what_no_module_has_and_every_number_format(family, checkpoint, bundle_of, tmp_path):
    """Unread layers, the logit scale, position ids and marks: a host wants all of them."""
    from safetensors.torch import save_file

    prefix = list(layout.part_prefixes(family).values())[2]
    beside = {
        f"{prefix}logit_scale": torch.tensor(4.6),
        "v_pred": torch.zeros(0),
        f"{prefix}text_model.embeddings.position_ids": torch.arange(77),
    }
    original = {name: tensor.half() for name, tensor in tensors(checkpoint(family)).items()} | beside
    save_file({name: tensor.contiguous() for name, tensor in original.items()}, tmp_path / "x.safetensors")
    parts = parts_of(load(FileSource(tmp_path / "x.safetensors"), CPU))
    back = save.complete_checkpoint(parts, family, tmp_path / "x.safetensors")
    assert set(back) == set(original)
    assert all(torch.equal(back[name], original[name]) and back[name].dtype == original[name].dtype for name in original)
    trained = save.complete_checkpoint(
        {"unet": {name: tensor + 1 for name, tensor in parts["unet"].items()}}, family, tmp_path / "x.safetensors"
    )
    assert set(trained) == set(original)
    assert {name for name in original if not torch.equal(trained[name], original[name])} == {
        name for name in original if name.startswith(layout.UNET)
    }


def test_names_of_before_the_text_model_prefix_are_replaced_not_doubled(checkpoint, bundle_of, tmp_path):
    from safetensors.torch import save_file

    old = {name.replace(f"{layout.TEXT}text_model.", layout.TEXT): tensor for name, tensor in tensors(checkpoint("sd1")).items()}
    save_file(old, tmp_path / "x.safetensors")
    back = save.complete_checkpoint(parts_of(bundle_of("sd1")), "sd1", tmp_path / "x.safetensors")
    assert set(back) == set(tensors(checkpoint("sd1")))


def test_a_checkpoint_made_of_a_folder_has_the_layer_that_hosts_miss_without(checkpoint, bundle_of, tmp_path):
    from safetensors.torch import save_file

    original = tensors(checkpoint("sd2"))
    back = save.complete_checkpoint(parts_of(bundle_of("sd2")), "sd2", tmp_path)
    assert set(back) == set(original) | {"cond_stage_model.model.logit_scale"}
    assert all(back[name].shape == original[name].shape for name in original)
    save_file({name: tensor.contiguous() for name, tensor in back.items()}, tmp_path / "x.safetensors")
    again = load(FileSource(tmp_path / "x.safetensors", prediction="epsilon"), CPU)
    ids = torch.full((1, 77), 49407)
    with torch.no_grad():
        # weights at other addresses: a CPU may add them in another order
        torch.testing.assert_close(again.text_encoder(ids)[0], bundle_of("sd2").text_encoder(ids)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_of_a_checkpoint_has_one_counterpart(family, checkpoint):
    parts = read_parts(checkpoint(family))
    assert set(parts) == set(layout.part_prefixes(family))
    for part in ("unet", "vae"):
        table = (layout.unet_names if part == "unet" else layout.vae_names)(parts[part])
        assert set(table) == set(parts[part])
        assert len(set(table.values())) == len(table)


def test_the_names_of_the_released_sdxl_are_those_of_the_table():
    """Some of the 1680 names, as SGM's source and the released header have them."""
    prefixes = layout.unet_prefixes((False, True, True))
    known = {
        "input_blocks.3.0.op.weight": "down_blocks.0.downsamplers.0.conv.weight",
        "input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k.weight",
        "input_blocks.7.0.skip_connection.weight": "down_blocks.2.resnets.0.conv_shortcut.weight",
        "middle_block.1.transformer_blocks.9.ff.net.0.proj.weight": "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj.weight",
        "output_blocks.2.2.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",
        "output_blocks.5.2.conv.bias": "up_blocks.1.upsamplers.0.conv.bias",
        "output_blocks.8.0.emb_layers.1.weight": "up_blocks.2.resnets.2.time_emb_proj.weight",
        "label_emb.0.2.bias": "add_embedding.linear_2.bias",
    }
    assert layout.rename_keys(known, prefixes) == known


@pytest.mark.parametrize("family", FAMILIES)
def test_long_captions_keep_one_start_and_one_end(family, bundle_of):
    made = bundle_of(family)
    with torch.no_grad():
        short = made.family.encode_text(made, tokenize(made.tokenizer, ["a red cat"]), 1)
        long = made.family.encode_text(made, tokenize(made.tokenizer, ["a red cat"], 150), 1)
    assert long.states.shape[1] == 152
    assert torch.allclose(long.states[:, :76], short.states[:, :76], atol=1e-5)
    if short.pooled is not None:
        assert torch.allclose(long.pooled, short.pooled, atol=1e-5)


def test_sizes_of_a_picture_change_what_sdxl_answers(bundle_of):
    made = bundle_of("sdxl")
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        told = made.family.encode_text(made, tokenize(made.tokenizer, ["a cat"]), 1)
        whole = made.family.denoise(made, noisy, torch.tensor([500]), told)
        same = made.family.denoise(made, noisy, torch.tensor([500]), told.with_sizes(torch.tensor([[64, 64, 0, 0, 64, 64]])))
        cut = made.family.denoise(made, noisy, torch.tensor([500]), told.with_sizes(torch.tensor([[512, 64, 100, 0, 64, 64]])))
    assert torch.equal(whole, same)
    assert not torch.allclose(whole, cut, atol=1e-4)


def test_conditionings_are_taken_apart_and_put_together_without_a_change():
    whole = Conditioning(torch.randn(4, 3, 2), torch.randn(4, 5), torch.arange(24).reshape(4, 6))
    assert concat([whole[:1], whole[1:3], whole[[3]]]).equals(whole)
    assert not concat([whole[1:], whole[:1]]).equals(whole)
    assert not Conditioning(whole.states).equals(whole)
    assert whole[:1].expand(3).pooled.shape == (3, 5)
    assert whole.nbytes == 4 * (4 * 6 + 4 * 5) + 8 * 24


@pytest.mark.parametrize(
    ("family", "counts"),
    [
        ("sd1", {"unet": 686, "vae": 248, "text": 196}),
        ("sd2", {"unet": 686, "vae": 248, "text": 24 * 12 + 5}),
        ("sdxl", {"unet": 1680, "vae": 248, "text": 196, "text_2": 32 * 12 + 5}),
    ],
)
def test_models_of_full_size_have_as_many_tensors_in_a_checkpoint_as_the_released_ones(family, counts):
    """Beside them released files hold position ids and the logit scale, which no module needs."""
    modules = dict(zip(layout.part_prefixes(family), random_checkpoint.SHAPES[family][0].modules(), strict=True))
    states = {part: dict(module.named_parameters()) for part, module in modules.items()}
    written = save.to_checkpoint(states, family)
    assert {part: len(names) for part, names in layout.split_keys(written, family).items()} == counts
    back = layout.parts_of_checkpoint(written, family)
    assert set(back["unet"]) == set(states["unet"])
    assert layout.family_of(written).family == family
