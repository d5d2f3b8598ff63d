"""Run by the host at every start: installs missing packages and changes no installed one.

When nothing is missing, it only reads metadata (no pip, no import of the host). It never fails: what could not be
installed is printed with one remedy, and the tab shows it again.
"""

from __future__ import annotations

import configparser
import hashlib
import importlib
import importlib.metadata as metadata
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent
REQUIRED = "requirements.txt"
OPTIMIZERS = "requirements-optimizers.txt"  # added one by one without what they depend on, which is torch: the trainer works without them
REFUSED = ROOT / "install_refused.json"  # what pip could not install: not tried again until a package changes
LASTING = re.compile(r"ResolutionImpossible|No matching distribution|subprocess-exited-with-error|Failed to build")
PROBE_SECONDS = 0.6
# requirements.txt has the version to install; an installed one is kept when it is within these bounds.
ACCEPTED = {"diffusers": ">=0.29,<0.43", "cattrs": ">=23.2,<27", "tomlkit": ">=0.12"}
HOST_REQUIREMENTS = ("requirements_versions.txt", "requirements.txt")  # A1111 and its forks; Forge Neo has the second one only


class Unfit(NamedTuple):
    """A package in a version that does not serve; `pinned`: the version of it that the WebUI installs itself, "" where it names none."""

    name: str
    version: str
    accepted: str
    pinned: str

    @property
    def has_remedy(self) -> bool:
        """False where the WebUI would undo any: at its next start it installs the versions of its own requirements again."""
        return not self.pinned or fits(self.pinned, self.accepted)


def required_versions(file: str = REQUIRED) -> dict[str, str]:
    """Package -> version bounds, from the lines of that file for this Python."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    matches = (re.match(r"([A-Za-z][\w.-]*)([^;]*)(?:;\s*python_version(.*))?", line) for line in lines)
    mine = platform.python_version()
    return {match.group(1): match.group(2).strip() for match in matches if match and fits(mine, (match.group(3) or "").replace('"', ""))}


def fits(version: str, bounds: str) -> bool:
    """Whether "0.31.0" lies in ">=0.29,<0.36"; of a version only its leading numbers count."""

    def numbers(text: str) -> tuple[int, ...]:
        parts = [int(part) for part in re.findall(r"\d+", re.match(r"[\d.]*", text).group())]  # type: ignore[union-attr]
        return (*parts, 0, 0, 0, 0)[:4]

    actual = numbers(version)
    tests = {"==": actual.__eq__, ">=": actual.__ge__, "<": actual.__lt__}
    return all(tests[sign](numbers(bound)) for sign, bound in re.findall(r"(==|>=|<)\s*([\w.]+)", bounds))


def check_packages() -> tuple[dict[str, str], list[Unfit]]:
    """(missing packages with their version bounds, those installed in a version that does not serve, too old or too new)."""
    missing, unfit = {}, []
    for name, bounds in required_versions().items():
        accepted = ACCEPTED.get(name, bounds)
        if not is_installed(name):
            missing[name] = bounds
        elif not fits(metadata.version(name), accepted):
            unfit.append(Unfit(name, metadata.version(name), accepted, host_pins().get(normalized(name), "")))
    return missing, unfit


def missing_optimizers() -> dict[str, str]:
    """Packages of optimizers that are not installed; one that is installed serves in any version."""
    return {name: bounds for name, bounds in required_versions(OPTIMIZERS).items() if not is_installed(name)}


def is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def flags() -> list[str]:
    """The host's command line."""
    return [*sys.argv[1:], *os.environ.get("COMMANDLINE_ARGS", "").split()]


def host_requirements() -> Path | None:
    """The file of the versions that the host installs; None outside of a host, or where it installs nothing."""
    folder = next((Path(path) for path in sys.path if (Path(path) / "launch.py").is_file()), None)
    if folder is None or {"--skip-prepare-environment", "--skip-install"} & set(flags()):
        return None
    named = os.environ.get("REQS_FILE")
    return next((folder / name for name in ([named] if named else HOST_REQUIREMENTS) if (folder / name).is_file()), None)


def host_pins() -> dict[str, str]:
    """Normalized name -> version of the packages that the host installs in one version only. It puts that one back at its next start."""
    path = host_requirements()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path else []
    matches = (re.match(r"\s*([A-Za-z][\w.-]*)\s*(?:\[[^]]*\])?\s*===?\s*([\w.+!-]+)", line) for line in lines)
    return {normalized(match.group(1)): match.group(2) for match in matches if match}


def installed_versions() -> dict[str, str]:
    """Name -> version of every installed distribution; of two with the same name the first on sys.path counts, as for import."""
    versions: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name and distribution.version:
            versions.setdefault(name, distribution.version)
    return versions


