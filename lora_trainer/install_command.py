"""The command that installs an optional package into the Python that runs this, and changes nothing else there (no torch)."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
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
BITSANDBYTES = (((2, 4), "==0.50.2"), ((2, 3), "==0.49.2"), ((2, 2), "==0.47.0"), ((0, 0), "==0.45.5"))
"""From which torch on a version is the newest that accepts it. With a newer one, pip would replace the host's torch."""
PILLOW_HEIF = (((11, 1), "==1.3.0"), ((10, 1), "==0.22.0"), ((0, 0), "==0.16.0"))
"""From which Pillow on a version accepts it: the newest before 11.1, from there on Forge Neo's, which puts its own back at every start."""


def install_command(package: str) -> str:
    """What to enter in a terminal. `--no-deps`: what a package asks for is there already, and pip would change its versions."""
    return f'{_python()} -m pip install --no-deps "{package}{_bound(package)}"'


def _bound(package: str) -> str:
    """The version to install, as pip writes it. Forge installs one bitsandbytes at every start, and would undo any other."""
    if package == "bitsandbytes":
        of_forge = getattr(sys.modules.get("modules_forge.bnb_installer"), "target_bitsandbytes_version", None)
        return f"=={of_forge}" if of_forge else _newest(BITSANDBYTES, "torch")
    if package == "pillow-heif":
        return _newest(PILLOW_HEIF, "Pillow")
    return f"=={VERSIONS[package]}" if package in VERSIONS else ""


def _python() -> str:
    """Quoted only where it has to be: PowerShell does not run a quoted name."""
    return sys.executable if re.fullmatch(r"[\w:\\/.+-]+", sys.executable) else f'"{sys.executable}"'


def _newest(bounds: Sequence[tuple[tuple[int, int], str]], needed: str) -> str:
    """The bound that goes with the installed version of a package; the newest where that is unknown."""
    try:
        numbers = re.findall(r"\d+", version(needed).partition("+")[0])
    except PackageNotFoundError:
        numbers = []
    installed = (int(numbers[0]), int(numbers[1]) if numbers[1:] else 0) if numbers else bounds[0][0]
    return next(bound for since, bound in bounds if installed >= since)
