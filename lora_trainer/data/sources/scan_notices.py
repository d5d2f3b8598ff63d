"""What a scan notices on its way, as warnings with file names; and the error where no picture can be used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from lora_trainer.data.records import ImageRecord
from lora_trainer.data.sources.blueprint import Source
from lora_trainer.errors import DatasetError
from lora_trainer.messages import Message, say

NAMED = 3
"""File names that a warning lists."""


@attrs.define
class ScanNotices:
    """Keys of pictures by what was noticed of them."""

    both_captions: list[str] = attrs.field(factory=list)
    several_lines: list[str] = attrs.field(factory=list)
    empty_captions: list[str] = attrs.field(factory=list)
    other_extension: list[str] = attrs.field(factory=list)
    wrong_suffix: list[str] = attrs.field(factory=list)
    unreadable_captions: list[str] = attrs.field(factory=list)
    nul_captions: list[str] = attrs.field(factory=list)
    similar_files: list[tuple[str, str]] = attrs.field(factory=list)
    """(file, picture) where a file looks like the caption of a picture that has none."""
    json_captions: list[str] = attrs.field(factory=list)
    """Names of JSON files that lie beside pictures without captions, one for each."""
    caption_lists: list[str] = attrs.field(factory=list)
    """Names of files that look like the captions of a folder's pictures, which have none."""
    long_captions: list[str] = attrs.field(factory=list)

    def warnings(self, records: Sequence[ImageRecord], source: Source) -> Iterator[Message]:
        """One warning for each kind of notice, and those about captions and the folder's words."""
        notices = [
            (self.both_captions, "Pictures with a .txt and a .caption, of which the .txt is used ({count}): {names}"),
            (self.several_lines, "Captions with several lines, of which only the first is used ({count}): {names}"),
            (self.empty_captions, "Empty caption files ({count}): {names}"),
            (self.wrong_suffix, "Pictures of another kind than their ending says; they are used ({count}): {names}"),
            (self.unreadable_captions, "Caption files that cannot be read ({count}): {names}"),
            (self.nul_captions, "Captions that hold a NUL character, which is left out; their file may be damaged ({count}): {names}"),
            (self.caption_lists, "{names} looks like the captions and is not read: give it as the metadata file (data.in_json)."),
            (self.long_captions, "Caption files of more than 100 KB, which are no captions and are not read ({count}): {names}"),
        ]
        for keys, template in notices:
            if keys:
                yield say(template, count=len(keys), names=first_names(keys))
        yield from self._about_similar_files()
        if self.other_extension:
            yield say(
                "Pictures whose captions have another ending than {ending}; they are not used ({count}): {names}",
                count=len(self.other_extension),
                ending=source.caption_extensions[0],
                names=first_names(self.other_extension),
            )
        yield from _about_captions([record for record in records if record.usable], source)

    def _about_similar_files(self) -> Iterator[Message]:
        others, inside = self.similar_files, self.json_captions
        if inside:
            yield say(
                "{names} look like the captions of pictures and are not read ({count} files in JSON): write each caption into a .txt of "
                "its picture's name, or all of them into one metadata file (data.in_json).",
                names=first_names(inside),
                count=len(inside),
            )
        if len(others) == 1:
            ((file, picture),) = others
            wanted = f"{picture.rpartition('.')[0]}.txt"
            yield say(
                "{file} beside {picture} looks like its caption and is not read: call it {wanted}.",
                file=file,
                picture=picture,
                wanted=wanted,
            )
        elif others:
            names = first_names([file for file, _ in others])
            template = "{names} look like the captions of pictures and are not read ({count} files): call them as their pictures, but .txt"
            yield say(template, names=names, count=len(others))


def _about_captions(used: Sequence[ImageRecord], source: Source) -> Iterator[Message]:
    captioned = [record for record in used if record.has_caption]
    if captioned and len(captioned) < len(used):
        yield say("{count} of {all} pictures have a caption.", count=len(captioned), all=len(used))
    unused_class_tokens = {record.class_tokens for record in captioned if record.class_tokens} if not source.class_tokens.strip() else set()
    if unused_class_tokens:
        yield say(
            "There are captions: the folder's words ({words}) are not used for these pictures. A trigger word is put in front of captions.",
            words=", ".join(sorted(unused_class_tokens)),
        )


def first_names(names: Sequence[str]) -> str:
    """The first names of a list, with "..." if there are more."""
    return ", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")


def require_usable(root: Path, records: Sequence[ImageRecord], field: str) -> None:
    """Raises DatasetError with the first reason if none of the records can be used."""
    if any(record.usable for record in records):
        return
    refused = [record for record in records if record.reason is not None]
    if not refused:
        raise DatasetError("{folder} holds no pictures.", path=field, folder=str(root), fix="Choose the folder that holds the pictures.")
    raise DatasetError(
        "{folder} holds no picture that can be used; the first of {count}, {file}: {why}",
        path=field,
        folder=str(root),
        count=len(refused),
        file=refused[0].key,
        why=refused[0].reason,
        fix="Add whole pictures of at least 32 pixels a side.",
    )
