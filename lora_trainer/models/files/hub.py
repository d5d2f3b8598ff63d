"""Models of a Hub (Hugging Face's, or a mirror's): the files that a run needs are downloaded once, resumed, and verified.

No torch, no package: plain requests. The token is only sent to the Hub's own address, and never written to disk.
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
from lora_trainer.files import file_lock, replace_file
from lora_trainer.models.files.diffusers_folder import ENDINGS, NAMES, PARTS
from lora_trainer.parsing import parse_json, read_json_object

ENDPOINT = "https://huggingface.co"
NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@:]+\.(?:safetensors|ckpt)))?(?:@(?P<revision>[\w./-]+))?")
LINK = re.compile(r"^([\w.-]+/[\w.-]+)/(?:blob|resolve|tree)/([\w.-]+)/?([^?]*)(?:\?.*)?$")
"""URL of a model's page, without the Hub's address."""
CHECKPOINTS = (".safetensors", ".ckpt")
BLOCK = 1 << 20
TIMEOUT = 30
TRIES = 5
TRY_AGAIN = "Check the connection, then start again: the download resumes where it ended."
FIELD = "model.pretrained_model_name_or_path"


@attrs.frozen
class HubName:
    """A model on a Hub: "owner/name", a file of it ("owner/name/file.safetensors"), at a revision ("...@v1")."""

    repo: str
    file: str = ""
    revision: str = "main"

    @classmethod
    def parse(cls, text: str, revision: str = "") -> HubName | None:
        """The model that a text names; None if it looks like a path, a title or another link."""
        text = LINK.sub(r"\1/\3@\2", text.strip().removeprefix(f"{ENDPOINT}/")).replace("/@", "@")
        match = NAME.fullmatch(text)
        if match is None or match["repo"].startswith(".") or ".." in text or match["repo"].endswith(CHECKPOINTS):
            return None
        return cls(match["repo"], match["file"] or "", revision or match["revision"] or "main")


class NotDownloaded(ModelError):
    """A model of a Hub that has not been downloaded yet."""

    def __init__(self, name: HubName) -> None:
        super().__init__(
            "{name} is a model of a Hub that has not been downloaded yet.",
            name=name.repo,
            path=FIELD,
            fix="A run downloads it when it starts.",
        )
        self.name = name


@attrs.frozen
class RemoteFile:
    """One file of a model: path in the repository, size in bytes, and sha256 ("" if the Hub gives none)."""

    path: str
    size: int
    sha256: str


@attrs.frozen
class DownloadProgress:
    """Bytes downloaded so far, bytes of all files, and the current file."""

    done: int
    total: int
    file: str


def _stripped(text: str) -> str:
    return text.strip()


@attrs.frozen
class Hub:
    """A Hub at an address. `token` is only sent to this address, never to where it redirects; it is left out of repr."""

    endpoint: str = ENDPOINT
    token: str = attrs.field(default="", converter=_stripped, repr=False)
    wait: Callable[[float], None] = attrs.field(default=lambda seconds: None, repr=False)

    @classmethod
    def of_environment(cls, token: str = "", environment: Mapping[str, str] = os.environ) -> Hub:
        """The Hub at HF_ENDPOINT, with `token`, else that of HF_TOKEN."""
        import time

        return cls((environment.get("HF_ENDPOINT") or ENDPOINT).rstrip("/"), token or environment.get("HF_TOKEN", ""), time.sleep)

    def files(self, name: HubName) -> tuple[str, list[RemoteFile]]:
        """The commit of a revision, and the files that a run needs. Raises ModelError."""
        if not all(33 <= ord(character) < 127 for character in self.token):
            raise ModelError("the Hub token contains characters that no token has.", path="model.hub_token", fix="Copy it again.")
        quoted = urllib.parse.quote(name.revision, safe="")
        try:
            with self._open(f"{self.endpoint}/api/models/{name.repo}/revision/{quoted}?blobs=true", name) as response:
                info = parse_json(response.read(64 << 20))
            siblings = {str(sibling["rfilename"]): sibling for sibling in info["siblings"] if _stays_inside(str(sibling["rfilename"]))}
            commit = _to_file_name(str(info["sha"]))
        except (OSError, HTTPException) as error:
            values = {"endpoint": self.endpoint, "reason": str(error)[:200], "path": FIELD}
            raise ModelError("{endpoint} cannot be reached ({reason}).", **values, fix=TRY_AGAIN) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError("the Hub's answer about {name} cannot be read.", name=name.repo, path=FIELD, fix=TRY_AGAIN) from error
        return commit, [_remote_file(path, siblings[path]) for path in select_files(name, list(siblings))]

    def download(self, name: HubName, cache: Path) -> Iterator[DownloadProgress]:
        """Downloads the missing files of a model into `cache`, at `downloaded_path`. Raises ModelError."""
        commit, files = self.files(name)
        root = _model_folder(cache, self.endpoint, name) / commit
        total, done_before = sum(file.size for file in files), 0
        for file in files:
            target = root / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with file_lock(target.with_name(f"{target.name}.lock")):
                if not target.is_file():
                    url = f"{self.endpoint}/{name.repo}/resolve/{commit}/{urllib.parse.quote(file.path)}"
                    for done in self._download_file(url, target, file, name):
                        yield DownloadProgress(done_before + done, max(total, done_before + done), file.path)
            done_before += file.size
        _write_index(_model_folder(cache, self.endpoint, name), name, commit, files)
        yield DownloadProgress(done_before, done_before, "")

    def _download_file(self, url: str, target: Path, file: RemoteFile, name: HubName) -> Iterator[int]:
        """One file, resumed where an earlier try ended; renamed to `target` once size and hash are right. Yields bytes so far."""
        part = target.with_name(f"{target.name}.part")
        failures, reason = 0, ""
        while (have := _size(part)) < file.size or not file.size:
            try:
                yield from self._append(url, part, have, name)
                if not file.size:
                    break
                reason = "it ends early"
            except (OSError, HTTPException) as error:
                reason = str(error)[:200]
            failures = 0 if _size(part) > have else failures + 1
            if failures >= TRIES:
                raise ModelError(
                    "{file} was not downloaded completely ({reason}).", file=file.path, reason=reason, path=FIELD, fix=TRY_AGAIN
                )
            self.wait(min(2.0**failures / 4, 8.0))
        _verify(part, file)
        replace_file(part, target)

    def _append(self, url: str, part: Path, have: int, name: HubName) -> Iterator[int]:
        """Appends a file from byte `have` on; starts over if the Hub sends it from the beginning. Yields bytes so far."""
        with self._open(url, name, start=have) as response, part.open("ab" if response.status == 206 else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                yield file.tell()

    def _open(self, url: str, name: HubName, start: int = 0) -> HTTPResponse:
        request = urllib.request.Request(url, headers={"User-Agent": "lora-trainer", **({"Range": f"bytes={start}-"} if start else {})})
        if self.token:
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        try:
            response: HTTPResponse = urllib.request.build_opener(_SameHubOnly).open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            raise self._refusal(error.code, name) from None
        return response

    def _refusal(self, code: int, name: HubName) -> Exception:
        values: dict[str, Any] = {"name": name.repo, "revision": name.revision, "endpoint": self.endpoint, "path": FIELD}
        if code in (401, 403):
            return ModelError(
                "{endpoint} does not give access to {name} without permission.",
                **values,
                fix="Accept the model's terms on its page, and give a token of your account as Hub token (model.hub_token) or HF_TOKEN.",
            )
        if code == 404:
            return ModelError(
                "{endpoint} has no model {name} at {revision}.",
                **values,
                fix="Check the name, the revision, and whether a token is needed.",
            )
        return OSError(f"HTTP {code}")


class _SameHubOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects; passes the token on only within the same address."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> urllib.request.Request | None:
        """The request for the new address."""
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        authorization = req.get_header("Authorization") or req.unredirected_hdrs.get("Authorization")
        if request is not None and authorization and (old.scheme, old.netloc) == (new.scheme, new.netloc):
            request.add_unredirected_header("Authorization", authorization)
        return request

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


def downloaded_path(name: HubName, cache: Path, endpoint: str = ENDPOINT) -> Path | None:
    """The folder or file of a completely downloaded model, else None. Makes no request."""
    root = _model_folder(cache, endpoint, name)
    try:
        index = read_json_object(root / f"{_to_file_name(name.revision)}.json")
        commit, files = str(index["commit"]), index["files"][name.file]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not all((root / commit / path).is_file() for path in files):
        return None
    return root / commit / files[0] if files[0].endswith(CHECKPOINTS) else root / commit


def require_downloaded(name: HubName) -> Path:
    """The folder or file of a model of the environment's Hub. Raises NotDownloaded."""
    path = downloaded_path(name, assets.cache_folder(), Hub.of_environment().endpoint)
    if path is None:
        raise NotDownloaded(name)
    return path