def index_address() -> tuple[str, int] | None:
    """Host and port that pip would connect to (a proxy first); None when its index needs no network."""
    settings: dict[str, str] = {}
    config_files = [Path("/etc/pip.conf"), Path.home() / ".pip" / "pip.conf", Path.home() / ".config" / "pip" / "pip.conf"]
    config_files += [Path(os.environ.get("APPDATA", "/")) / "pip" / "pip.ini", Path(sys.prefix) / "pip.conf", Path(sys.prefix) / "pip.ini"]
    config_files += [Path(os.environ["PIP_CONFIG_FILE"])] if os.environ.get("PIP_CONFIG_FILE") else []
    parser = configparser.RawConfigParser(strict=False)
    for config_file in config_files:
        try:
            parser.read(config_file, encoding="utf-8")
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
    """The host's own pip call, or an equivalent one outside a host. Raises RuntimeError with pip's output."""
    try:
        from launch import run_pip as host_pip
    except ImportError:
        words = re.findall(r'"([^"]*)"|(\S+)', arguments)
        command = [sys.executable, "-m", "pip", *(quoted or plain for quoted, plain in words), "--prefer-binary"]
        process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace")
        if process.returncode:
            raise RuntimeError(process.stdout) from None
    else:
        host_pip(arguments, what)


def install_missing(missing: dict[str, str], optimizers: dict[str, str]) -> None:
    """Installs the packages; then each optimizer alone and without what it depends on: one that fails keeps no other away."""
    refused = read_refused()
    waiting = []
    for bounds, options in [(missing, ""), *(({name: version}, "--no-deps ") for name, version in optimizers.items())]:
        names = ", ".join(bounds)
        if refused.get(names, {}).get("key") == package_key(bounds):
            report_failure(names, refused[names]["reason"], what_to_do(bounds, options, refused[names]["reason"]))
            if bounds is missing:
                return
        elif bounds:
            waiting.append((bounds, options))
    address = index_address() if waiting else None
    if address and not is_reachable(address):
        reason = f"{address[0]} cannot be reached (no connection within {PROBE_SECONDS} s); it is tried again at the next start."
        commands = [remedy_for(missing, "")] if missing else []
        commands += [remedy_for(optimizers, "--no-deps ")] if optimizers else []
        report_failure(", ".join([*missing, *optimizers]), reason, "Remedy: " + "\n".join(commands))
        return
    for bounds, options in waiting:
        if not add_packages(bounds, options) and bounds is missing:
            return  # without these the trainer does nothing


def add_packages(bounds: dict[str, str], options: str) -> bool:
    """One call of pip with every installed package pinned to its version, so that it can only add; whether it did."""
    pins = installed_versions()
    names = ", ".join(bounds)
    refused = read_refused()
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()), encoding="utf-8")
        try:
            run_pip(f'install --retries 1 --timeout 10 -c "{constraints}" {options}{quoted(bounds)}', "the packages of LoRA Trainer")
        except RuntimeError as error:
            reason = failure_reason(str(error))
            if LASTING.search(str(error)):
                write_refused({**refused, names: {"key": package_key(bounds), "reason": reason}})
            report_failure(names, reason, what_to_do(bounds, options, reason))
            return False
    if refused.pop(names, None):
        write_refused(refused)
    importlib.invalidate_caches()
    added = {name: version for name, version in installed_versions().items() if name not in pins}
    print("LoRA Trainer: added " + ", ".join(f"{name} {version}" for name, version in added.items()) + "; nothing else was changed.")
    return True


def quoted(bounds: dict[str, str]) -> str:
    return " ".join(f'"{name}{version}"' for name, version in bounds.items())


def remedy_for(bounds: dict[str, str], options: str, reason: str = "") -> str:
    python = sys.executable if re.fullmatch(r"[\w:\\/.+-]+", sys.executable) else f'"{sys.executable}"'  # PowerShell runs no quoted name
    return f"{python} -m pip install {options}{quoted({**conflicting(reason), **bounds})}"


def remedy_for_unfit(unfit: list[Unfit]) -> str:
    """Without what they depend on: only the packages that do not serve are changed, to the host's own version of them where it has one."""
    return remedy_for({each.name: f"=={each.pinned}" if each.pinned else required_versions()[each.name] for each in unfit}, "--no-deps ")


def remedies(missing: dict[str, str], unfit: list[Unfit]) -> list[str]:
    """The commands for what check_packages found; none for what the host would undo."""
    reason, changed = refusal(missing), [each for each in unfit if each.has_remedy]
    commands = [remedy_for(missing, "", reason)] if missing and not in_the_way(reason) else []
    return [*commands, *([remedy_for_unfit(changed)] if changed else [])]


def lasting_pins(missing: dict[str, str], unfit: list[Unfit]) -> dict[str, str]:
    """Package -> version that the host would install again: why some of what check_packages found has no remedy."""
    return in_the_way(refusal(missing)) | {each.name: each.pinned for each in unfit if not each.has_remedy}


