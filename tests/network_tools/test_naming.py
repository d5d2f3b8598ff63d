"""Public naming schemes: each program's keys for the same layers are read as the same network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_trainer.adapters.files.checked_network import open_network, read_modules
from lora_trainer.adapters.files.checkpoint_layers import CheckpointLayer, released_layers
from lora_trainer.errors import ModelError
from lora_trainer.models import layout
from lora_trainer.network_tools.convert import convert

Pair = tuple[Tensor, Tensor]
Pairs = Mapping[str, tuple[CheckpointLayer, Pair]]
ATTENTION = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
)
OTHERS = ("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj", "mid_block.attentions.0.proj_in", "up_blocks.1.resnets.0.conv1")
ONLY_IN = {
    "sd1": "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "sdxl": "mid_block.attentions.0.transformer_blocks.9.attn1.to_v",
}
TEXT = ("text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.3.self_attn.out_proj")
TEXT_MLP = ("text_model.encoder.layers.1.mlp.fc1",)
DIFFUSERS_TEXT = {"text": "text_encoder", "text_2": "text_encoder_2"}


def ldm(layer: CheckpointLayer) -> str:
    return layer.weight.key.removeprefix(layout.UNET).removesuffix(".weight")


def under(path: str) -> str:
    return path.replace(".", "_")


def is_attention(layer: CheckpointLayer) -> bool:
    return ".to_" in layer.path


def pairs_of(family: str, *, unet: bool = True, text: bool = True, attention_only: bool = False) -> Pairs:
    """Random (down, up) on some layers of a family's released models."""
    generator = torch.Generator().manual_seed(3)
    wanted = {ONLY_IN[family], *ATTENTION, *([] if attention_only else OTHERS)} if unet else set()
    wanted |= {*TEXT, *([] if attention_only else TEXT_MLP)} if text else set()
    found = {}
    for name, layer in released_layers(family).items():
        if layer.path in wanted:
            out, into, *kernel = layer.shape
            down = torch.randn((2, into, *kernel), generator=generator) * 0.1
            up = torch.randn((out, 2, *(1 for _ in kernel)), generator=generator) * 0.1
            found[name] = (layer, (down, up))
    return found


def keys(layer_name: Callable[[str, CheckpointLayer], str], down: str, up: str, alpha: str = "") -> Callable[[Pairs], dict[str, Tensor]]:
    """A scheme: the layer's name, and what is written behind it for each matrix."""

    def write(pairs: Pairs) -> dict[str, Tensor]:
        state = {}
        for name, (layer, (first, second)) in pairs.items():
            place = layer_name(name, layer)
            state |= {f"{place}{down}": first, f"{place}{up}": second}
            if alpha:
                state[f"{place}{alpha}"] = torch.tensor(2.0)
        return state

    return write


KOHYA, PEFT = (".lora_down.weight", ".lora_up.weight", ".alpha"), (".lora_A.weight", ".lora_B.weight")


def dotted(unet: str, text: str, text_2: str = "", *, by_ldm: bool = False) -> Callable[[str, CheckpointLayer], str]:
    """A layer's path behind a prefix for each part."""
    prefixes = {"unet": unet, "text": text, "text_2": text_2}
    return lambda name, layer: prefixes[layer.part] + (ldm(layer) if by_ldm and layer.part == "unet" else layer.path)


def underscored(unet: str, text: str, text_2: str = "", *, by_ldm: bool = False) -> Callable[[str, CheckpointLayer], str]:
    """The same with "_" for "."."""
    place = dotted("", "", "", by_ldm=by_ldm)
    prefixes = {"unet": unet, "text": text, "text_2": text_2}
    return lambda name, layer: prefixes[layer.part] + under(place(name, layer))


def generation_1(prefix: str = "") -> Callable[[Pairs], dict[str, Tensor]]:
    """diffusers' attention processors of 2023: `attn1.processor.to_q_lora.down.weight`, text encoders in the same words."""
    words = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}

    def place(name: str, layer: CheckpointLayer) -> str:
        head, _, last = layer.path.removesuffix(".0").rpartition(".")
        if layer.part == "unet":
            return f"{prefix}{head}.processor.{last}"
        return f"{DIFFUSERS_TEXT[layer.part]}.{head}.{words[last]}"

    return keys(place, "_lora.down.weight", "_lora.up.weight")


