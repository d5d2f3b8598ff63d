"""Files that are no network, or a broken one: each is named for what it is, refused, and nothing is written."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_trainer.errors import ConfigError, ModelError
from lora_trainer.network_tools.info import info
from lora_trainer.network_tools.merge import WeightedNetwork, merge_networks
from lora_trainer.network_tools.resize import ResizeOptions, resize
from lora_trainer.network_tools.saving import check_target
from lora_trainer.network_tools.verify import verify
from tests.network_tools.made import WORDS, chosen, state_of, write

Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
K = Q.replace("to_q", "to_k")


def lora_tensors(name: str = Q, rank: int = 2, width: int = 8) -> dict[str, torch.Tensor]:
    return {
        f"{name}.lora_down.weight": torch.ones(rank, width),
        f"{name}.lora_up.weight": torch.ones(width, rank),
        f"{name}.alpha": torch.tensor(1.0),
    }


def tensors(path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, str(path), WORDS)


def without(suffix: str, state: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in (state or lora_tensors()).items() if not key.endswith(suffix)}


def changed(suffix: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**lora_tensors(), f"{Q}.{suffix}": tensor}


def cut_short(path: Path) -> None:
    tensors(path, lora_tensors())
    path.write_bytes(path.read_bytes()[:-5])


def header_cut_short(path: Path) -> None:
    tensors(path, lora_tensors())
    path.write_bytes(path.read_bytes()[:40])


def with_header(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(struct.pack("<Q", len(text)) + text.encode()) and None


def loha(*left_out: str) -> dict[str, torch.Tensor]:
    one = {f"{Q}.hada_w{n}_{w}": torch.ones((8, 2) if w == "a" else (2, 8)) for n in (1, 2) for w in "ab"}
    return {key: tensor for key, tensor in one.items() if not key.endswith(left_out)} if left_out else one


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "does not exist"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "no bytes": (lambda path: path.write_bytes(b""), "not a safetensors file"),
    "a web page": (lambda path: path.write_text("<!doctype html><html>not found</html>" * 9, encoding="utf-8"), "not a safetensors file"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 64), "not a safetensors file"),
    "cut short": (cut_short, "ends early"),
    "cut in its header": (header_cut_short, "not a safetensors file"),
    "a header that is no JSON": (with_header("{" * 64), "not a safetensors file"),
    "a header that is a list": (with_header(json.dumps([1, 2, 3])), "not a safetensors file"),
    "no tensors": (with_header('{"__metadata__":{"a":"b"}}'), "holds no tensors"),
    "an embedding": (lambda path: tensors(path, {"emb_params": torch.ones(2, 768)}), "an embedding, not a network"),
    "a VAE": (lambda path: tensors(path, {"first_stage_model.encoder.conv_in.weight": torch.ones(2, 2)}), "a VAE, not a checkpoint"),
    "a ControlNet": (lambda path: tensors(path, {"control_model.input_blocks.0.0.weight": torch.ones(2, 2)}), "a ControlNet"),
    "an IP-Adapter": (lambda path: tensors(path, {"ip_adapter.1.to_k_ip.weight": torch.ones(2, 2)}), "an IP-Adapter"),
    "a motion module": (lambda path: tensors(path, {"motion_modules.0.weight": torch.ones(2, 2)}), "an AnimateDiff motion module"),
    "Flux": (lambda path: tensors(path, lora_tensors("lora_unet_double_blocks_0_img_attn_qkv")), "a network of a Flux model"),
    "Stable Diffusion 3": (lambda path: tensors(path, lora_tensors("lora_unet_joint_blocks_0_x_block_attn_qkv")), "Stable Diffusion 3"),
    "another family's diffusers names": (
        lambda path: tensors(path, {"transformer.blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 8)}),
        "a model of another family",
    ),
    "sd-scripts' own OFT": (lambda path: tensors(path, {"oft_unet_x.oft_blocks": torch.ones(2, 4, 4)}), "no WebUI reads"),
    "names of nobody": (lambda path: tensors(path, {"model.layers.0.weight": torch.ones(2, 2)}), "names that no program is known to use"),
    "renamed layers": (lambda path: tensors(path, lora_tensors("lora_unet_my_own_block_0_to_q")), "none of its layers is known"),
    "half a layer in another naming": (
        lambda path: tensors(path, {**lora_tensors(), "unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.ones(2, 8)}),
        "lora_unet_mid_block_attentions_0_proj_in is incomplete: it lacks lora_up.weight",
    ),
    "a weight of a model beside a layer": (
        lambda path: tensors(path, {**lora_tensors(), "unet.conv_in.weight": torch.ones(2, 8)}),
        r"unet\.conv_in\.weight is no part of a network",
    ),
    "one layer twice": (
        lambda path: tensors(path, {**lora_tensors(), **lora_tensors("lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q")}),
        "is in it twice",
    ),
    "no upper half": (lambda path: tensors(path, without("lora_up.weight")), "lacks lora_up.weight"),
    "no lower half": (lambda path: tensors(path, without("lora_down.weight")), "lacks lora_down.weight"),
    "a quarter of a LoHa": (lambda path: tensors(path, loha("hada_w2_b")), "lacks hada_w2_b"),
    "half a LoKr": (lambda path: tensors(path, {f"{Q}.lokr_w1": torch.ones(2, 2)}), "lacks lokr_w2_a"),
    "alpha alone": (lambda path: tensors(path, {f"{Q}.alpha": torch.tensor(1.0)}), "which is unknown"),
    "two kinds in one layer": (lambda path: tensors(path, {**lora_tensors(), **loha()}), "of two kinds at once: lora, loha"),
    "an unknown suffix": (
        lambda path: tensors(path, changed("lora_left.weight", torch.ones(2))),
        "lora_left.weight, which is unknown",
    ),
    "whole numbers": (
        lambda path: tensors(path, changed("lora_up.weight", torch.ones(8, 2, dtype=torch.int32))),
        "not floating-point values",
    ),
    "rank 0": (
        lambda path: tensors(path, {f"{Q}.lora_down.weight": torch.ones(0, 8), f"{Q}.lora_up.weight": torch.ones(8, 0)}),
        r"attn1_to_q\.lora_down\.weight holds no values \(its shape is 0x8\)",
    ),
    "a LoHa of rank 0": (
        lambda path: tensors(path, {**loha(), f"{Q}.hada_w2_b": torch.ones(0, 8)}),
        r"hada_w2_b holds no values",
    ),
    "an alpha without a value": (lambda path: tensors(path, changed("alpha", torch.ones(0))), "is not one number"),
    "two alphas in one": (lambda path: tensors(path, changed("alpha", torch.ones(2))), "is not one number"),
    "halves of two ranks": (lambda path: tensors(path, changed("lora_up.weight", torch.ones(8, 3))), "contradict each other"),
    "no number": (lambda path: tensors(path, changed("lora_up.weight", torch.full((8, 2), float("nan")))), "not finite"),
    "infinity in fp16": (lambda path: tensors(path, changed("lora_down.weight", torch.full((2, 8), 1e6).half())), "not finite"),
    "an alpha that is no number": (lambda path: tensors(path, changed("alpha", torch.tensor(float("nan")))), "not finite"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_whole_network_is_named_and_refused(kind: str, tmp_path: Path):
    make, said = WRONG[kind]
    path = tmp_path / "wrong.safetensors"
    make(path)
    for tool in (info, verify, lambda path: resize(path, tmp_path / "out.safetensors", ResizeOptions(rank=1))):
        with pytest.raises(ModelError, match=said) as refused:
            tool(path)
        assert refused.value.problems[0].fix.text().strip()
    assert not (tmp_path / "out.safetensors").exists()


def test_a_checkpoint_is_no_network(base: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="is a checkpoint, not a network"):
        info(base)


def test_a_pickle_is_not_opened(tmp_path: Path):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    (tmp_path / "wrong.pt").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ModelError, match="is a pickle"):
        info(tmp_path / "wrong.pt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool, torch.float16, torch.bfloat16, torch.float64]
)
def test_one_number_may_be_of_any_format(dtype: torch.dtype, tmp_path: Path):
    path, plain = tmp_path / "in.safetensors", tmp_path / "plain.safetensors"
    tensors(path, changed("alpha", torch.tensor(1, dtype=dtype)))
    tensors(plain, lora_tensors())
    assert info(path)["alphas"] == [{"value": 1.0, "modules": 1}] and info(path)["norm"] == info(plain)["norm"]
    tensors(path, {f"{Q}.weight": torch.ones(8), f"{Q}.on_input": torch.tensor(1, dtype=dtype)})
    assert info(path)["kind"] == "IA3"


def test_kinds_of_other_programs_are_told_but_not_calculated_with(base: Path, tmp_path: Path):
    path = tmp_path / "ia3.safetensors"
    tensors(path, {f"{Q}.weight": torch.ones(8), f"{Q}.on_input": torch.tensor(1.0)})
    assert info(path)["kind"] == "IA3"
    with pytest.raises(ModelError, match="of the kind IA3"):
        resize(path, tmp_path / "out.safetensors", ResizeOptions(rank=1))


def test_shapes_of_two_models_do_not_add_up(tmp_path: Path):
    tensors(tmp_path / "a.safetensors", lora_tensors(width=8))
    tensors(tmp_path / "b.safetensors", lora_tensors(width=16))
    with pytest.raises(ModelError, match=r"different shapes in a\.safetensors, b\.safetensors"):
        merge_networks(
            [WeightedNetwork(tmp_path / "a.safetensors"), WeightedNetwork(tmp_path / "b.safetensors")], tmp_path / "out.safetensors"
        )


def test_numbers_that_a_format_cannot_hold_are_not_written(base: Path, tmp_path: Path):
    state = state_of(chosen(base))
    state[f"{K}.lora_up.weight"] *= 1e14  # the halves share it
    path = write(tmp_path / "large.safetensors", state)
    with pytest.raises(ModelError, match="fp16 cannot hold"):
        resize(path, tmp_path / "out.safetensors", ResizeOptions(rank=2), precision="fp16")
    assert not (tmp_path / "out.safetensors").exists()


def test_the_target_is_never_what_is_read_nor_what_is_there(lora: Path, tmp_path: Path):
    (tmp_path / "link.safetensors").symlink_to(lora)
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    linked, there = tmp_path / "link.safetensors", tmp_path / "there.safetensors"
    for out, said in (
        (lora, "never written to"),
        (linked, "never written to"),
        (there, "exists already"),
        (tmp_path / "a.ckpt", "end with"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_target(out, [lora])
    check_target(tmp_path / "there.safetensors", [lora], overwrite=True)
    with pytest.raises(ConfigError, match="never written to"):
        check_target(lora, [lora], overwrite=True)


def test_a_work_that_fails_leaves_no_half_file(base: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from lora_trainer.network_tools import merge

    (tmp_path / "model.safetensors").write_bytes(b"mine")

    def full(*words: object) -> torch.Tensor:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merge, "_merged_tensor", full)
    from lora_trainer.errors import TrainerError

    with pytest.raises(TrainerError, match="No space left on device"):
        merge.merge_into_checkpoint(base, [WeightedNetwork(lora)], tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"
