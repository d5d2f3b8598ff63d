"""Captions: trigger word, wildcards, shuffling and dropout, in sd-scripts' order.

The steps: prefix and suffix, caption dropout, one line and one choice of each {a|b}, trigger word, split into tags, token warm-up,
shuffle, tag dropout, join with the separator, secondary separator. All is a pure function of (seed, epoch, picture, repeat), with token
warm-up also of the step: batch size, resume and device change nothing.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import attrs

from lora_trainer.config.schema import DataConfig
from lora_trainer.data.records import ImageRecord
from lora_trainer.data.sources.text_decoding import decode_text
from lora_trainer.errors import DatasetError
from lora_trainer.files import read_regular, write_atomically

MAX_CAPTION_BYTES = 100_000
"""A larger file is no caption: a text encoder reads some 1000 characters."""
_CHOICES = re.compile(r"\{([^}]+)\}")

Kind = Literal["trigger", "class", "kept", "shuffled", "plain"]


class Part(NamedTuple):
    """A part of a caption. Joining `before + text` of all parts gives the caption."""

    text: str
    kind: Kind
    before: str = ""


@attrs.frozen
class CaptionRules:
    """How captions are processed; the fields follow sd-scripts' options of the same meaning.

    `keep_tokens`: number of leading tags that are not shuffled, the trigger word included; the trigger word stays in front even with
    0, and no tag that contains it is dropped. `class_tokens` overrides the folder's. `token_warmup_step` below 1 is a fraction of all
    steps.
    """

    trigger_word: str = ""
    class_tokens: str = ""
    keep_tokens: int = 0
    shuffle: bool = False
    dropout_rate: float = 0.0
    separator: str = ","
    prefix: str = ""
    suffix: str = ""
    keep_tokens_separator: str = ""
    secondary_separator: str = ""
    wildcard: bool = False
    tag_dropout_rate: float = 0.0
    dropout_every_n_epochs: int = 0
    token_warmup_min: int = 1
    token_warmup_step: float = 0.0

    @property
    def splits_tags(self) -> bool:
        """Whether captions are split into tags; else they are used as written."""
        return self.shuffle or self.token_warmup_step > 0 or self.tag_dropout_rate > 0

    @property
    def varies(self) -> bool:
        """Whether a picture's caption may differ from one showing to the next."""
        return self.splits_tags or self.wildcard or self.dropout_rate > 0 or self.dropout_every_n_epochs > 0


def rules_from(data: DataConfig) -> CaptionRules:
    """The rules of the options in [data]."""
    return CaptionRules(
        trigger_word=data.trigger_word,
        class_tokens=data.class_tokens,
        keep_tokens=data.keep_tokens,
        shuffle=data.shuffle_caption,
        dropout_rate=data.caption_dropout_rate,
        separator=data.caption_separator,
        prefix=data.caption_prefix,
        suffix=data.caption_suffix,
        keep_tokens_separator=data.keep_tokens_separator,
        secondary_separator=data.secondary_separator,
        wildcard=data.enable_wildcard,
        tag_dropout_rate=data.caption_tag_dropout_rate,
        dropout_every_n_epochs=data.caption_dropout_every_n_epochs,
        token_warmup_min=data.token_warmup_min,
        token_warmup_step=data.token_warmup_step,
    )


def plain_caption(record: ImageRecord, rules: CaptionRules) -> str:
    """The caption without randomness: nothing dropped or shuffled, the first of several lines or choices; for validation and lists."""
    return _join(_compose(record, rules, None))


def process_caption(
    record: ImageRecord, rules: CaptionRules, *, seed: int, epoch: int, repeat: int, step: int = 0, total_steps: int = 0
) -> str:
    """The caption of one showing; `epoch` counts from 1, `step` is the number of steps done before."""
    return _join(_compose(record, rules, _Showing(record.key, seed, epoch, repeat, step, total_steps)))


def caption_parts(
    record: ImageRecord,
    rules: CaptionRules,
    *,
    seed: int | None = None,
    epoch: int = 1,
    repeat: int = 0,
    step: int = 0,
    total_steps: int = 0,
) -> list[Part]:
    """The parts of plain_caption, or with `seed` those of process_caption ([] if dropped), each with its kind."""
    return _compose(record, rules, None if seed is None else _Showing(record.key, seed, epoch, repeat, step, total_steps))


