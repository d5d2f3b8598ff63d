"""Decodes text files of unknown encoding: caption files come from old editors in China, Japan and Europe."""

from __future__ import annotations

import codecs
import re


def decode_text(data: bytes) -> str:
    """Decodes UTF-8, UTF-16 (by its BOM or zero bytes), else whichever of GB 18030, Shift JIS and Windows-1252 gives common letters.

    A NUL character within UTF-8 text stays in it.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" not in text:
        return text
    if b"\0" in data and not _is_utf_16(data):
        return data.decode("utf-8-sig")
    if b"\0" in data:
        return data.decode("utf-16-be" if data[:1] == b"\0" else "utf-16-le", "replace").strip("\ufeff\0")
    return _decode_legacy(data)


def _is_utf_16(data: bytes) -> bool:
    """Whether bytes with zeros are UTF-16 and not UTF-8 with stray NUL characters: many zeros, all first or all second of their pair."""
    first, second = data[::2].count(0), data[1::2].count(0)
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return True
    return not (first and second) and (first + second) * 4 >= len(data)


def _decode_legacy(data: bytes) -> str:
    runs = re.findall(rb"[\x80-\xff]+", data)
    candidates = [("gb18030", _is_usual_chinese), ("cp932", _is_usual_japanese)]
    best, best_share = "", 0.5
    if max(map(len, runs)) > 1:  # letters with accents and typographic quotes stand alone, Chinese and Japanese never do
        for encoding, is_usual in candidates:
            try:
                text = data.decode(encoding)
            except UnicodeDecodeError:
                continue
            non_ascii = [character for character in text if ord(character) > 127]
            share = sum(map(is_usual, non_ascii)) / len(non_ascii)
            if share > best_share:
                best, best_share = text, share
    if best:
        return best
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _is_usual_chinese(character: str) -> bool:
    try:
        return len(character.encode("gb2312")) == 2
    except UnicodeEncodeError:
        return False


def _is_usual_japanese(character: str) -> bool:
    code = ord(character)
    return 0x3000 <= code < 0x3100 or 0x4E00 <= code < 0xA000 or 0xFF00 <= code < 0xFF61
