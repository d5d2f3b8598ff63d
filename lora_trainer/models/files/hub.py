"""Models of a Hub (Hugging Face's, or a mirror's): what a run needs of one is fetched once, goes on where it broke off, and is checked.

No torch, no package: plain requests. The token is sent to the Hub's own address only, and is written nowhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

import attrs

from lora_trainer import assets
from lora_trainer.errors import ModelError
from lora_trainer.files import locked, replace_file
from lora_trainer.models.files.diffusers_folder import ENDINGS, NAMES, PARTS

ENDPOINT = "https://huggingface.co"
NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@:]+\.(?:safetensors|ckpt)))?(?:@(?P<revision>[\w./-]+))?")
LINK = re.compile(r"^([\w.-]+/[\w.-]+)/(?:blob|resolve|tree)/([\w.-]+)/?([^?]*)(?:\?.*)?$")
"""The address of a page of a model, without the Hub's own."""
CHECKPOINTS = (".safetensors", ".ckpt")
BLOCK = 1 << 20
SECONDS = 30
TRIES = 5
AGAIN = "Check the connection, then start again: it goes on where it ended."
FIELD = "model.pretrained_model_name_or_path"


@attrs.frozen
class Name:
    """A model on a Hub: "owner/name", a file of it ("owner/name/file.safetensors"), at a revision ("...@v1")."""

    repo: str
    file: str = ""
    revision: str = "main"

    @classmethod
    def read(cls, text: str, revision: str = "") -> Name | None:
        """The model that a text names; None when it looks like a path, a title or a link instead."""
        text = LINK.sub(r"\1/\3@\2", text.strip().removeprefix(f"{ENDPOINT}/")).replace("/@", "@")
        found = NAME.fullmatch(text)
        if found is None or found["repo"].startswith(".") or ".." in text or found["repo"].endswith(CHECKPOINTS):
            return None
        return cls(found["repo"], found["file"] or "", revision or found["revision"] or "main")


class NotFetched(ModelError):
    """A model of a Hub that is not on this computer yet."""

    def __init__(self, name: Name) -> None:
        super().__init__(
            "{name} is a model of a Hub that is not here yet.", name=name.repo, path=FIELD, fix="A run fetches it when it begins."
        )
        self.name = name


@attrs.frozen
class Wanted:
    """One file of a model: its path in the repository, its size, and its sha256 where the Hub tells one."""

    path: str
    size: int
    sha256: str


@attrs.frozen
class Progress:
    """How far a download is."""

    done: int
    total: int
    file: str


def _stripped(text: str) -> str:
    return text.strip()


