"""The command that installs an optional package into the Python that runs this, and changes nothing else there (no torch)."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version

VERSIONS = {
    "came-pytorch": "0.1.3",
    "dadaptation": "3.2",
    "lion-pytorch": "0.2.5",
    "prodigy-plus-schedule-free": "2.0.1",
    "prodigyopt": "1.1.2",
    "pytorch-optimizer": "4.1.0",
    "PyYAML": "6.0.3",
    "schedulefree": "1.4.1",
}
"""The versions that are tested, those of constraints/; of any other package the newest."""
BITSANDBYTES = (((2, 4), "0.50.2"), ((2, 3), "0.49.2"), ((2, 2), "0.47.0"), ((0, 0), "0.45.5"))
"""From which torch on a version is the newest that accepts it. With a newer one, pip would replace the host's torch."""


def install_command(package: str) -> str:
    """What to enter in a terminal. `--no-deps`: what a package asks for is there already, and pip would change its versions."""
    wanted = _bitsandbytes_version() if package == "bitsandbytes" else VERSIONS.get(package, "")
    return f'{_python()} -m pip install --no-deps "{package}{f"=={wanted}" if wanted else ""}"'


def _python() -> str:
    """Quoted only where it has to be: PowerShell does not run a quoted name."""
    return sys.executable if re.fullmatch(r"[\w:\\/.+-]+", sys.executable) else f'"{sys.executable}"'


def _bitsandbytes_version() -> str:
    """Forge installs one version at every start, and would undo any other."""
    of_forge = getattr(sys.modules.get("modules_forge.bnb_installer"), "target_bitsandbytes_version", None)
    installed = _torch_version()
    return of_forge or next(known for torch, known in BITSANDBYTES if installed >= torch)


def _torch_version() -> tuple[int, int]:
    """(2, 1) of "2.1.2+cu121"; that of the newest where it is unknown."""
    try:
        major, minor = version("torch").split(".")[:2]
        return int(major), int(minor)
    except (PackageNotFoundError, ValueError):
        return BITSANDBYTES[0][0]
