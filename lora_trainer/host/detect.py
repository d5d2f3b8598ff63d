"""Detects the host that this process runs in."""

from __future__ import annotations

import sys

from lora_trainer.host.base import Host


def detect() -> Host:
    """The host for Forge, reForge or A1111 when its modules are loaded, else the stand-alone host."""
    if "modules.script_callbacks" in sys.modules and "modules.shared" in sys.modules:
        if "modules_forge" in sys.modules:
            from lora_trainer.host.forge import ForgeHost, ReForgeHost

            return ForgeHost() if "modules_forge.main_entry" in sys.modules else ReForgeHost()
        from lora_trainer.host.a1111 import A1111Host

        return A1111Host()
    from lora_trainer.host.standalone import StandaloneHost

    return StandaloneHost()