@attrs.frozen
class Hub:
    """A Hub at an address. `token` is sent to it only, never on to where it points; it is left out when this is printed."""

    endpoint: str = ENDPOINT
    token: str = attrs.field(default="", converter=_stripped, repr=False)
    wait: Callable[[float], None] = attrs.field(default=lambda seconds: None, repr=False)

    @classmethod
    def of_environment(cls, token: str = "", environment: Mapping[str, str] = os.environ) -> Hub:
        """The Hub at HF_ENDPOINT, with the given token, else HF_TOKEN's."""
        import time

        return cls((environment.get("HF_ENDPOINT") or ENDPOINT).rstrip("/"), token or environment.get("HF_TOKEN", ""), time.sleep)

    def files(self, name: Name) -> tuple[str, list[Wanted]]:
        """The commit that a revision means, and the files of it that a run needs. Raises ModelError."""
        if not all(33 <= ord(sign) < 127 for sign in self.token):
            raise ModelError("the Hub token holds signs that no token has.", path="model.hub_token", fix="Copy it again.")
        quoted = urllib.parse.quote(name.revision, safe="")
        try:
            with self._open(f"{self.endpoint}/api/models/{name.repo}/revision/{quoted}?blobs=true", name) as answer:
                told = json.loads(answer.read(64 << 20))
            held = {str(one["rfilename"]): one for one in told["siblings"] if _inside(str(one["rfilename"]))}
            commit = _flat(str(told["sha"]))
        except (OSError, HTTPException) as error:
            words = {"endpoint": self.endpoint, "reason": str(error)[:200], "path": FIELD}
            raise ModelError("{endpoint} cannot be reached ({reason}).", **words, fix=AGAIN) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError("the Hub's answer about {name} cannot be read.", name=name.repo, path=FIELD, fix=AGAIN) from error
        return commit, [_wanted(path, held[path]) for path in chosen(name, list(held))]

    def fetch(self, name: Name, cache: Path) -> Iterator[Progress]:
        """Brings a model's files below `cache` (`place` says where); what is there already is kept. Raises ModelError."""
        commit, wanted = self.files(name)
        root = _root(cache, self.endpoint, name) / commit
        total, before = sum(one.size for one in wanted), 0
        for one in wanted:
            target = root / one.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with locked(target.with_name(f"{target.name}.lock")):
                if not target.is_file():
                    url = f"{self.endpoint}/{name.repo}/resolve/{commit}/{urllib.parse.quote(one.path)}"
                    for done in self._file(url, target, one, name):
                        yield Progress(before + done, max(total, before + done), one.path)
            before += one.size
        _note(_root(cache, self.endpoint, name), name, commit, wanted)
        yield Progress(before, before, "")

    def _file(self, url: str, target: Path, wanted: Wanted, name: Name) -> Iterator[int]:
        """One file, going on where an earlier try ended; compared with size and hash before it gets its name."""
        part = target.with_name(f"{target.name}.part")
        failures, reason = 0, ""
        while (have := _size(part)) < wanted.size or not wanted.size:
            try:
                yield from self._more(url, part, have, name)
                if not wanted.size:
                    break
                reason = "it ends early"
            except (OSError, HTTPException) as error:
                reason = str(error)[:200]
            failures = 0 if _size(part) > have else failures + 1
            if failures >= TRIES:
                raise ModelError("{file} was not fetched completely ({reason}).", file=wanted.path, reason=reason, path=FIELD, fix=AGAIN)
            self.wait(min(2.0**failures / 4, 8.0))
        _check(part, wanted)
        replace_file(part, target)

    def _more(self, url: str, part: Path, have: int, name: Name) -> Iterator[int]:
        """What comes of a file from `have` bytes on, written behind them; from its beginning when the Hub sends all of it again."""
        with self._open(url, name, start=have) as answer, part.open("ab" if answer.status == 206 else "wb") as file:
            while block := answer.read(BLOCK):
                file.write(block)
                yield file.tell()

    def _open(self, url: str, name: Name, start: int = 0) -> HTTPResponse:
        request = urllib.request.Request(url, headers={"User-Agent": "lora-trainer", **({"Range": f"bytes={start}-"} if start else {})})
        if self.token:
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        try:
            answer: HTTPResponse = urllib.request.build_opener(_SameHubOnly).open(request, timeout=SECONDS)
        except urllib.error.HTTPError as error:
            raise self._refused(error.code, name) from None
        return answer

    def _refused(self, code: int, name: Name) -> Exception:
        words: dict[str, Any] = {"name": name.repo, "revision": name.revision, "endpoint": self.endpoint, "path": FIELD}
        if code in (401, 403):
            return ModelError(
                "{endpoint} does not hand out {name} without permission.",
                **words,
                fix="Accept the model's terms on its page, and give a token of your account as Hub token (model.hub_token) or HF_TOKEN.",
            )
        if code == 404:
            return ModelError(
                "{endpoint} has no model {name} at {revision}.", **words, fix="Check the name, the revision, and whether a token is needed."
            )
        return OSError(f"HTTP {code}")


class _SameHubOnly(urllib.request.HTTPRedirectHandler):
    """Follows where the Hub points; the token goes along only while it stays the same address."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> urllib.request.Request | None:
        """The request for the new address."""
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        permission = req.get_header("Authorization") or req.unredirected_hdrs.get("Authorization")
        if made is not None and permission and (old.scheme, old.netloc) == (new.scheme, new.netloc):
            made.add_unredirected_header("Authorization", permission)
        return made

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


def place(name: Name, cache: Path, endpoint: str = ENDPOINT) -> Path | None:
    """The folder or file of a model that was fetched completely; None when it was not. No request is made."""
    root = _root(cache, endpoint, name)
    try:
        noted = json.loads((root / f"{_flat(name.revision)}.json").read_text(encoding="utf-8"))
        commit, files = str(noted["commit"]), noted["files"][name.file]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not all((root / commit / path).is_file() for path in files):
        return None
    return root / commit / files[0] if files[0].endswith(CHECKPOINTS) else root / commit


def here(name: Name) -> Path:
    """The folder or file of a model of the environment's Hub. Raises NotFetched when it is not on this computer."""
    found = place(name, assets.cache_folder(), Hub.of_environment().endpoint)
    if found is None:
        raise NotFetched(name)
    return found


