"""Test extension: runs the contract's checks inside of a real WebUI, one a request."""

import asyncio
import importlib.util
import os
import sys
import threading
import time
import traceback

from modules import script_callbacks, shared


def run(name):
    spec = importlib.util.spec_from_file_location("lora_trainer_contract", os.environ["LORA_TRAINER_CONTRACT"])
    contract = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(contract)
    begin = time.perf_counter()
    try:
        contract.CHECKS[name](contract.World(shared.cmd_opts.lora_dir, "zz-other.safetensors", "plain.safetensors"))
    except Exception:
        return {"ok": False, "seconds": time.perf_counter() - begin, "error": traceback.format_exc()}
    return {"ok": True, "seconds": time.perf_counter() - begin}


def app_started(_demo, app):
    async def check(name: str):
        answer = {}
        thread = threading.Thread(target=lambda: answer.update(run(name)))
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0.02)
        return answer

    app.add_api_route("/lora-trainer-probe/check/{name}", check, methods=["POST"])


script_callbacks.on_app_started(app_started)
