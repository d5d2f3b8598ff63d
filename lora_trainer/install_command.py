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

PILLOW_HEIF = (((11, 1), "1.1.1"), ((10, 1), "0.22.0"), ((0, 0), "0.16.0"))
"""From which Pillow on a version is the newest that accepts it."""


def install_command(package: str) -> str:
    """What to enter in a terminal. `--no-deps`: what a package asks for is there already, and pip would change its versions."""
    by_host = {"bitsandbytes": _bitsandbytes_version, "pillow-heif": _pillow_heif_version}
    wanted = by_host[package]() if package in by_host else VERSIONS.get(package, "")
    return f'{_python()} -m pip install --no-deps "{package}{f"=={wanted}" if wanted else ""}"'


def _python() -> str:
    """Quoted only where it has to be: PowerShell does not run a quoted name."""
    return sys.executable if re.fullmatch(r"[\w:\\/.+-]+", sys.executable) else f'"{sys.executable}"'


def _bitsandbytes_version() -> str:
    """Forge installs one version at every start, and would undo any other."""
    of_forge = getattr(sys.modules.get("modules_forge.bnb_installer"), "target_bitsandbytes_version", None)
    return of_forge or _newest_for("torch", BITSANDBYTES)


def _pillow_heif_version() -> str:
    return _newest_for("Pillow", PILLOW_HEIF)


def _newest_for(package: str, table: tuple[tuple[tuple[int, int], str], ...]) -> str:
    """The version of a table for what is installed, (2, 1) of "2.1.2+cu121"; the newest where that is unknown."""
    try:
        major, minor = version(package).split(".")[:2]
        installed = int(major), int(minor)
    except (PackageNotFoundError, ValueError):
        return table[0][1]
    return next(known for least, known in table if installed >= least)