def caption_tags(record: ImageRecord, rules: CaptionRules) -> list[str]:
    """The tags that may be read of the picture's own caption, each once: of every line and choice where these are drawn, without marks."""
    lines = caption_lines(record.caption) if rules.wildcard else [first_line(record.caption)]
    texts = [choice for line in lines for choice in (_all_choices(line) if rules.wildcard else [line])]
    if rules.keep_tokens_separator:
        texts = [text.replace(rules.keep_tokens_separator, rules.separator) for text in texts]
    if rules.secondary_separator:
        texts = [text.replace(rules.secondary_separator, rules.separator) for text in texts]
    return list(dict.fromkeys(tag for text in texts for tag in _split_tags(text, rules.separator)))


def draws_words(record: ImageRecord, rules: CaptionRules) -> bool:
    """Whether the picture's text has lines or choices {a|b} to draw from."""
    text = "".join((rules.prefix, rules.suffix, record.caption if record.has_caption else _class_tokens(record, rules)))
    return "{" in text or "}" in text or len(caption_lines(record.caption)) > 1


def contains_trigger(text: str, trigger: str) -> bool:
    """Whether the text contains the trigger word as a whole word; letter case does not matter, as for CLIP."""
    if not trigger:
        return True
    word = re.escape(trigger.casefold())
    before = r"(?<![a-z0-9_])" if re.match(r"[a-z0-9_]", trigger.casefold()) else ""
    after = r"(?![a-z0-9_])" if re.search(r"[a-z0-9_]$", trigger.casefold()) else ""
    return re.search(before + word + after, text.casefold()) is not None