def refusal(missing: dict[str, str]) -> str:
    """Why pip could not install these; "" where it was not tried."""
    return read_refused().get(", ".join(missing), {}).get("reason", "")


def in_the_way(reason: str) -> dict[str, str]:
    """Packages that pip gave as the reason, in the version that the host installs: another one would be gone after its next start."""
    pins, versions = host_pins(), {normalized(name): version for name, version in installed_versions().items()}
    names = [normalized(name) for name in conflicting(reason)]
    return {name: pins[name] for name in names if name in pins and pins[name] == versions.get(name)}


def what_to_do(bounds: dict[str, str], options: str, reason: str) -> str:
    """The remedy, or the sentence that there is none."""
    pinned = in_the_way(reason)
    return no_remedy(pinned) if pinned else "Remedy: " + remedy_for(bounds, options, reason)


def no_remedy(pinned: dict[str, str]) -> str:
    versions = ", ".join(f"{name}=={version}" for name, version in pinned.items())
    return f"No remedy lasts: this WebUI installs {versions} again at its next start. Look for a newer version of LoRA Trainer."


def conflicting(reason: str) -> dict[str, str]:
    """Packages whose installed version pip gave as the reason: the host's version, else every bound that installed packages set on them.

    Without the bounds pip would take the newest version, and the packages of the WebUI that need an older one would no longer work.
    """
    found = {normalized(name): (name, version) for name, version in re.findall(r"\(constraint\) ([\w.-]+)==([\w.+-]+)", reason)}
    bounds: dict[str, set[str]] = {name: set() for name in found}
    for distribution in metadata.distributions():
        for requirement in distribution.requires or ():
            match = re.match(r"([\w.-]+)\s*(?:\[[^\]]*\])?\s*\(?([^;)]*)", requirement)
            name, bound = (normalized(match.group(1)), match.group(2).replace(" ", "")) if match else ("", "")
            if name in found and "extra" not in requirement.partition(";")[2] and fits(found[name][1], bound):
                bounds[name].update(part for part in bound.split(",") if part)
    pins = host_pins() if found else {}
    return {found[name][0]: f"=={pins[name]}" if name in pins else ",".join(sorted(parts)) for name, parts in bounds.items()}


def package_key(bounds: dict[str, str]) -> str:
    """Changes with what is asked for and with what is installed, but not with the optimizers that this file adds."""
    own = {normalized(name) for name in required_versions(OPTIMIZERS)}
    pins = sorted((name, version) for name, version in installed_versions().items() if normalized(name) not in own)
    return hashlib.sha256(json.dumps([bounds, pins]).encode()).hexdigest()


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_refused() -> dict[str, dict[str, str]]:
    """Names of packages -> {"key": of them and what was installed then, "reason": pip's}."""
    try:
        refused = json.loads(REFUSED.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries = refused.items() if isinstance(refused, dict) else ()
    return {names: entry for names, entry in entries if isinstance(entry, dict) and {"key", "reason"} <= entry.keys()}


def write_refused(refused: dict[str, dict[str, str]]) -> None:
    if refused:
        REFUSED.write_text(json.dumps(refused), encoding="utf-8")
    else:
        REFUSED.unlink(missing_ok=True)


def failure_reason(output: str) -> str:
    """The lines of pip's output that give the reason."""
    lines = [line.strip() for line in output.splitlines()]
    reasons = [line for line in lines if re.search(r"depends on|requested|ERROR|No space|Permission|Errno", line)]
    return " ".join(dict.fromkeys(reasons[-6:])) or (lines[-1] if lines else "pip gave no reason")


def report_failure(names: str, reason: str, what_to_do: str) -> None:
    print(f"LoRA Trainer: {names} could not be added; the WebUI's own packages are as they were. {reason}\n{what_to_do}")


def report_unfit(unfit: Unfit) -> None:
    what_to_do = f"Remedy: {remedy_for_unfit([unfit])}" if unfit.has_remedy else no_remedy({unfit.name: unfit.pinned})
    installed = f"{unfit.name} {unfit.version} is installed, and the trainer needs {unfit.name}{unfit.accepted}."
    print(f"LoRA Trainer: {installed} It was left as it is.\n{what_to_do}")


def main() -> None:
    if "--skip-install" in flags() or os.environ.get("LORA_TRAINER_SKIP_INSTALL") == "1":
        return
    missing, unfit = check_packages()
    for each in unfit:
        report_unfit(each)
    optimizers = missing_optimizers()
    if missing or optimizers:
        install_missing(missing, optimizers)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        print(f"LoRA Trainer: could not look at its packages ({type(error).__name__}: {error}). The tab says what is missing.")