def select_files(name: HubName, paths: list[str]) -> list[str]:
    """The files that a run needs: the named one, the parts of a diffusers folder, or the only checkpoint. Raises ModelError."""
    if name.file:
        if name.file in paths:
            return _with_yaml(name.file, paths)
        raise ModelError("{name} holds no file {file}.", name=name.repo, file=name.file, path=FIELD, fix="Name one of its files.")
    if "unet/config.json" in paths:
        folders = [inner for inner in PARTS.values() if f"{inner}/config.json" in paths]
        configs = ["model_index.json", "scheduler/scheduler_config.json", *(f"{inner}/config.json" for inner in folders)]
        return [path for path in configs if path in paths] + [path for inner in folders for path in _weight_files(name, inner, paths)]
    if "config.json" in paths and any(path.startswith(NAMES[0]) for path in paths):  # a VAE by itself
        return ["config.json", *_weight_files(name, "", paths)]
    files = [path for path in paths if path.endswith(CHECKPOINTS[0])] or [path for path in paths if path.endswith(CHECKPOINTS[1])]
    if len(files) == 1:
        return _with_yaml(files[0], paths)
    raise ModelError(
        "{name} holds {count} checkpoints, and no model in diffusers' layout.",
        name=name.repo,
        count=len(files),
        path=FIELD,
        fix="Name one of its files: {name}/{file}",
        file=files[0] if files else "model.safetensors",
    )


