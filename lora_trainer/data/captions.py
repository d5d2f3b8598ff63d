"""Captions: read in whatever encoding they were written, put together with the trigger word, shuffled and dropped.

Everything here is a pure function of (seed, epoch, picture, repeat): batch size, resume and device change nothing.
"""

from __future__ import annotations

import codecs
import random
import re
from pathlib import Path
from typing import Literal

import attrs

from lora_trainer.data.records import ImageRecord
from lora_trainer.errors import DatasetError
from lora_trainer.files import write_atomically

Kind = Literal["trigger", "class", "kept", "shuffled", "plain"]


@attrs.frozen
class CaptionRules:
    """How captions are put together.

    `keep_tokens` counts the parts in front that shuffling leaves in place, the trigger word among them; the trigger word stays in
    front even where it is 0. `class_tokens` wins over the folder's words.
    """

    trigger_word: str = ""
    class_tokens: str = ""
    keep_tokens: int = 0
    shuffle: bool = False
    dropout_rate: float = 0.0
    separator: str = ","


def caption_of(record: ImageRecord, rules: CaptionRules) -> str:
    """The caption in its own order: the trigger word in front where it is missing; "trigger class" where there is no caption file."""
    trigger = rules.trigger_word.strip()
    if not record.has_caption:
        words = _class_words(record, rules)
        return words if holds(words, trigger) else f"{trigger} {words}".strip()
    text = first_line(record.caption)
    if holds(text, trigger):
        return text
    return f"{trigger}{rules.separator} {text}" if text else trigger


def drawn_caption(record: ImageRecord, rules: CaptionRules, *, seed: int, epoch: int, repeat: int) -> str:
    """The caption as the model reads it this time: perhaps dropped (""), perhaps shuffled behind the kept parts."""
    if not (rules.shuffle or rules.dropout_rate):
        return caption_of(record, rules)
    draw = _draw(record, seed, epoch, repeat)
    if draw.random() < rules.dropout_rate:
        return ""
    if not (rules.shuffle and record.has_caption):
        return caption_of(record, rules)
    return ", ".join(text for text, _ in _shuffled(_split(record, rules), draw))


def parts(record: ImageRecord, rules: CaptionRules, *, seed: int | None = None, epoch: int = 1, repeat: int = 0) -> list[tuple[str, Kind]]:
    """The caption's parts with what each is; in their own order, or with `seed` as drawn_caption gives them ([] when dropped)."""
    found = _split(record, rules)
    if seed is None:
        return found
    draw = _draw(record, seed, epoch, repeat)
    if draw.random() < rules.dropout_rate:
        return []
    return _shuffled(found, draw)


def holds(text: str, trigger: str) -> bool:
    """Whether the text holds the trigger word as a word of its own; letter case does not matter, as for CLIP."""
    if not trigger:
        return True
    word = re.escape(trigger.casefold())
    before = r"(?<![a-z0-9_])" if re.match(r"[a-z0-9_]", trigger.casefold()) else ""
    behind = r"(?![a-z0-9_])" if re.search(r"[a-z0-9_]$", trigger.casefold()) else ""
    return re.search(before + word + behind, text.casefold()) is not None


def first_line(text: str) -> str:
    """The first line that is not empty: as sd-scripts reads a caption file."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def read_caption(path: Path) -> str:
    """The text of a caption file whatever it was written in. Raises DatasetError that names it."""
    try:
        return decoded(path.read_bytes())
    except OSError as error:
        raise DatasetError(
            "{file} cannot be read ({why}).",
            path=str(path),
            file=path.name,
            why=error.strerror or str(error),
            fix="Change its rights, or delete it.",
        ) from error


def write_caption(path: Path, text: str) -> str:
    """Writes the caption as UTF-8 and returns the old text ("" where there was no file). Raises TrainerError."""
    old = read_caption(path) if path.exists() else ""
    write_atomically(path, text.encode("utf-8"))
    return old


def decoded(data: bytes) -> str:
    """UTF-8, UTF-16 by its mark or its zero bytes, else whichever of GB 18030, Shift JIS and Windows-1252 gives usual letters."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" not in text:
        return text
    if b"\0" in data:
        return data.decode("utf-16-be" if data[:1] == b"\0" else "utf-16-le", "replace").strip("\ufeff\0")
    return _decoded_legacy(data)


def _decoded_legacy(data: bytes) -> str:
    runs = re.findall(rb"[\x80-\xff]+", data)
    candidates = [("gb18030", _is_usual_chinese), ("cp932", _is_usual_japanese)]
    best, best_share = "", 0.5
    if max(map(len, runs)) > 1:  # letters with accents and typographic quotes stand alone, Chinese and Japanese never do
        for encoding, usual in candidates:
            try:
                text = data.decode(encoding)
            except UnicodeDecodeError:
                continue
            foreign = [sign for sign in text if ord(sign) > 127]
            share = sum(map(usual, foreign)) / len(foreign)
            if share > best_share:
                best, best_share = text, share
    if best:
        return best
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _is_usual_chinese(sign: str) -> bool:
    try:
        return len(sign.encode("gb2312")) == 2
    except UnicodeEncodeError:
        return False


def _is_usual_japanese(sign: str) -> bool:
    code = ord(sign)
    return 0x3000 <= code < 0x3100 or 0x4E00 <= code < 0xA000 or 0xFF00 <= code < 0xFF61


def _class_words(record: ImageRecord, rules: CaptionRules) -> str:
    return (rules.class_tokens or record.class_tokens).strip()


def _split(record: ImageRecord, rules: CaptionRules) -> list[tuple[str, Kind]]:
    trigger = rules.trigger_word.strip()
    whole = caption_of(record, rules)
    if not record.has_caption:
        if trigger and whole.casefold().startswith(trigger.casefold()):
            rest = whole[len(trigger) :].strip()
            return [(whole[: len(trigger)], "trigger"), *([(rest, "class")] if rest else [])]  # type: ignore[list-item]
        return [(whole, "class")] if whole else []
    texts = [part.strip() for part in whole.split(rules.separator)]
    texts = [text for text in texts if text]
    added = len([part for part in trigger.split(rules.separator) if part.strip()]) if not holds(first_line(record.caption), trigger) else 0
    leading = added or int(bool(trigger and texts and holds(texts[0], trigger)))
    keep = max(rules.keep_tokens, leading)
    behind: Kind = "shuffled" if rules.shuffle else "plain"
    in_front: Kind = "kept" if rules.shuffle else "plain"

    def kind(place: int, text: str) -> Kind:
        if place < added or (trigger and text.casefold() == trigger.casefold() and place < max(keep, 1)):
            return "trigger"
        return in_front if place < keep else behind

    return [(text, kind(place, text)) for place, text in enumerate(texts)]


def _shuffled(found: list[tuple[str, Kind]], draw: random.Random) -> list[tuple[str, Kind]]:
    front = [part for part in found if part[1] != "shuffled"]
    behind = [part for part in found if part[1] == "shuffled"]
    draw.shuffle(behind)
    return front + behind


def _draw(record: ImageRecord, seed: int, epoch: int, repeat: int) -> random.Random:
    return random.Random(f"caption|{seed}|{epoch}|{repeat}|{record.key}")
