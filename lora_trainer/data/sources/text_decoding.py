"""Text files of unknown encoding: ten years of caption files come from editors in China, Japan and Europe."""

from __future__ import annotations

import codecs
import re


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
