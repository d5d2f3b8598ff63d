"""Models of a Hub, fetched from a stand-in on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer.errors import ModelError
from lora_trainer.models.files import hub as hubs
from lora_trainer.models.files.hub import Hub, HubName, downloaded_path, select_files
from lora_trainer.models.files.vae_file import find_vae_file
from tests.models.stand_in_hub import COMMIT, StandIn, serving

NAME = HubName("someone/some-model")
LARGE = bytes(range(256)) * 400
FOLDER = {
    "model_index.json": b"{}",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": LARGE,
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": b"vae",
    "text_encoder/config.json": b"{}",
    "text_encoder/model.safetensors": b"text",
    "scheduler/scheduler_config.json": b"{}",
    "safety_checker/model.safetensors": b"not needed",
    "v1-5-pruned.safetensors": b"the same again",
}
NEEDED = [path for path in FOLDER if not path.startswith(("safety", "v1-5")) and not path.endswith((".fp16.safetensors", ".bin"))]


@pytest.fixture
def stand_in():
    with serving(StandIn(dict(FOLDER))) as hub:
        yield hub


def fetch(stand_in: StandIn, cache: Path, name: HubName = NAME, token: str = "") -> Path:
    told = list(Hub(stand_in.url, token).download(name, cache))
    assert told[-1].done == told[-1].total
    assert [one.done for one in told] == sorted(one.done for one in told)
    found = downloaded_path(name, cache, stand_in.url)
    assert found is not None
    return found


def asked(stand_in: StandIn) -> list[str]:
    return [path.partition(f"/resolve/{COMMIT}/")[2] for path, _, _ in stand_in.seen if "/resolve/" in path]


def test_the_parts_of_a_folder_are_fetched_and_nothing_else(stand_in, tmp_path: Path):
    found = fetch(stand_in, tmp_path)
    assert found.name == COMMIT
    assert {
        str(path.relative_to(found)).replace("\\", "/"): path.read_bytes()
        for path in found.rglob("*")
        if path.suffix in (".json", ".safetensors")
    } == {path: FOLDER[path] for path in NEEDED}
    assert sorted(asked(stand_in)) == sorted(NEEDED)


def test_what_is_there_is_not_fetched_again_and_found_without_a_request(stand_in, tmp_path: Path):
    first = fetch(stand_in, tmp_path)
    stand_in.seen.clear()
    assert downloaded_path(NAME, tmp_path, stand_in.url) == first
    assert stand_in.seen == []
    fetch(stand_in, tmp_path)
    assert asked(stand_in) == []


def test_a_download_that_broke_off_goes_on_where_it_ended(stand_in, tmp_path: Path):
    stand_in.break_after, stand_in.breaks = 30_000, 3
    found = fetch(stand_in, tmp_path)
    assert (found / "unet/diffusion_pytorch_model.safetensors").read_bytes() == LARGE
    ranges = [asked_range for path, asked_range, _ in stand_in.seen if "diffusion_pytorch_model" in path and "unet" in path]
    assert ranges == ["", "bytes=30000-", "bytes=60000-", "bytes=90000-"]


def test_a_download_of_an_earlier_process_goes_on(stand_in, tmp_path: Path):
    work = Hub(stand_in.url).download(NAME, tmp_path)
    stand_in.break_after, stand_in.breaks = 30_000, 1
    for progress in work:
        if progress.file.startswith("unet/diffusion") and progress.done >= 30_000:
            break
    work.close()  # the process ends here
    assert downloaded_path(NAME, tmp_path, stand_in.url) is None
    stand_in.seen.clear()
    assert (fetch(stand_in, tmp_path) / "unet/diffusion_pytorch_model.safetensors").read_bytes() == LARGE
    assert next(asked_range for path, asked_range, _ in stand_in.seen if "unet/diffusion" in path) == "bytes=30000-"
    assert "model_index.json" not in asked(stand_in)


def test_a_hub_that_sends_all_of_a_file_again_is_understood(stand_in, tmp_path: Path):
    stand_in.break_after, stand_in.breaks, stand_in.ranges = 30_000, 2, False
    assert (fetch(stand_in, tmp_path) / "unet/diffusion_pytorch_model.safetensors").read_bytes() == LARGE


def test_a_hub_out_of_breath_is_asked_again_and_in_the_end_given_up(stand_in, tmp_path: Path):
    stand_in.errors = 2
    fetch(stand_in, tmp_path)
    stand_in.errors = 1000
    with pytest.raises(ModelError, match=r"not downloaded completely \(HTTP 503\)"):
        list(Hub(stand_in.url).download(NAME, tmp_path / "other"))
    assert len(asked(stand_in)) < len(NEEDED) + 2 + hubs.TRIES + 1


def test_a_file_with_a_wrong_hash_is_refused_and_deleted(stand_in, tmp_path: Path):
    stand_in.spoilt = frozenset({"vae/diffusion_pytorch_model.safetensors"})
    with pytest.raises(ModelError, match="its hash differs"):
        list(Hub(stand_in.url).download(NAME, tmp_path))
    assert downloaded_path(NAME, tmp_path, stand_in.url) is None
    assert [path for path in tmp_path.rglob("vae/diffusion*") if path.suffix != ".lock"] == []
    stand_in.spoilt = frozenset()
    fetch(stand_in, tmp_path)


def test_the_token_goes_to_the_hub_and_never_on_to_where_it_points(stand_in, tmp_path: Path):
    stand_in.token = "hf_secret"
    with serving(StandIn(dict(FOLDER))) as elsewhere:
        stand_in.elsewhere = elsewhere.url
        fetch(stand_in, tmp_path, token="hf_secret")
    assert {authorization for _, _, authorization in stand_in.seen} == {"Bearer hf_secret"}
    assert {authorization for _, _, authorization in elsewhere.seen} == {""}
    assert not any(b"hf_secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "hf_secret" not in repr(Hub(stand_in.url, "hf_secret"))


def test_the_token_goes_along_while_the_address_stays_the_same(stand_in, tmp_path: Path):
    """The Hub sends small files by way of another path of its own."""
    stand_in.token = "hf_secret"
    stand_in.files["a"] = b"x"
    hub = Hub(stand_in.url, "hf_secret")
    original = stand_in.elsewhere
    stand_in.elsewhere = stand_in.url
    with pytest.raises((ModelError, OSError)):  # it points to itself for ever
        list(hub.download(NAME, tmp_path))
    assert {authorization for _, _, authorization in stand_in.seen} == {"Bearer hf_secret"}
    stand_in.elsewhere = original


@pytest.mark.parametrize(
    ("name", "token", "words"),
    [
        (NAME, "", "does not give access to someone/some-model without permission"),
        (NAME, "wrong", "does not give access to"),
        (HubName("someone/other"), "right", "has no model someone/other at main"),
        (HubName("someone/some-model", revision="v9"), "right", "at v9"),
        (HubName("someone/some-model", "x.safetensors"), "right", "holds no file x.safetensors"),
    ],
)
def test_what_the_hub_refuses_is_said_with_the_remedy(stand_in, tmp_path: Path, name, token, words):
    stand_in.token = "right"
    with pytest.raises(ModelError, match=words) as caught:
        list(Hub(stand_in.url, token).download(name, tmp_path))
    assert caught.value.problems[0].fix.text()


def test_a_hub_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        list(Hub("http://127.0.0.1:9").download(NAME, tmp_path))


def test_revisions_and_files_are_kept_apart(stand_in, tmp_path: Path):
    whole = fetch(stand_in, tmp_path)
    one = fetch(stand_in, tmp_path, HubName("someone/some-model", "v1-5-pruned.safetensors"))
    assert (one.is_file(), one.read_bytes()) == (True, b"the same again")
    assert downloaded_path(NAME, tmp_path, stand_in.url) == whole
    assert downloaded_path(HubName("someone/some-model", revision="v1"), tmp_path, stand_in.url) is None
    assert fetch(stand_in, tmp_path, HubName("someone/some-model", revision="v1")) == whole


def test_the_environment_names_address_and_token():
    hub = Hub.of_environment(environment={"HF_ENDPOINT": "https://mirror.example/", "HF_TOKEN": "hf_a"})
    assert (hub.endpoint, hub.token) == ("https://mirror.example", "hf_a")
    assert Hub.of_environment("hf_b", {"HF_TOKEN": "hf_a"}).token == "hf_b"
    assert Hub.of_environment(environment={}).endpoint == "https://huggingface.co"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stabilityai/stable-diffusion-2-1", HubName("stabilityai/stable-diffusion-2-1")),
        ("a/b@v1", HubName("a/b", revision="v1")),
        ("a/b/sub/c.safetensors", HubName("a/b", "sub/c.safetensors")),
        ("https://huggingface.co/a/b", HubName("a/b")),
        ("https://huggingface.co/a/b/tree/fp16", HubName("a/b", revision="fp16")),
        ("https://huggingface.co/a/b/blob/main/c.safetensors", HubName("a/b", "c.safetensors")),
        ("https://huggingface.co/a/b/resolve/main/c.ckpt?download=true", HubName("a/b", "c.ckpt")),
        ("model.safetensors", None),
        ("folder/model.safetensors", None),
        ("C:\\models\\x.safetensors", None),
        ("/models/x", None),
        ("../models", None),
        ("a/../b", None),
        ("a title with words", None),
        ("", None),
    ],
)
def test_names_of_models_are_told_from_paths_and_titles(text, expected):
    assert HubName.parse(text) == expected


def test_files_that_would_leave_the_folder_are_never_taken(stand_in, tmp_path: Path):
    stand_in.files = {"../../evil.safetensors": b"x", "C:\\evil.safetensors": b"x", "good.safetensors": b"y"}
    assert fetch(stand_in, tmp_path / "cache").read_bytes() == b"y"
    assert not list(tmp_path.rglob("evil*"))


def test_pieces_of_a_large_part_come_with_their_index():
    held = [*(path for path in NEEDED if "unet/diff" not in path), "unet/diffusion_pytorch_model.safetensors.index.json"]
    pieces = [f"unet/diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert set(pieces) < set(select_files(NAME, [*held, *pieces]))


def test_the_yaml_beside_a_checkpoint_comes_along(stand_in, tmp_path: Path):
    stand_in.files = {"x.safetensors": b"weights", "x.yaml": b"parameterization: v", "readme.md": b""}
    found = fetch(stand_in, tmp_path)
    assert (found.read_bytes(), found.with_suffix(".yaml").read_bytes()) == (b"weights", b"parameterization: v")


VAE = {
    "config.json": b"{}",
    "diffusion_pytorch_model.safetensors": b"vae",
    "diffusion_pytorch_model.bin": b"the same",
    "sdxl.vae.safetensors": b"x",
}


def test_a_vae_by_itself_comes_as_a_folder_whatever_lies_beside_it(stand_in, tmp_path: Path):
    stand_in.files = dict(VAE)
    found = fetch(stand_in, tmp_path)
    assert find_vae_file(found).read_bytes() == b"vae"
    assert sorted(asked(stand_in)) == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_a_token_with_a_line_end_is_cleaned_and_one_that_cannot_be_sent_is_refused_without_being_shown(stand_in, tmp_path: Path):
    stand_in.token = "hf_secret"
    fetch(stand_in, tmp_path, token=" hf_secret\n")
    with pytest.raises(ModelError, match="characters that no token has") as caught:
        fetch(stand_in, tmp_path / "other", token="hf_secret\nX-Other: 1")
    assert "hf_secret" not in caught.value.text()


def test_several_checkpoints_have_to_be_chosen_from():
    with pytest.raises(ModelError, match="holds 2 checkpoints") as caught:
        select_files(NAME, ["a.safetensors", "b.safetensors", "readme.md"])
    assert "someone/some-model/a.safetensors" in caught.value.problems[0].fix.text()
