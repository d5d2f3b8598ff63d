"""Test extension: runs the contract's checks inside of a real WebUI, one a request."""

import asyncio
import os
import sys
import threading
import time
import traceback

from modules import script_callbacks, shared


def run(name):
    sys.path.append(os.environ["LORA_TRAINER_CHECKOUT"])  # the tests; the trainer itself is loaded from the extension
    try:
        from tests.host import contract, contract_runs
    finally:
        sys.path.pop()
    begin = time.perf_counter()
    try:
        contract_runs.CHECKS[name](contract.World(shared.cmd_opts.lora_dir, "zz-other.safetensors", "plain.safetensors"))
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
