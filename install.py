"""Run by the host at every start: adds the packages that are missing and changes none that are there.

Satisfied, it only reads metadata (no pip, no import of the host). It never ends with an error: what could not be
installed is said with one remedy, and the tab says it again.
"""

from __future__ import annotations

import configparser
import hashlib
import importlib
import importlib.metadata as metadata
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent
REFUSED = ROOT / "install_refused.json"  # what pip could not resolve: not tried again until a package changes
PROBE_SECONDS = 0.6
# requirements.txt says which version is added; one that is there already is left, and serves within these bounds.
ACCEPTED = {"diffusers": ">=0.29,<0.36", "tomlkit": ">=0.12"}


def wanted() -> dict[str, str]:
    """Package -> version bounds, from requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = (re.match(r"([A-Za-z][\w.-]*)(.*)", line) for line in lines)
    return {match.group(1): match.group(2).strip() for match in found if match}


def fits(version: str, bounds: str) -> bool:
    """Whether "0.31.0" lies in ">=0.29,<0.36"; of a version only its leading numbers count."""

    def numbers(text: str) -> tuple[int, ...]:
        parts = [int(part) for part in re.findall(r"\d+", re.match(r"[\d.]*", text).group())]  # type: ignore[union-attr]
        return (*parts, 0, 0, 0, 0)[:4]

    mine = numbers(version)
    tests = {"==": mine.__eq__, ">=": mine.__ge__, "<": mine.__lt__}
    return all(tests[sign](numbers(bound)) for sign, bound in re.findall(r"(==|>=|<)\s*([\w.]+)", bounds))


def look() -> tuple[dict[str, str], list[str]]:
    """(missing packages with their bounds, what is there in a version that the trainer cannot use)."""
    missing, unfit = {}, []
    for name, bounds in wanted().items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing[name] = bounds
        else:
            accepted = ACCEPTED.get(name, bounds)
            if not fits(version, accepted):
                unfit.append(f"{name} {version} is installed, and the trainer needs {name}{accepted}.")
    return missing, unfit


def installed() -> dict[str, str]:
    """Every distribution of this environment; of two with one name the first on the path counts, as for import."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name and distribution.version:
            found.setdefault(name, distribution.version)
    return found


def index_address() -> tuple[str, int] | None:
    """Host and port that pip would ask (a proxy comes first); None when pip needs no network for its index."""
    settings: dict[str, str] = {}
    places = [Path("/etc/pip.conf"), Path.home() / ".pip" / "pip.conf", Path.home() / ".config" / "pip" / "pip.conf"]
    places += [Path(os.environ.get("APPDATA", "/")) / "pip" / "pip.ini", Path(sys.prefix) / "pip.conf", Path(sys.prefix) / "pip.ini"]
    places += [Path(os.environ["PIP_CONFIG_FILE"])] if os.environ.get("PIP_CONFIG_FILE") else []
    parser = configparser.RawConfigParser(strict=False)
    for place in places:
        try:
            parser.read(place, encoding="utf-8")
        except (configparser.Error, OSError, ValueError):
            continue
    for section in ("global", "install"):
        settings.update(parser.items(section) if parser.has_section(section) else [])
    if (os.environ.get("PIP_NO_INDEX") or settings.get("no-index", "")).lower() in ("1", "true", "yes", "on"):
        return None
    url = os.environ.get("INDEX_URL") or os.environ.get("PIP_INDEX_URL") or settings.get("index-url") or "https://pypi.org/simple"
    secure = url.startswith("https")
    proxy = os.environ.get("PIP_PROXY") or settings.get("proxy") or _proxy_of("https" if secure else "http")
    if proxy:
        url = proxy if "//" in proxy else "http://" + proxy
    parts = urlsplit(url)
    return (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)) if parts.hostname else None


def _proxy_of(scheme: str) -> str:
    return os.environ.get(scheme + "_proxy") or os.environ.get(scheme.upper() + "_PROXY") or os.environ.get("ALL_PROXY") or ""


def is_reachable(address: tuple[str, int]) -> bool:
    """Whether a connection opens within PROBE_SECONDS, name look-up included (that one has no time limit of its own)."""
    opened: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=PROBE_SECONDS).close()
        except OSError:
            return
        opened.append(True)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(opened)


def run_pip(arguments: str, what: str) -> None:
    """The host's own pip call; its twin when this file runs outside of a host. RuntimeError with pip's words."""
    try:
        from launch import run_pip as host_pip
    except ImportError:
        words = re.findall(r'"([^"]*)"|(\S+)', arguments)
        command = [sys.executable, "-m", "pip", *(quoted or plain for quoted, plain in words), "--prefer-binary"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace")
        if done.returncode:
            raise RuntimeError(done.stdout) from None
    else:
        host_pip(arguments, what)


def add(missing: dict[str, str]) -> None:
    """Installs them, with every installed package pinned to its version, so that pip can only add."""
    pins = installed()
    key = hashlib.sha256(json.dumps([missing, sorted(pins.items())]).encode()).hexdigest()
    command = " ".join(f'"{name}{bounds}"' for name, bounds in missing.items())
    remedy = f'"{sys.executable}" -m pip install {command}'
    names = ", ".join(missing)
    try:
        refused = json.loads(REFUSED.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        refused = {}
    if refused.get("key") == key:
        tell(names, refused["reason"], remedy)
        return
    address = index_address()
    if address and not is_reachable(address):
        reason = f"{address[0]} cannot be reached (no connection within {PROBE_SECONDS} s); it is tried again at the next start."
        tell(names, reason, remedy)
        return
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()), encoding="utf-8")
        try:
            run_pip(f'install --retries 1 --timeout 10 -c "{constraints}" {command}', "the packages of LoRA Trainer")
        except RuntimeError as error:
            reason = why(str(error))
            if "ResolutionImpossible" in str(error):
                REFUSED.write_text(json.dumps({"key": key, "reason": reason}), encoding="utf-8")
            tell(names, reason, remedy)
            return
    REFUSED.unlink(missing_ok=True)
    importlib.invalidate_caches()
    added = {name: version for name, version in installed().items() if name not in pins}
    print("LoRA Trainer: added " + ", ".join(f"{name} {version}" for name, version in added.items()) + "; nothing else was changed.")


def why(words: str) -> str:
    """The lines of pip's answer that name the reason."""
    lines = [line.strip() for line in words.splitlines()]
    told = [line for line in lines if re.search(r"depends on|requested|ERROR|No space|Permission|Errno", line)]
    return " ".join(dict.fromkeys(told[-6:])) or (lines[-1] if lines else "pip gave no reason")


def tell(names: str, reason: str, remedy: str) -> None:
    print(f"LoRA Trainer: {names} could not be added; the WebUI's own packages are as they were. {reason}\nRemedy: {remedy}")


def main() -> None:
    flags = [*sys.argv[1:], *os.environ.get("COMMANDLINE_ARGS", "").split()]
    if "--skip-install" in flags or os.environ.get("LORA_TRAINER_SKIP_INSTALL") == "1":
        return
    missing, unfit = look()
    for line in unfit:
        name = line.split()[0]
        print(f'LoRA Trainer: {line} It was left as it is.\nRemedy: "{sys.executable}" -m pip install "{name}{wanted()[name]}"')
    if missing:
        add(missing)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        print(f"LoRA Trainer: could not look at its packages ({type(error).__name__}: {error}). The tab says what is missing.")