def generation_2(pairs: Pairs) -> dict[str, Tensor]:
    """diffusers of 2023: `.lora.down` in the U-Net, `.lora_linear_layer.down` in text encoders."""
    return keys(
        lambda name, layer: (
            f"unet.{layer.path}.lora" if layer.part == "unet" else f"{DIFFUSERS_TEXT[layer.part]}.{layer.path}.lora_linear_layer"
        ),
        ".down.weight",
        ".up.weight",
    )(pairs)


def generation_3_mixed(pairs: Pairs) -> dict[str, Tensor]:
    """diffusers of 2024, as its own `convert_state_dict_to_diffusers` makes it: two words in one file."""
    from diffusers.utils import convert_state_dict_to_diffusers

    return convert_state_dict_to_diffusers(PLAIN_PEFT(pairs))


def kohya_export(pairs: Pairs) -> dict[str, Tensor]:
    """diffusers' own export for WebUIs, whose alphas are whole numbers."""
    from diffusers.utils import convert_state_dict_to_kohya

    return convert_state_dict_to_kohya(PLAIN_PEFT(pairs))


PLAIN_PEFT = keys(dotted("unet.", "text_encoder.", "text_encoder_2."), *PEFT)
ALL, UNET, TEXTS, ATTENTIONS, UNET_ATTENTION = (
    {},
    {"text": False},
    {"unet": False},
    {"attention_only": True},
    {"attention_only": True, "text": False},
)
SD1_SCHEMES: dict[str, tuple[Callable[[Pairs], dict[str, Tensor]], dict[str, bool]]] = {
    "sd-scripts": (keys(underscored("lora_unet_", "lora_te_"), *KOHYA), ALL),
    "sd-scripts without alphas": (keys(underscored("lora_unet_", "lora_te_"), *KOHYA[:2]), ALL),
    "the checkpoint's names": (keys(underscored("lora_unet_", "lora_te_", by_ldm=True), *KOHYA), ALL),
    "the first encoder numbered": (keys(underscored("lora_unet_", "lora_te1_"), *KOHYA), ALL),
    "sd-scripts' layers in PEFT's words": (keys(underscored("lora_unet_", "lora_te_"), *PEFT), ALL),
    "diffusers' kohya export": (kohya_export, ALL),
    "diffusers, attention processors without a prefix": (generation_1(), UNET_ATTENTION),
    "diffusers, attention processors": (generation_1("unet."), ATTENTIONS),
    "diffusers, its own words": (generation_2, ALL),
    "diffusers, two words": (generation_3_mixed, ALL),
    "PEFT in diffusers": (PLAIN_PEFT, ALL),
    "PEFT, the model alone": (keys(dotted("base_model.model.", "base_model.model."), *PEFT), UNET),
    "PEFT, a text encoder alone": (keys(dotted("base_model.model.", "base_model.model."), *PEFT), TEXTS),
    "PEFT, an adapter's name": (
        keys(dotted("base_model.model.", "base_model.model."), ".lora_A.default.weight", ".lora_B.default.weight"),
        UNET,
    ),
    "PEFT in diffusers, an adapter's name": (
        keys(dotted("unet.", "text_encoder."), ".lora_A.default_0.weight", ".lora_B.default_0.weight"),
        ALL,
    ),
    "PEFT without its wrapper": (keys(dotted("", ""), *PEFT), UNET),
    "PEFT on a pipeline": (keys(dotted("base_model.model.unet.", "base_model.model.text_encoder."), *PEFT), ALL),
    "OneTrainer, legacy": (keys(underscored("lora_unet_", "lora_te_"), *KOHYA), ALL),
    "OneTrainer, dotted": (keys(dotted("lora_unet.", "lora_te."), *KOHYA), ALL),
    "OneTrainer, OMI": (keys(dotted("unet.", "clip_l.", by_ldm=True), *KOHYA), ALL),
    "OneTrainer, OMI's first version": (keys(dotted("lora_unet.", "lora_clip_l.", by_ldm=True), *KOHYA), ALL),
    "ComfyUI": (keys(dotted("diffusion_model.", "text_encoders.clip_l.transformer.", by_ldm=True), *KOHYA[:2]), ALL),
    "ComfyUI with alphas": (keys(dotted("diffusion_model.", "text_encoders.clip_l.transformer.", by_ldm=True), *KOHYA), ALL),
    "ComfyUI in PEFT's words": (keys(dotted("diffusion_model.", "text_encoders.clip_l.transformer.", by_ldm=True), *PEFT), ALL),
    "the checkpoint's paths": (keys(dotted("model.diffusion_model.", "", by_ldm=True), *KOHYA), UNET),
    "LyCORIS' wrapper": (keys(underscored("lycoris_", "lycoris_"), *KOHYA), UNET),
}
SDXL_SCHEMES: dict[str, tuple[Callable[[Pairs], dict[str, Tensor]], dict[str, bool]]] = {
    "sd-scripts": (keys(underscored("lora_unet_", "lora_te1_", "lora_te2_", by_ldm=True), *KOHYA), ALL),
    "OneTrainer, legacy; diffusers' names": (keys(underscored("lora_unet_", "lora_te1_", "lora_te2_"), *KOHYA), ALL),
    "diffusers' kohya export": (kohya_export, ALL),
    "diffusers, its own words": (generation_2, ALL),
    "diffusers, two words": (generation_3_mixed, ALL),
    "PEFT in diffusers": (PLAIN_PEFT, ALL),
    "PEFT, the model alone": (keys(dotted("base_model.model.", ""), *PEFT), UNET),
    "PEFT on a pipeline": (
        keys(dotted("base_model.model.unet.", "base_model.model.text_encoder.", "base_model.model.text_encoder_2."), *PEFT),
        ALL,
    ),
    "OneTrainer, OMI": (keys(dotted("unet.", "clip_l.", "clip_g.", by_ldm=True), *KOHYA), ALL),
    "OneTrainer, dotted": (keys(dotted("lora_unet.", "lora_te1.", "lora_te2."), *KOHYA), ALL),
    "ComfyUI": (
        keys(dotted("diffusion_model.", "text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer.", by_ldm=True), *KOHYA),
        ALL,
    ),
    "LyCORIS' wrapper": (keys(underscored("lycoris_", ""), *KOHYA), UNET),
}
READ = [*(("sd1", name) for name in SD1_SCHEMES), *(("sdxl", name) for name in SDXL_SCHEMES)]
REFUSED = {
    "cloneofsimo, safetensors": ({"unet:0:up": torch.ones(8, 2), "unet:0:down": torch.ones(2, 8)}, "cloneofsimo"),
    "sd-scripts' own OFT": ({"oft_unet_x.oft_blocks": torch.ones(2, 4, 4)}, "no WebUI reads"),
    "Flux in ComfyUI's names": ({"diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": torch.ones(2, 8)}, "a Flux model"),
    "another family in ComfyUI's names": ({"diffusion_model.layers.0.attention.qkv.lora_A.weight": torch.ones(2, 8)}, "another family"),
}


