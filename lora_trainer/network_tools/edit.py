"""What a file says of itself: words of its header, its trigger, its preview. The tensors are copied byte by byte."""

from __future__ import annotations

import base64
import io
import json
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from lora_trainer.errors import ConfigError, ModelError, Problem
from lora_trainer.files import write_atomically, writing
from lora_trainer.messages import say
from lora_trainer.models.files.tensor_file import read_header
from lora_trainer.network_tools.checked_network import open_network
from lora_trainer.network_tools.saving import side_words, write_beside

PREFIXES = ("ss_", "sshs_", "modelspec.", "lora_trainer.")
NAMED = {
    "title": "modelspec.title",
    "author": "modelspec.author",
    "description": "modelspec.description",
    "license": "modelspec.license",
    "tags": "modelspec.tags",
    "trigger": "modelspec.trigger_phrase",
}
CARD = {"trigger": "activation text", "description": "description"}
"""What the WebUI's card shows of it, in NAME.json."""
PREVIEW_SIDE = 512
HASHES = ("sshs_model_hash", "sshs_legacy_hash")


@attrs.frozen
class Editing:
    """Header keys to set and to remove, words by their short names (`NAMED`), and a picture."""

    words: Mapping[str, str] = attrs.field(factory=dict)
    removed: Sequence[str] = ()
    named: Mapping[str, str] = attrs.field(factory=dict)
    preview: Path | None = None


def edit(path: Path, out: Path, wanted: Editing) -> dict[str, str]:
    """Writes a copy whose header says what is wanted; returns its header. The trigger and the preview also go beside it.

    Raises ConfigError for a key that may not be set, ModelError for what is no network and for a picture that cannot be read.
    """
    file = open_network(path)
    _check(wanted, file.words)
    thumbnail, picture = _thumbnail(wanted.preview) if wanted.preview is not None else ("", b"")
    named = {NAMED[name]: value for name, value in wanted.named.items()}
    words = {key: value for key, value in {**file.words, **wanted.words, **named}.items() if key not in wanted.removed}
    if thumbnail:
        words["modelspec.thumbnail"] = thumbnail
    _copy_with_header(path, out, words)
    card = {CARD[name]: value for name, value in wanted.named.items() if name in CARD}
    if card or side_words(path):
        write_beside(out, {**side_words(path), **card})
    if picture:
        write_atomically(out.with_suffix(".preview.png"), picture)
    return words


def _check(wanted: Editing, words: Mapping[str, str]) -> None:
    for key in (*wanted.words, *wanted.removed):
        if key in HASHES:
            raise _wrong(say("{key} is worked out from the tensors.", key=key), say("Leave it as it is."))
    for key in wanted.removed:
        if key not in words:
            raise _wrong(say("the header has no {key}.", key=key), say("See its words with network info."))
    for key in wanted.words:
        if not key.isprintable() or not key.strip() or (not key.startswith(PREFIXES) and key not in words):
            known = ", ".join(f"{prefix}..." for prefix in PREFIXES)
            raise _wrong(say("{key} is no word of a header.", key=key), say("Keys begin with {known}", known=known))


def _wrong(message: object, fix: object) -> ConfigError:
    return ConfigError([Problem("--set", message, fix)])  # type: ignore[arg-type]


def _thumbnail(path: Path) -> tuple[str, bytes]:
    """A picture as the data URL of a header (JPEG, at most 512 pixels) and as PNG. Raises ModelError."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError) as error:
        raise ModelError("{path} is no picture that can be read.", path=str(path), fix="Choose a PNG, JPEG or WebP file.") from error
    whole = io.BytesIO()
    picture.save(whole, "PNG")
    picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    small = io.BytesIO()
    picture.save(small, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(small.getvalue()).decode('ascii')}", whole.getvalue()


def _copy_with_header(path: Path, out: Path, words: Mapping[str, str]) -> None:
    header = read_header(path)
    header.pop("__metadata__", None)
    said = {"__metadata__": dict(sorted(words.items())), **header} if words else header
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with path.open("rb") as source, writing(out) as target:
        (length,) = struct.unpack("<Q", source.read(8))
        source.seek(8 + length)
        target.write(struct.pack("<Q", len(text)) + text)
        shutil.copyfileobj(source, target, 1 << 22)
