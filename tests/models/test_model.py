"""The model room: names in both layouts, what a file is, and modules that share the source's own tensors."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lora_trainer.errors import ModelError
from lora_trainer.models import layout
from lora_trainer.models.detection import detect
from lora_trainer.models.load import clip_tokenizer, load, read_parts
from lora_trainer.models.source import FileSource, LiveSource
from lora_trainer.models.tokenize import tokenize
from lora_trainer.prep.caption_tokens import ClipTokens

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parts(toy_checkpoint: Path):
    return read_parts(toy_checkpoint)


@pytest.fixture(scope="module")
def bundle(toy_checkpoint: Path):
    return load(FileSource(toy_checkpoint), CPU)


@pytest.mark.parametrize(("part", "names"), [("unet", layout.unet_names), ("vae", layout.vae_names)])
def test_every_name_of_a_checkpoint_has_one_counterpart(parts, part, names):
    table = names(parts[part])
    assert set(table) == set(parts[part])
    assert len(set(table.values())) == len(table)


def test_unet_and_vae_names_are_those_of_diffusers_own_converter(parts):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    unet_config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}
    theirs = convert_ldm_unet_checkpoint({layout.UNET + key: value for key, value in parts["unet"].items()}, unet_config)
    ours = {new: parts["unet"][old] for old, new in layout.unet_names(parts["unet"]).items()}
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    vae_config = {"down_block_types": [1] * 4, "up_block_types": [1] * 4}
    theirs = convert_ldm_vae_checkpoint({layout.VAE + key: value for key, value in parts["vae"].items()}, vae_config)
    ours = {new: parts["vae"][old] for old, new in layout.vae_names(parts["vae"]).items()}
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key].reshape(theirs[key].shape), theirs[key]) for key in theirs)


def test_a_live_source_is_shared_without_a_copy(parts):
    state = {part: {key: tensor.float() for key, tensor in tensors.items()} for part, tensors in parts.items()}
    live = LiveSource(state["unet"], state["vae"], state["text"], 8, 4, clip_tokenizer(), Path("x.safetensors"))
    made = load(live, CPU)
    held = {tensor.untyped_storage().data_ptr() for tensors in state.values() for tensor in tensors.values()}
    strangers = [
        name for module in made.modules() for name, value in module.named_parameters() if value.untyped_storage().data_ptr() not in held
    ]
    assert strangers == []
    assert not any(value.requires_grad for module in made.modules() for value in module.parameters())


def test_building_a_model_fills_no_tensor_and_leaves_every_module_frozen_for_use(toy_checkpoint: Path):
    calls: list[str] = []

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            calls.append(str(operation))
            return operation(*args, **(kwargs or {}))

    with Recorded():
        torch.nn.Linear(2, 2)
    assert any("uniform_" in call for call in calls)  # what a module does when it is made
    calls.clear()
    with Recorded():
        made = load(FileSource(toy_checkpoint), CPU)
    assert [call for call in calls if any(name in call for name in ("uniform", "normal_", "zero_", "fill_"))] == []
    modules = [inner for module in made.modules() for inner in module.modules()]
    assert not any(inner.training for inner in modules)
    tensors = [value for inner in modules for value in (*inner.parameters(recurse=False), *inner.buffers(recurse=False))]
    assert all(value.device == CPU and not value.requires_grad for value in tensors)


def test_small_model_predicts_the_noise_of_a_picture_better_than_nothing(bundle):
    from lora_trainer.models.noise_schedule import SCALED_LINEAR

    words = bundle.family.encode_text(bundle, tokenize(bundle.tokenizer, ["a red circle on a white background"]), 1)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    alpha = SCALED_LINEAR.alphas_cumprod()[700]
    noisy = (1 - alpha).sqrt() * noise
    with torch.no_grad():
        answer = bundle.family.denoise(bundle, noisy, torch.tensor([700]), words)
    assert torch.nn.functional.mse_loss(answer, noise) < 0.3


def test_noise_schedule_is_that_of_diffusers_scaled_linear():
    from diffusers.schedulers import DDIMScheduler

    from lora_trainer.models.noise_schedule import SCALED_LINEAR

    theirs = DDIMScheduler(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    # a product of up to 1000 factors in float32, each rounded by at most half of 1.2e-7 of itself
    torch.testing.assert_close(SCALED_LINEAR.alphas_cumprod(), theirs, rtol=6e-5, atol=0)


def test_clip_skip_two_reads_the_layer_before_the_last_through_the_final_norm(bundle):
    ids = tokenize(bundle.tokenizer, ["a star"])
    with torch.no_grad():
        hidden = bundle.text_encoder(ids, output_hidden_states=True).hidden_states
        expected = bundle.text_encoder.text_model.final_layer_norm(hidden[-2])
        # four layers on numbers around 1, some forty roundings of 1.2e-7 each
        torch.testing.assert_close(bundle.family.encode_text(bundle, ids, 2).states, expected, rtol=0, atol=1e-5)
        assert not torch.allclose(bundle.family.encode_text(bundle, ids, 1).states, expected, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("A  Photo\nof a CAT", [320, 1125, 539, 320, 2368]),
        ("hello world!", [3306, 1002, 256]),
    ],
)
def test_a_caption_has_the_ids_of_openais_clip_in_every_version_of_transformers(text, ids):
    assert tokenize(clip_tokenizer(), [text])[0, : len(ids) + 2].tolist() == [49406, *ids, 49407]


def test_tokens_are_counted_as_clip_does_and_cut_at_75():
    tokenizer = clip_tokenizer()
    assert ClipTokens().count("a red circle") == 3
    assert tokenize(tokenizer, ["word " * 200]).shape == (1, 77)
    assert tokenize(tokenizer, [""]).tolist() == [[49406] + [49407] * 76]


@pytest.mark.parametrize(("limit", "pieces"), [(75, 1), (150, 2), (225, 3)])
@pytest.mark.parametrize("count", [0, 3, 75, 76, 150, 160, 225, 300])
def test_long_captions_are_cut_every_75_tokens_between_start_and_end(limit, pieces, count):
    tokenizer = clip_tokenizer()
    text = " ".join(["cat"] * count)
    (cat,) = tokenizer("cat")["input_ids"][1:-1]
    found = tokenize(tokenizer, [text, "dog"], limit)
    assert found.shape == (2, 77 * pieces)
    filled = [cat] * min(count, limit) + [49407] * (limit - min(count, limit))
    wanted = [token for start in range(0, limit, 75) for token in (49406, *filled[start : start + 75], 49407)]
    assert found[0].tolist() == wanted


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_what_is_read_of_the_pieces_stands_between_one_start_and_one_end(bundle, clip_skip):
    ids = tokenize(bundle.tokenizer, [" ".join(["red cat"] * 100), "a star"], 225)
    with torch.no_grad():
        read = bundle.family.encode_text(bundle, ids, clip_skip).states
        for number in range(2):
            pieces = [
                bundle.family.encode_text(bundle, ids[number : number + 1, start : start + 77], clip_skip).states[0]
                for start in (0, 77, 154)
            ]
            wanted = torch.cat([pieces[0][:76], pieces[1][1:76], pieces[2][1:]])
            assert wanted.shape[0] == 227
            # three rows at once and one alone: four layers on numbers around 1, some forty roundings of 1.2e-7 each
            torch.testing.assert_close(read[number], wanted, rtol=0, atol=1e-5)


def test_the_unet_reads_long_captions(bundle):
    noisy = torch.zeros(1, 4, 8, 8)
    with torch.no_grad():
        words = bundle.family.encode_text(bundle, tokenize(bundle.tokenizer, ["a red circle"], 150), 1)
        assert bundle.family.denoise(bundle, noisy, torch.tensor([500]), words).shape == noisy.shape


def test_facts_of_the_small_model_come_from_its_keys_and_widths(toy_checkpoint: Path):
    facts = detect.inspect(toy_checkpoint)
    assert (facts.family, facts.prediction, facts.native_size, facts.context_width, facts.text_layers) == ("sd1", "epsilon", 64, 64, 4)


def _file(path: Path, shapes: dict[str, list[int]]) -> Path:
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * offset)
    return path


FIRST = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"conditioner.embedders.0.model.ln_final.weight": [4], FIRST: [4, 4, 3, 3]}, "an SDXL refiner"),
        ({"model.diffusion_model.joint_blocks.0.x": [1]}, "Stable Diffusion 3"),
        ({"model.diffusion_model.double_blocks.0.x": [1]}, "Flux"),
        ({FIRST: [4, 9, 3, 3]}, "an inpainting model"),
        ({FIRST: [4, 6, 3, 3]}, "6 input channels"),
        ({"lora_unet_mid_block.lora_down.weight": [1, 2]}, "a LoRA"),
        ({"encoder.down.0.block.0.conv1.weight": [1]}, "a VAE"),
        ({"whatever": [1]}, "not a Stable Diffusion checkpoint"),
        ({FIRST: [4, 4, 3, 3]}, "without its text encoder"),
    ],
)
def test_other_models_are_refused_by_what_they_are(tmp_path: Path, shapes, words):
    with pytest.raises(ModelError, match=words) as caught:
        detect.inspect(_file(tmp_path / "model.safetensors", shapes))
    assert "model.safetensors" in str(caught.value)
    assert caught.value.problems[0].fix.text()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.safetensors", b"", "not a safetensors file"),
        ("a.safetensors", b"hello, this is text, not a model at all", "not a safetensors file"),
        ("a.safetensors", struct.pack("<Q", 10) + b"{{{{{{{{{{", "damaged"),
        ("a.ckpt", b"x", "not a checkpoint"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=words):
        detect.inspect(tmp_path / name)


def test_a_file_cut_short_is_named(tmp_path: Path, toy_checkpoint: Path):
    short = tmp_path / "short.safetensors"
    short.write_bytes(toy_checkpoint.read_bytes()[:2_000_000])
    with pytest.raises(ModelError, match="ends early"):
        detect.inspect(short)


def test_missing_files_and_folders_are_named(tmp_path: Path):
    with pytest.raises(ModelError, match="does not exist"):
        detect.inspect(tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match="folder"):
        detect.inspect(tmp_path)


def test_a_v_prediction_checkpoint_is_told_by_its_key(tmp_path: Path, toy_checkpoint: Path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(toy_checkpoint)
    save_file({**tensors, "v_pred": torch.zeros(1)}, tmp_path / "v.safetensors")
    assert detect.inspect(tmp_path / "v.safetensors").prediction == "v"


def test_a_tensor_of_another_shape_is_refused_by_name(toy_checkpoint: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(toy_checkpoint)
    del tensors["model.diffusion_model.out.2.bias"]
    save_file(tensors, tmp_path / "hole.safetensors")
    with pytest.raises(ModelError, match=r"conv_out\.bias"):
        load(FileSource(tmp_path / "hole.safetensors"), CPU)
