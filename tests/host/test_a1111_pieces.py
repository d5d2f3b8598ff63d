"""A real A1111 that moves its model in pieces; only where LORA_TRAINER_WEBUI_DIR names one."""

import pytest

from tests.host import real_webui as real

pytestmark = [pytest.mark.needs_webui, pytest.mark.slow]


@pytest.mark.parametrize("flag", ["--medvram", "--lowvram"])
def test_training_beside_a_model_in_pieces(flag, webui_tree, webui_data, webui_python):
    if (webui_tree / "modules_forge").is_dir():
        pytest.skip("A1111's own ways: this host has others")
    host = real.start(webui_tree, webui_data, webui_python, flag)
    try:
        answer = host.post("/lora-trainer-probe/check/run_goes_on_from_the_file_and_hooks_and_pieces_stay", timeout=900)
        assert answer["ok"], answer["error"]
        assert not answer.get("elsewhere")
        assert min(answer["found"].values()) >= 3
    finally:
        host.stop()
