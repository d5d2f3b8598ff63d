"""Test extension: runs the contract's checks inside of a real WebUI, one a request."""

import asyncio
import hashlib
import os
import sys
import threading
import time
import traceback

from modules import script_callbacks, sd_models, shared


def load():
    """The checks, from the checkout; the trainer itself is loaded from the extension."""
    path = list(sys.path)
    sys.path.append(os.environ["LORA_TRAINER_CHECKOUT"])
    try:
        from tests.host import contract, contract_families, contract_networks, contract_runs  # noqa: F401 - their checks join the lists
        from tests.host.contract_forge import FORGE_ONLY
        from tests.host.contract_forge_families import families_of_this_host
        from tests.host.forge_world import ForgeWorld, ReForgeWorld

        if "modules_forge" not in sys.modules:
            from tests.host.contract_pieces import CHECKS
    finally:
        sys.path[:] = path
    common = contract_runs.CHECKS | contract_runs.REAL_ONLY
    relative = {name: function for name, function in common.items() if name not in contract.A1111_ONLY}
    if "modules_forge.main_entry" in sys.modules:
        return ForgeWorld, relative | FORGE_ONLY | families_of_this_host()
    if "modules_forge" in sys.modules:
        return ReForgeWorld, relative | families_of_this_host()
    return contract.World, common | CHECKS


def world():
    end = time.monotonic() + 120
    while "modules_forge" not in sys.modules and sd_models.model_data.sd_model is None and time.monotonic() < end:
        time.sleep(0.1)  # A1111 loads its model in the background of its start
    return load()[0](shared.cmd_opts.lora_dir, "zz-other.safetensors", "plain.safetensors")


def run(name):
    begin = time.perf_counter()
    if name not in load()[1]:
        return {"ok": True, "elsewhere": True}
    try:
        found = load()[1][name](world())
    except Exception:
        return {"ok": False, "seconds": time.perf_counter() - begin, "error": traceback.format_exc()}
    return {"ok": True, "seconds": time.perf_counter() - begin, "found": found}


def app_started(_demo, app):
    async def check(name: str):
        answer = {}
        thread = threading.Thread(target=lambda: answer.update(run(name)))
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0.02)
        return answer

    async def weights():
        return {
            "chosen": shared.opts.sd_model_checkpoint,
            "hash": hashlib.sha256(repr(sorted(world().hashes().items())).encode()).hexdigest(),
        }

    async def reload_ui():
        shared.state.request_restart()  # what the link at the bottom of the page does

    app.add_api_route("/lora-trainer-probe/check/{name}", check, methods=["POST"])
    app.add_api_route("/lora-trainer-probe/weights", weights, methods=["GET"])
    app.add_api_route("/lora-trainer-probe/reload-ui", reload_ui, methods=["POST"])


script_callbacks.on_app_started(app_started)