def caption_lines(text: str) -> list[str]:
    """The non-empty lines of a caption, stripped."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def first_line(text: str) -> str:
    """The first non-empty line, which is the caption unless lines are wildcards."""
    return next(iter(caption_lines(text)), "")


def read_caption(path: Path) -> str:
    """The text of a caption file in any encoding. Raises DatasetError that names it."""
    try:
        return decode_text(read_regular(path, MAX_CAPTION_BYTES))
    except OSError as error:
        raise DatasetError(
            "{file} cannot be read ({why}).",
            path=str(path),
            file=path.name,
            why=error.strerror or str(error),
            fix="Change its permissions, or delete it.",
        ) from error


def write_caption(path: Path, text: str) -> str:
    """Writes the caption as UTF-8 and returns the old text ("" if there was no file). Raises TrainerError."""
    old = read_caption(path) if path.exists() else ""
    write_atomically(path, text.encode("utf-8"))
    return old


@attrs.frozen
class _Showing:
    """One showing of a picture, which seeds its caption."""

    key: str
    seed: int
    epoch: int
    repeat: int
    step: int
    total_steps: int

    def rng(self, purpose: str) -> random.Random:
        """A generator for each purpose, so that no option changes what another one draws."""
        return random.Random(f"{purpose}|{self.seed}|{self.epoch}|{self.repeat}|{self.key}")


def _compose(record: ImageRecord, rules: CaptionRules, showing: _Showing | None) -> list[Part]:
    trigger = "" if record.is_reg else rules.trigger_word.strip()
    rng = showing.rng("caption") if showing and (rules.shuffle or rules.dropout_rate > 0) else None
    dropped = rng is not None and rng.random() < rules.dropout_rate
    if dropped or (showing and rules.dropout_every_n_epochs and showing.epoch % rules.dropout_every_n_epochs == 0):
        return []
    text = _whole_text(record, rules, trigger, showing)
    if rules.splits_tags:
        parts = _shuffle_and_drop(text, trigger, rules, rng, showing)
    else:
        parts = _split_verbatim(text, trigger, rules)
    if not record.has_caption:
        parts = [piece for part in parts for piece in _split_class_tokens(part, trigger, _class_tokens(record, rules))]
    if rules.secondary_separator:
        old, new = rules.secondary_separator, rules.separator
        parts = [Part(part.text.replace(old, new), part.kind, part.before.replace(old, new)) for part in parts]
    return parts


def _whole_text(record: ImageRecord, rules: CaptionRules, trigger: str, showing: _Showing | None) -> str:
    """The caption with prefix, suffix and trigger word, one line and one choice of each {a|b}."""
    text = _choose_wildcards(_add_prefix_and_suffix(record, rules, trigger), rules, showing)
    if contains_trigger(text, trigger):
        return text
    return f"{trigger}{_joint(rules.separator)}{text}" if text else trigger


def _join(parts: Sequence[Part]) -> str:
    return "".join(part.before + part.text for part in parts)


def _add_prefix_and_suffix(record: ImageRecord, rules: CaptionRules, trigger: str) -> str:
    """The caption, or trigger and class tokens, with prefix and suffix; all lines if they are wildcards."""
    if record.has_caption:
        caption = "\n".join(caption_lines(record.caption)) if rules.wildcard else first_line(record.caption)
    else:
        caption = _class_tokens(record, rules)
        if not contains_trigger(" ".join((rules.prefix, caption, rules.suffix)), trigger):
            caption = f"{trigger} {caption}".strip()
    return " ".join(text for text in (rules.prefix, caption, rules.suffix) if text)


def _class_tokens(record: ImageRecord, rules: CaptionRules) -> str:
    return (rules.class_tokens or record.class_tokens).strip()


def _choose_wildcards(text: str, rules: CaptionRules, showing: _Showing | None) -> str:
    """One of the lines, and in it one of the choices of each {a|b}; the first ones without a showing."""
    if not rules.wildcard or not ("\n" in text or "{" in text or "}" in text):
        return text
    rng = showing.rng("wildcard") if showing else None

    def choose(choices: list[str]) -> str:
        return rng.choice(choices) if rng else choices[0]

    if "\n" in text:
        text = choose(text.split("\n"))
    return _with_choices(text, choose)


def _with_choices(text: str, choose: Callable[[list[str]], str]) -> str:
    """The text with one of the choices in place of each {a|b}, and plain brackets for {{ and }}."""
    opening, closing = (character for character in _unused_characters(text, 2))
    text = text.replace("{{", opening).replace("}}", closing)
    end = text.rfind("}") + 1  # behind it nothing closes: searching there would take quadratic time
    text = _CHOICES.sub(lambda match: choose(match.group(1).split("|")), text[:end]) + text[end:]
    return text.replace(opening, "{").replace(closing, "}")


def _all_choices(text: str) -> list[str]:
    """Texts that together hold every choice of each {a|b}; the first has the first ones."""
    counts = [match.group(1).count("|") + 1 for match in _CHOICES.finditer(text.replace("{{", "").replace("}}", ""))]

    def chooser(number: int) -> Callable[[list[str]], str]:
        return lambda choices: choices[number % len(choices)]

    return [_with_choices(text, chooser(number)) for number in range(max(counts, default=1))]


def _unused_characters(text: str, count: int) -> list[str]:
    """Characters that are not in the text."""
    return [character for character in map(chr, range(0xE000, 0xE000 + len(text) + count)) if character not in text][:count]


def _split_tags(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]


def _count_trigger_tags(texts: Sequence[str], trigger: str, separator: str) -> int:
    """How many of the leading tags are the trigger word."""
    trigger_tags = _split_tags(trigger, separator)
    leads = contains_trigger(separator.join(texts[: len(trigger_tags)]), separator.join(trigger_tags))
    return len(trigger_tags) if trigger_tags and leads else 0


def shuffled_tags(record: ImageRecord, rules: CaptionRules) -> list[str]:
    """The tags of the plain caption that are shuffled, dropped and added one by one where that is asked for: those not kept in place."""
    trigger = "" if record.is_reg else rules.trigger_word.strip()
    return _fixed_and_flexible(_whole_text(record, rules, trigger, None), trigger, rules)[1]


def _fixed_and_flexible(text: str, trigger: str, rules: CaptionRules) -> tuple[list[str], list[str], list[str]]:
    """(tags kept in front, tags that may be shuffled and dropped, tags kept at the end)."""
    separator = rules.keep_tokens_separator
    fixed_suffix: list[str] = []
    if separator and separator in text:
        head, _, rest = text.partition(separator)
        rest, _, end = rest.partition(separator)
        fixed_tags, flex_tags, fixed_suffix = (_split_tags(part, rules.separator) for part in (head, rest, end))
    else:
        flex_tags = _split_tags(text, rules.separator)
        fixed_tags, flex_tags = flex_tags[: rules.keep_tokens], flex_tags[rules.keep_tokens :]
    trigger_count = _count_trigger_tags([*fixed_tags, *flex_tags], trigger, rules.separator) - len(fixed_tags)
    if trigger_count > 0:
        fixed_tags, flex_tags = [*fixed_tags, *flex_tags[:trigger_count]], flex_tags[trigger_count:]
    return fixed_tags, flex_tags, fixed_suffix


def _shuffle_and_drop(text: str, trigger: str, rules: CaptionRules, rng: random.Random | None, showing: _Showing | None) -> list[Part]:
    """The tags of a caption: the fixed ones in front, the others cut by token warm-up, shuffled and dropped."""
    fixed_tags, flex_tags, fixed_suffix = _fixed_and_flexible(text, trigger, rules)
    if showing:
        protected = _split_tags(trigger, rules.separator)
        count = _warmup_length(len(flex_tags), rules, showing)
        flex_tags = [tag for index, tag in enumerate(flex_tags) if index < count or any(contains_trigger(tag, word) for word in protected)]
        if rules.shuffle and rng:
            rng.shuffle(flex_tags)
        if rules.tag_dropout_rate > 0:
            dropout_rng = showing.rng("tags")
            drawn = [(tag, dropout_rng.random() >= rules.tag_dropout_rate) for tag in flex_tags]
            flex_tags = [tag for tag, is_kept in drawn if is_kept or any(contains_trigger(tag, word) for word in protected)]
    fixed_kind, flex_kind = _tag_kinds(rules)
    trigger_tags = {word.casefold() for word in _split_tags(trigger, rules.separator)}
    tags: list[tuple[str, Kind]] = [(tag, "trigger" if tag.casefold() in trigger_tags else fixed_kind) for tag in fixed_tags]
    tags += [(tag, flex_kind) for tag in flex_tags] + [(tag, fixed_kind) for tag in fixed_suffix]
    between = _joint(rules.separator)
    return [Part(tag, kind, between if index else "") for index, (tag, kind) in enumerate(tags)]


def _joint(separator: str) -> str:
    """What stands between tags that were split at `separator`: it and a space, unless it ends in one."""
    return separator if separator[-1:].isspace() else f"{separator} "


def _warmup_length(count: int, rules: CaptionRules, showing: _Showing) -> int:
    """How many of `count` tags are used at this step: linear from token_warmup_min to all of them."""
    end = rules.token_warmup_step
    if end < 1:
        end = math.floor(end * showing.total_steps)
    if showing.step >= end:
        return count
    return math.floor(showing.step * ((count - rules.token_warmup_min) / end)) + rules.token_warmup_min


def _split_verbatim(text: str, trigger: str, rules: CaptionRules) -> list[Part]:
    """The tags of a caption that is used as written, with all separators and spaces between and after them."""
    tags: list[tuple[str, str]] = []
    between = ""
    for number, segment in enumerate(text.split(rules.separator)):
        between += rules.separator if number else ""
        if tag := segment.strip():
            start = segment.index(tag)
            tags.append((tag, between + segment[:start]))
            between = segment[start + len(tag) :]
        else:
            between += segment
    trigger_tags = {word.casefold() for word in _split_tags(trigger, rules.separator)}
    fixed = max(rules.keep_tokens, _count_trigger_tags([tag for tag, _ in tags], trigger, rules.separator))
    pieces = [
        Part(tag, "trigger" if index < fixed and tag.casefold() in trigger_tags else "plain", before)
        for index, (tag, before) in enumerate(tags)
    ]
    return [*pieces, Part("", "plain", between)] if between else pieces


def _tag_kinds(rules: CaptionRules) -> tuple[Kind, Kind]:
    """Kinds of the fixed tags and of the others."""
    return ("kept", "shuffled") if rules.shuffle else ("plain", "plain")


def _split_class_tokens(part: Part, trigger: str, class_tokens: str) -> list[Part]:
    """Splits the trigger word off a part that is made of class tokens."""
    head, rest = part.text[: len(trigger)], part.text[len(trigger) :]
    if trigger and head.casefold() == trigger.casefold() and (not rest or rest[0].isspace()):
        parts = [Part(head, "trigger", part.before)]
        class_text = rest.strip()
        return [*parts, Part(class_text, "class", rest[: len(rest) - len(rest.lstrip())])] if class_text else parts
    return [part._replace(kind="class")] if part.text and part.text in class_tokens else [part]
