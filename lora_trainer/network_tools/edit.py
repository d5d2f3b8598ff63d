"""Edits a file's metadata, trigger metadata and preview. The tensors are copied byte by byte."""

from __future__ import annotations

import base64
import io
import json
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from lora_trainer.adapters.files.checked_network import open_network
from lora_trainer.errors import ConfigError, ModelError, Problem
from lora_trainer.files import atomic_writer, open_regular, write_atomically
from lora_trainer.messages import say
from lora_trainer.models.files.tensor_file import read_header
from lora_trainer.network_tools.saving import read_card, write_card

PREFIXES = ("ss_", "sshs_", "modelspec.", "lora_trainer.")
METADATA_KEYS = {
    "title": "modelspec.title",
    "author": "modelspec.author",
    "description": "modelspec.description",
    "license": "modelspec.license",
    "tags": "modelspec.tags",
    "trigger": "modelspec.trigger_phrase",
}
CARD_KEYS = {"trigger": "activation text", "description": "description"}
"""Those that the WebUI's card shows -> their keys in NAME.json."""
PREVIEW_SIDE = 512
HASHES = ("sshs_model_hash", "sshs_legacy_hash")


@attrs.frozen
class EditOptions:
    """Metadata keys to set and to remove, values by short names (`METADATA_KEYS`), and a preview image."""

    metadata: Mapping[str, str] = attrs.field(factory=dict)
    removed: Sequence[str] = ()
    named: Mapping[str, str] = attrs.field(factory=dict)
    preview: Path | None = None


def edit(path: Path, out: Path, options: EditOptions) -> dict[str, str]:
    """Writes a copy with other metadata, and returns that. Trigger, description and preview are also written to the WebUI's card.

    Raises ConfigError for a key that cannot be set, ModelError for a file that is not a network and for an unreadable image.
    """
    file = open_network(path)
    _check(options, file.metadata)
    thumbnail, preview = _thumbnail(options.preview) if options.preview is not None else ("", b"")
    named = {METADATA_KEYS[name]: value for name, value in options.named.items()}
    metadata = {key: value for key, value in {**file.metadata, **options.metadata, **named}.items() if key not in options.removed}
    if thumbnail:
        metadata["modelspec.thumbnail"] = thumbnail
    _copy_with_header(path, out, metadata)
    card = {CARD_KEYS[name]: value for name, value in options.named.items() if name in CARD_KEYS}
    if card or read_card(path):
        write_card(out, {**read_card(path), **card})
    if preview:
        write_atomically(out.with_suffix(".preview.png"), preview)
    return metadata


def _check(options: EditOptions, metadata: Mapping[str, str]) -> None:
    for key in (*options.metadata, *options.removed):
        if key in HASHES:
            raise _option_error(say("{key} is computed from the tensors.", key=key), say("Leave it as it is."))
    for key in options.removed:
        if key not in metadata:
            raise _option_error(say("the header has no {key}.", key=key), say("See its metadata with network info."))
    for key in options.metadata:
        if not key.isprintable() or not key.strip() or (not key.startswith(PREFIXES) and key not in metadata):
            known = ", ".join(f"{prefix}..." for prefix in PREFIXES)
            raise _option_error(say("{key} is not a metadata key.", key=key), say("Keys begin with {known}", known=known))


def _option_error(message: object, fix: object) -> ConfigError:
    return ConfigError([Problem("--set", message, fix)])  # type: ignore[arg-type]


def _thumbnail(path: Path) -> tuple[str, bytes]:
    """An image as the data URL of a thumbnail (JPEG, sides of at most 512 pixels), and as PNG. Raises ModelError."""
    from PIL import Image, ImageOps

    try:
        with open_regular(path) as content, Image.open(content) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, ValueError) as error:
        raise ModelError("{path} is not an image that can be read.", path=str(path), fix="Choose a PNG, JPEG or WebP file.") from error
    png = io.BytesIO()
    image.save(png, "PNG")
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode('ascii')}", png.getvalue()


def _copy_with_header(path: Path, out: Path, metadata: Mapping[str, str]) -> None:
    header = read_header(path)
    header.pop("__metadata__", None)
    new_header = {"__metadata__": dict(sorted(metadata.items())), **header} if metadata else header
    text = json.dumps(new_header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with open_regular(path) as source, atomic_writer(out) as target:
        (length,) = struct.unpack("<Q", source.read(8))
        source.seek(8 + length)
        target.write(struct.pack("<Q", len(text)) + text)
        shutil.copyfileobj(source, target, 1 << 22)
