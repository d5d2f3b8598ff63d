"""The tools for trained files over the routes: looked at, made anew, followed, refused."""

import time
from pathlib import Path

import pytest

from lora_trainer import assets
from tests.network_tools.made import WORDS, chosen, deltas, state_of, write


@pytest.fixture(scope="module")
def lora(tmp_path_factory) -> Path:
    layers = {name: layer for name, layer in chosen(assets.toy_checkpoint()).items() if "mid_block" in name}
    return write(tmp_path_factory.mktemp("lora") / "mid.safetensors", state_of(layers), WORDS | {"ss_network_alpha": "2"})


def followed(server, answer) -> dict:
    assert answer.status_code == 202, answer.text
    while (now := server.get(f"network/works/{answer.json()['work']}").json())["state"] == "working":
        time.sleep(0.05)
    return now


def test_a_file_is_told_and_checked(server, lora):
    found = server.post("network/info", {"file": str(lora), "model": str(assets.toy_checkpoint())}).json()
    assert found["info"]["kind"] == "lora" and found["info"]["family"] == "sd1"
    assert found["verify"]["unmatched"] == 0 and found["verify"]["matched"] == len(deltas(lora))


def test_the_hosts_files_are_listed_newest_first(server, lora):
    folder = server.host.paths().lora_dir
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("old", "new")):
        (folder / f"{name}.safetensors").write_bytes(lora.read_bytes())
        import os

        os.utime(folder / f"{name}.safetensors", (number + 1, number + 1))
    assert [file["name"] for file in server.get("network/files").json()["files"]] == ["new.safetensors", "old.safetensors"]


def test_a_tool_writes_beside_its_input_is_followed_and_the_hosts_list_is_read_again(server, lora):
    now = followed(server, server.post("network/resize", {"file": str(lora), "out": "less", "rank": 2}))
    assert now["state"] == "done" and 0 < now["result"]["energy"] < 1 and now["result"]["rank"] == 2
    assert Path(now["result"]["out"]) == lora.with_name("less.safetensors")
    assert server.host.refreshed == 1
    merged = {"files": [str(lora), str(lora)], "weights": [0.5, 0.25], "out": str(lora.with_name("sum.safetensors"))}
    assert followed(server, server.post("network/merge", merged))["state"] == "done"
    one, both = deltas(lora), deltas(lora.with_name("sum.safetensors"))
    assert all(float((both[name] - one[name] * 0.75).abs().max()) < 1e-6 for name in one)


def test_what_goes_wrong_is_told_with_its_remedy(server, lora, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"")
    now = followed(server, server.post("network/resize", {"file": str(tmp_path / "bad.safetensors"), "out": "x", "rank": 2}))
    assert now["state"] == "failed" and now["problems"][0]["fix"]
    assert server.post("network/info", {"file": str(tmp_path / "bad.safetensors")}).status_code == 400


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("network/frobnicate", {"out": "x"}, 404),
        ("network/resize", {"out": "x"}, 400),
        ("network/resize", {"file": "LORA", "out": "mid"}, 400),
        ("network/resize", {"file": "LORA", "out": "x", "rank": -1}, 400),
        ("network/merge", {"files": ["LORA"], "weights": ["much"], "out": "x"}, 400),
        ("network/convert", {"file": "LORA", "to": "mine", "out": "x"}, 400),
        ("network/extract", {"file": "LORA", "out": "x"}, 400),
    ],
)
def test_wrong_requests_are_refused_before_any_work(server, lora, path, body, status):
    said = {key: str(lora) if value == "LORA" else [str(lora)] if value == ["LORA"] else value for key, value in body.items()}
    assert server.post(path, said).status_code == status
    assert server.get("network/works/made-up").status_code == 404


def test_a_files_header_becomes_settings(server, lora):
    found = server.post("network/settings", {"file": str(lora)}).json()
    assert found["config"]["network"] == {"dim": 4, "alpha": 2.0}
    assert found["imported"]["left"][0]["why"]
    same = server.post("network/settings", {"metadata": {"ss_network_dim": "4", "ss_network_alpha": "2"}}).json()
    assert same["config"]["network"] == {"dim": 4, "alpha": 2.0}
