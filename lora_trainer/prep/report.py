"""A diagnosis as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_trainer.messages import Message, say

NAMED = 8
TAGS = 20
BAR = 30


def report(document: Mapping[str, Any], language: str) -> str:
    """Markdown of the document of `prepare scan --json`, suggestions first."""

    def word(message: Message) -> str:
        return message.text(language)

    return "\n".join([*_suggestions(document["suggestions"], word), *_files(document, word), *_captions(document, word)]) + "\n"


def _suggestions(suggestions: Sequence[Mapping[str, Any]], word: Any) -> Iterator[str]:
    yield f"# {word(say('What to do'))}"
    yield ""
    for number, suggestion in enumerate(suggestions, start=1):
        yield f"{number}. {suggestion['message']} {suggestion['fix']}"
        if suggestion["pictures"]:
            yield f"   {_first_keys(suggestion['pictures'])}"
    if not suggestions:
        yield word(say("Nothing: the pictures are as they should be."))
    yield ""


def _files(document: Mapping[str, Any], word: Any) -> Iterator[str]:
    counts, sizes = document["counts"], document["sizes"]
    yield f"# {word(say('Pictures and sizes'))}"
    yield ""
    yield document["understood"]
    yield word(say("{used} of {all} files are used.", used=counts["used"], all=counts["all"]))
    for name, template in COUNTS.items():
        if counts[name]:
            yield f"- {word(template)}: {counts[name]}"
    for file in document["unusable"][:NAMED]:
        yield f"- {file['key']}: {file['reason']}"
    if sizes["smallest"]:
        values = {name: "{} x {}".format(*sizes[name]) for name in ("smallest", "middle", "largest")}
        yield word(say("Sizes from {smallest} to {largest}, in the middle {middle}.", **values))
    yield ""
    largest = max((bucket["count"] for bucket in document["buckets"]), default=1)
    for bucket in document["buckets"]:
        size = f"{bucket['width']} x {bucket['height']}"
        yield f"    {size:<12} {bucket['count']:>5}  {'#' * max(1, round(BAR * bucket['count'] / largest))}"
    yield ""
    yield from (f"- {note}" for note in document["notes"])


def _captions(document: Mapping[str, Any], word: Any) -> Iterator[str]:
    captions, used = document["captions"], document["counts"]["used"]
    yield ""
    yield f"# {word(say('Words'))}"
    yield ""
    yield word(say("{count} of {all} have captions", count=captions["with"], all=used))
    yield word(say("The longest has {longest} tokens, {limit} are read.", longest=captions["longest"], limit=captions["limit"]))
    for entry in captions["unknown_words"][:NAMED]:
        values = {"word": entry["word"], "pieces": entry["pieces"], "count": entry["captions"]}
        yield "- " + word(say("{word}: {pieces} pieces, in {count} captions", **values))
    yield ""
    for tag in document["tags"][:TAGS]:
        yield f"    {tag['count']:>5}  {tag['text']}"


def _first_keys(keys: Sequence[str]) -> str:
    return ", ".join(keys[:NAMED]) + (" ..." if len(keys) > NAMED else "")


COUNTS = {
    "rotated": say("Turned as their EXIF data says"),
    "transparent": say("With transparency"),
    "small": say("Enlarged"),
    "cropped": say("Cropped by more than a tenth"),
    "copy": say("Nearly the same as another"),
    "blurred": say("Perhaps blurred"),
    "regularisation": say("Regularisation pictures"),
    "left_out": say("Left out by you"),
}