def scheme(family: str, name: str) -> tuple[Callable[[Pairs], dict[str, Tensor]], dict[str, bool]]:
    return (SD1_SCHEMES if family == "sd1" else SDXL_SCHEMES)[name]


def test_how_many_public_namings_are_read():
    assert (len(SD1_SCHEMES), len(SDXL_SCHEMES)) == (26, 12)


@pytest.mark.parametrize(("family", "name"), READ)
def test_a_public_naming_is_read_as_the_same_network(family: str, name: str, tmp_path: Path):
    write, options = scheme(family, name)
    pairs = pairs_of(family, **options)
    save_file({key: tensor.contiguous() for key, tensor in write(pairs).items()}, str(tmp_path / "in.safetensors"))
    file = open_network(tmp_path / "in.safetensors")
    assert (file.family, file.unknown_layers) == (family, ())
    states = read_modules(file)
    assert states.keys() == pairs.keys()
    for key, state in states.items():
        down, up = pairs[key][1]
        assert torch.equal(state.tensors["lora_down.weight"], down) and torch.equal(state.tensors["lora_up.weight"], up)
        assert state.scale == 1.0


@pytest.mark.parametrize(
    ("family", "name"),
    [("sd1", "the checkpoint's names"), ("sd1", "OneTrainer, OMI"), ("sd1", "diffusers, two words"), ("sdxl", "ComfyUI")],
)
def test_what_another_program_wrote_becomes_what_sd_scripts_writes(family: str, name: str, tmp_path: Path):
    write, options = scheme(family, name)
    pairs = pairs_of(family, **options)
    save_file(write(pairs), str(tmp_path / "in.safetensors"))
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", "kohya")
    written = load_file(str(tmp_path / "out.safetensors"))
    assert written.keys() == {f"{key}{suffix}" for key in pairs for suffix in KOHYA}