def chosen(name: Name, held: list[str]) -> list[str]:
    """The files that a run needs: the one that was named, the parts of a diffusers folder, or the only checkpoint. Raises ModelError."""
    if name.file:
        if name.file in held:
            return _with_yaml(name.file, held)
        raise ModelError("{name} holds no file {file}.", name=name.repo, file=name.file, path=FIELD, fix="Name one of its files.")
    if "unet/config.json" in held:
        folders = [inner for inner in PARTS.values() if f"{inner}/config.json" in held]
        configs = ["model_index.json", "scheduler/scheduler_config.json", *(f"{inner}/config.json" for inner in folders)]
        return [path for path in configs if path in held] + [path for inner in folders for path in _weights(name, inner, held)]
    if "config.json" in held and any(path.startswith(NAMES[0]) for path in held):  # a VAE by itself
        return ["config.json", *_weights(name, "", held)]
    files = [path for path in held if path.endswith(CHECKPOINTS[0])] or [path for path in held if path.endswith(CHECKPOINTS[1])]
    if len(files) == 1:
        return _with_yaml(files[0], held)
    raise ModelError(
        "{name} holds {count} checkpoints, and no model in diffusers' layout.",
        name=name.repo,
        count=len(files),
        path=FIELD,
        fix="Name one of its files: {name}/{file}",
        file=files[0] if files else "model.safetensors",
    )


def _with_yaml(file: str, held: list[str]) -> list[str]:
    """A checkpoint, and the yaml beside it, which may tell what it predicts."""
    beside = f"{file.rpartition('.')[0]}.yaml"
    return [file, beside] if beside in held else [file]


def _weights(name: Name, inner: str, held: list[str]) -> list[str]:
    """The files of the weights in a folder of the repository, "" for itself."""
    place = f"{inner}/" if inner else ""
    for ending in ENDINGS:
        for stem in NAMES:
            if (whole := f"{place}{stem}{ending}") in held:
                return [whole]
            start, _, kind = f"{stem}{ending}".rpartition(".")
            if (index := f"{place}{start}.{kind}.index.json") in held:
                return [index, *(path for path in held if re.fullmatch(rf"{re.escape(place)}{start}-\d+-of-\d+\.{kind}", path))]
    raise ModelError("{name} holds no weights in {part}.", name=name.repo, part=inner, path=FIELD, fix="Choose another model.")


def _wanted(path: str, told: Mapping[str, Any]) -> Wanted:
    lfs = told.get("lfs") or {}
    return Wanted(path, int(lfs.get("size") or told.get("size") or 0), str(lfs.get("sha256") or ""))


def _check(part: Path, wanted: Wanted) -> None:
    """Raises ModelError, and deletes what came, when it is not what the Hub says it is."""
    size = part.stat().st_size
    if wanted.sha256:
        digest = hashlib.sha256()
        with part.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
        right = digest.hexdigest() == wanted.sha256
    else:
        right = not wanted.size or size == wanted.size
    if not right:
        part.unlink()
        raise ModelError(
            "{file} is not what the Hub says it is (its hash differs), so it was deleted.",
            file=wanted.path,
            path=FIELD,
            fix="Start again; if that does not help, the file or the mirror is damaged.",
        )


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _inside(path: str) -> bool:
    """Whether a path of a repository stays inside of it, on every system."""
    return not re.search(r"[\\:]", path) and all(piece not in ("", ".", "..") for piece in path.split("/"))


def _root(cache: Path, endpoint: str, name: Name) -> Path:
    host = urllib.parse.urlsplit(endpoint).netloc or "hub"
    return cache / "hub" / _flat(host) / _flat(name.repo)


def _note(root: Path, name: Name, commit: str, wanted: list[Wanted]) -> None:
    """Remembers which commit a revision meant and which files belong to it, so that no request is needed the next time."""
    path = root / f"{_flat(name.revision)}.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    files = known.get("files", {}) if known.get("commit") == commit else {}
    text = json.dumps({"commit": commit, "files": {**files, name.file: [one.path for one in wanted]}}, indent=1)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    replace_file(part, path)


def _flat(text: str) -> str:
    return re.sub(r"[^\w.-]", "--", text)
