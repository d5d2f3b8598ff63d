"""A diagnosis as text that a person reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_trainer.messages import Message, say

NAMED = 8
TAGS = 20
BAR = 30


def report(found: Mapping[str, Any], language: str) -> str:
    """Markdown of the document of `prepare scan`, suggestions first."""

    def word(message: Message) -> str:
        return message.text(language)

    return "\n".join([*_suggestions(found["suggestions"], word), *_files(found, word), *_captions(found, word)]) + "\n"


def _suggestions(found: Sequence[Mapping[str, Any]], word: Any) -> Iterator[str]:
    yield f"# {word(say('What to do'))}"
    yield ""
    for number, one in enumerate(found, start=1):
        yield f"{number}. {one['message']} {one['fix']}"
        if one["pictures"]:
            yield f"   {_named(one['pictures'])}"
    if not found:
        yield word(say("Nothing: the pictures are as they should be."))
    yield ""


def _files(found: Mapping[str, Any], word: Any) -> Iterator[str]:
    counts, sizes = found["counts"], found["sizes"]
    yield f"# {word(say('Pictures and sizes'))}"
    yield ""
    yield found["understood"]
    yield word(say("{used} of {all} files are used.", used=counts["used"], all=counts["all"]))
    for name, template in COUNTS.items():
        if counts[name]:
            yield f"- {word(template)}: {counts[name]}"
    for one in found["unusable"][:NAMED]:
        yield f"- {one['key']}: {one['reason']}"
    if sizes["smallest"]:
        values = {name: "{} x {}".format(*sizes[name]) for name in ("smallest", "middle", "largest")}
        yield word(say("Sizes from {smallest} to {largest}, in the middle {middle}.", **values))
    yield ""
    most = max((bucket["count"] for bucket in found["buckets"]), default=1)
    for bucket in found["buckets"]:
        size = f"{bucket['width']} x {bucket['height']}"
        yield f"    {size:<12} {bucket['count']:>5}  {'#' * max(1, round(BAR * bucket['count'] / most))}"
    yield ""
    yield from (f"- {note}" for note in found["notes"])


def _captions(found: Mapping[str, Any], word: Any) -> Iterator[str]:
    captions, used = found["captions"], found["counts"]["used"]
    yield ""
    yield f"# {word(say('Words'))}"
    yield ""
    yield word(say("{count} of {all} have captions", count=captions["with"], all=used))
    yield word(say("The longest has {longest} tokens, {limit} are read.", longest=captions["longest"], limit=captions["limit"]))
    for entry in captions["unknown_words"][:NAMED]:
        values = {"word": entry["word"], "pieces": entry["pieces"], "count": entry["captions"]}
        yield "- " + word(say("{word}: {pieces} pieces, in {count} captions", **values))
    yield ""
    for tag in found["tags"][:TAGS]:
        yield f"    {tag['count']:>5}  {tag['text']}"


def _named(keys: Sequence[str]) -> str:
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
