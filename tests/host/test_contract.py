"""The host's contract, kept by the fake WebUI in every run and by a real one (A1111, Forge) where LORA_TRAINER_WEBUI_DIR names it."""

import pytest

from tests.host import contract, contract_families, contract_networks, contract_runs  # noqa: F401 - their checks join REAL_ONLY
from tests.host.data_folder import make_data
from tests.host.fake_webui import FakeWebUI

CHECKS = contract_runs.CHECKS  # those of contract.py too


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("webui"))


@pytest.fixture(scope="module")
def fake(data):
    return FakeWebUI(data)


@pytest.mark.parametrize("name", CHECKS)
def test_fake_webui(name, fake, data, monkeypatch):
    fake.install(monkeypatch)
    CHECKS[name](contract.World(data / "models" / "Lora", "zz-other.safetensors", "plain.safetensors"))


@pytest.mark.needs_webui
@pytest.mark.parametrize("name", [*CHECKS, *contract_runs.REAL_ONLY])
def test_real_webui(name, real_webui):
    answer = real_webui.post(f"/lora-trainer-probe/check/{name}", timeout=600)
    assert answer["ok"], answer["error"]
    if answer.get("elsewhere"):
        pytest.skip("A1111's own ways: this host has others")