@pytest.mark.parametrize("name", REFUSED)
def test_a_naming_that_cannot_be_read_is_refused_by_its_name(name: str, tmp_path: Path):
    state, said = REFUSED[name]
    save_file(state, str(tmp_path / "in.safetensors"))
    with pytest.raises(ModelError, match=said):
        open_network(tmp_path / "in.safetensors")


def test_a_list_of_matrices_in_a_pt_file_is_named(tmp_path: Path):
    torch.save([torch.ones(8, 2), torch.ones(2, 8)], tmp_path / "lora_weight.pt")
    with pytest.raises(ModelError, match="cloneofsimo"):
        open_network(tmp_path / "lora_weight.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match="is a pickle"):
        open_network(tmp_path / "other.pt")


def test_layers_of_two_namings_in_one_file_are_read_each_by_its_own(tmp_path: Path):
    pairs = pairs_of("sd1")
    half = len(pairs) // 2
    state = SD1_SCHEMES["sd-scripts"][0](dict(list(pairs.items())[:half])) | PLAIN_PEFT(dict(list(pairs.items())[half:]))
    save_file(state, str(tmp_path / "in.safetensors"))
    file = open_network(tmp_path / "in.safetensors")
    assert file.naming == "mixed" and read_modules(file).keys() == pairs.keys()


def save(state: Mapping[str, Tensor], path: Path) -> None:
    save_file({key: tensor.clone() for key, tensor in state.items()}, str(path))


def test_one_layer_under_two_names_and_two_adapters_in_one_file_are_refused(tmp_path: Path):
    pairs = pairs_of("sd1")
    for other, said in ((PLAIN_PEFT, "is in it twice"), (SD1_SCHEMES["PEFT in diffusers, an adapter's name"][0], "is in it twice")):
        save(SD1_SCHEMES["sd-scripts"][0](pairs) | other(pairs), tmp_path / "in.safetensors")
        with pytest.raises(ModelError, match=said):
            open_network(tmp_path / "in.safetensors")
    two = {
        key.replace("default_0", name): tensor
        for name in ("cat", "dog")
        for key, tensor in SD1_SCHEMES["PEFT in diffusers, an adapter's name"][0](pairs).items()
    }
    save(two, tmp_path / "in.safetensors")
    with pytest.raises(ModelError, match="several adapters: cat, dog"):
        open_network(tmp_path / "in.safetensors")


def test_loha_and_dora_of_peft_are_read_with_an_adapters_name(tmp_path: Path):
    path = f"base_model.model.{ATTENTION[0]}"
    loha = {f"{path}.hada_w{n}_{w}.default": torch.ones((640, 2) if w == "a" else (2, 640)) for n in (1, 2) for w in "ab"}
    save_file(loha, str(tmp_path / "loha.safetensors"))
    assert [module.kind for module in open_network(tmp_path / "loha.safetensors").modules.values()] == ["loha"]
    dora = {f"{path}.lora_A.default.weight": torch.ones(2, 640), f"{path}.lora_B.default.weight": torch.ones(640, 2)}
    for word in (
        "lora_magnitude_vector",
        "lora_magnitude_vector.default",
        "lora_magnitude_vector.default.weight",
        "lora_magnitude_vector.weight",
    ):
        save_file({**dora, f"{path}.{word}": torch.ones(640)}, str(tmp_path / "dora.safetensors"))
        (module,) = open_network(tmp_path / "dora.safetensors").modules.values()
        assert "dora_scale" in module.keys


def test_a_models_own_weights_are_no_network(tmp_path: Path):
    for key in ("unet.conv_in.weight", "diffusion_model.input_blocks.0.0.weight", "down_blocks.0.resnets.0.conv1.weight"):
        save_file({key: torch.ones(4, 4)}, str(tmp_path / "in.safetensors"))
        with pytest.raises(ModelError, match="no program is known to use"):
            open_network(tmp_path / "in.safetensors")
