"""Uses wheels without installing them: unpacked into a folder that comes first on sys.path. Needs the standard library only."""

from __future__ import annotations

import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path


def use_wheels(folder: Path, target: Path) -> Iterator[str]:
    """Unpacks every wheel below `folder` that fits this Python and machine, and puts them first on sys.path; yields what is left out.

    A subfolder called sd-scripts, a checkout of it, is put last on sys.path.
    """
    wheels = sorted(folder.rglob("*.whl"))
    if not wheels:
        yield f"{folder} holds no wheels."
    for wheel in wheels:
        if not fits(wheel.name):
            yield f"{wheel.name} is for another Python or machine."
            continue
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    sys.path.insert(0, str(target))
    for purelib in sorted(target.glob("*.data/purelib")) + sorted(target.glob("*.data/platlib")):
        sys.path.insert(1, str(purelib))
    if (folder / "sd-scripts").is_dir():
        sys.path.append(str(folder / "sd-scripts"))


def fits(name: str) -> bool:
    """Whether a wheel of this file name runs here, by its tags: NAME-VERSION(-BUILD)-PYTHON-ABI-PLATFORM.whl."""
    pythons, abis, platforms = (part.split(".") for part in name.removesuffix(".whl").split("-")[-3:])
    minor, own = sys.version_info[1], f"cp{sys.version_info[0]}{sys.version_info[1]}"
    machine = sysconfig.get_platform().replace("-", "_").replace(".", "_")  # linux_x86_64, win_amd64
    system, _, architecture = machine.partition("_")
    on_platform = any(each == "any" or (each.endswith(architecture) and (system in each)) for each in platforms)
    if "abi3" in abis:
        return on_platform and any(each.startswith("cp3") and int(each[3:]) <= minor for each in pythons)
    return on_platform and (own in abis or ("none" in abis and any(each in ("py3", own) for each in pythons)))