def _with_yaml(file: str, paths: list[str]) -> list[str]:
    """A checkpoint and the yaml beside it, which may say what it predicts."""
    yaml = f"{file.rpartition('.')[0]}.yaml"
    return [file, yaml] if yaml in paths else [file]


def _weight_files(name: HubName, inner: str, paths: list[str]) -> list[str]:
    """Weight files of a folder in the repository ("": the root). Raises ModelError."""
    prefix = f"{inner}/" if inner else ""
    for ending in ENDINGS:
        for stem in NAMES:
            if (file := f"{prefix}{stem}{ending}") in paths:
                return [file]
            start, _, kind = f"{stem}{ending}".rpartition(".")
            if (index := f"{prefix}{start}.{kind}.index.json") in paths:
                return [index, *(path for path in paths if re.fullmatch(rf"{re.escape(prefix)}{start}-\d+-of-\d+\.{kind}", path))]
    raise ModelError("{name} holds no weights in {part}.", name=name.repo, part=inner, path=FIELD, fix="Choose another model.")


def _remote_file(path: str, info: Mapping[str, Any]) -> RemoteFile:
    lfs = info.get("lfs") or {}
    return RemoteFile(path, int(lfs.get("size") or info.get("size") or 0), str(lfs.get("sha256") or ""))


def _verify(part: Path, file: RemoteFile) -> None:
    """Deletes the file and raises ModelError if size or hash differ from the Hub's."""
    size = part.stat().st_size
    if file.sha256:
        digest = hashlib.sha256()
        with part.open("rb") as content:
            while block := content.read(BLOCK):
                digest.update(block)
        is_valid = digest.hexdigest() == file.sha256
    else:
        is_valid = not file.size or size == file.size
    if not is_valid:
        part.unlink()
        raise ModelError(
            "{file} is not what the Hub says it is (its hash differs), so it was deleted.",
            file=file.path,
            path=FIELD,
            fix="Start again; if that does not help, the file or the mirror is damaged.",
        )


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _stays_inside(path: str) -> bool:
    """Whether a path stays inside its repository, on every system."""
    return not re.search(r"[\\:]", path) and all(piece not in ("", ".", "..") for piece in path.split("/"))


def _model_folder(cache: Path, endpoint: str, name: HubName) -> Path:
    host = urllib.parse.urlsplit(endpoint).netloc or "hub"
    return cache / "hub" / _to_file_name(host) / _to_file_name(name.repo)


def _write_index(root: Path, name: HubName, commit: str, files: list[RemoteFile]) -> None:
    """Stores the commit and the files of a revision, so that no request is needed the next time."""
    path = root / f"{_to_file_name(name.revision)}.json"
    index = read_json_object(path)
    known_files = index.get("files", {}) if index.get("commit") == commit else {}
    text = json.dumps({"commit": commit, "files": {**known_files, name.file: [file.path for file in files]}}, indent=1)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    replace_file(part, path)


def _to_file_name(text: str) -> str:
    return re.sub(r"[^\w.-]", "--", text)
