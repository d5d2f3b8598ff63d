"""Captions: put together with the trigger word, drawn, shuffled and dropped in sd-scripts' order.

Put in front and behind, dropped whole, one line and one word of each {a|b}, the trigger word, parted, cut while captions grow,
shuffled, parts dropped, joined with ", ", second separator. Everything is a pure function of (seed, epoch, picture, repeat), and
of the step where captions grow: batch size, resume and device change nothing.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import attrs

from lora_trainer.config.schema import DataConfig
from lora_trainer.data.records import ImageRecord
from lora_trainer.data.sources.text_decoding import decoded
from lora_trainer.errors import DatasetError
from lora_trainer.files import write_atomically

Kind = Literal["trigger", "class", "kept", "shuffled", "plain"]


class Part(NamedTuple):
    """A piece of a caption. `before` stands in front of it: all pieces, each behind its `before`, are the caption."""

    text: str
    kind: Kind
    before: str = ""


@attrs.frozen
class CaptionRules:
    """How captions are put together; the fields follow sd-scripts' options of the same meaning.

    `keep_tokens` counts the parts in front that shuffling leaves in place, the trigger word among them; the trigger word stays in
    front even where it is 0, and no part that holds it is dropped. `class_tokens` wins over the folder's words.
    `token_warmup_step` below 1 is a share of all steps.
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
    def parted(self) -> bool:
        """Whether captions are taken apart at all; else they are read as they were written."""
        return self.shuffle or self.token_warmup_step > 0 or self.tag_dropout_rate > 0

    @property
    def varied(self) -> bool:
        """Whether a picture's caption may differ from one time to the next."""
        return self.parted or self.wildcard or self.dropout_rate > 0 or self.dropout_every_n_epochs > 0


def rules_from(data: DataConfig) -> CaptionRules:
    """The rules that the options of [data] give."""
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


def caption_of(record: ImageRecord, rules: CaptionRules) -> str:
    """The caption without any chance: whole, in its own order, of several lines or words the first; for validation and lists."""
    return _joined(_composed(record, rules, None))


def drawn_caption(
    record: ImageRecord, rules: CaptionRules, *, seed: int, epoch: int, repeat: int, step: int = 0, total_steps: int = 0
) -> str:
    """The caption as the model reads it this time; `epoch` counts from 1, `step` is the number of steps done before."""
    return _joined(_composed(record, rules, _Moment(record.key, seed, epoch, repeat, step, total_steps)))


def parts(
    record: ImageRecord,
    rules: CaptionRules,
    *,
    seed: int | None = None,
    epoch: int = 1,
    repeat: int = 0,
    step: int = 0,
    total_steps: int = 0,
) -> list[Part]:
    """The pieces of caption_of, or with `seed` those of drawn_caption ([] when dropped), each with what it is."""
    return _composed(record, rules, None if seed is None else _Moment(record.key, seed, epoch, repeat, step, total_steps))


def holds(text: str, trigger: str) -> bool:
    """Whether the text holds the trigger word as a word of its own; letter case does not matter, as for CLIP."""
    if not trigger:
        return True
    word = re.escape(trigger.casefold())
    before = r"(?<![a-z0-9_])" if re.match(r"[a-z0-9_]", trigger.casefold()) else ""
    behind = r"(?![a-z0-9_])" if re.search(r"[a-z0-9_]$", trigger.casefold()) else ""
    return re.search(before + word + behind, text.casefold()) is not None


def lines_of(text: str) -> list[str]:
    """The lines of a caption file that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def first_line(text: str) -> str:
    """The first line that is not empty: what is read of a caption file where lines are not drawn."""
    return next(iter(lines_of(text)), "")


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


@attrs.frozen
class _Moment:
    """When a picture is seen: what its caption is drawn from."""

    key: str
    seed: int
    epoch: int
    repeat: int
    step: int
    total_steps: int

    def draw(self, purpose: str) -> random.Random:
        """Numbers of their own for each purpose, so that no option changes what another one draws."""
        return random.Random(f"{purpose}|{self.seed}|{self.epoch}|{self.repeat}|{self.key}")


def _composed(record: ImageRecord, rules: CaptionRules, moment: _Moment | None) -> list[Part]:
    trigger = "" if record.is_reg else rules.trigger_word.strip()
    draw = moment.draw("caption") if moment and (rules.shuffle or rules.dropout_rate > 0) else None
    dropped = draw is not None and draw.random() < rules.dropout_rate
    if dropped or (moment and rules.dropout_every_n_epochs and moment.epoch % rules.dropout_every_n_epochs == 0):
        return []
    text = _drawn_text(_around(record, rules, trigger), rules, moment)
    if not holds(text, trigger):
        text = f"{trigger}{rules.separator} {text}" if text else trigger
    if rules.parted:
        found = _mixed(text, trigger, rules, draw, moment)
    else:
        found = _as_written(text, trigger, rules)
    if not record.has_caption:
        found = [piece for part in found for piece in _told_apart(part, trigger, _class_words(record, rules))]
    if rules.secondary_separator:
        old, new = rules.secondary_separator, rules.separator
        found = [Part(part.text.replace(old, new), part.kind, part.before.replace(old, new)) for part in found]
    return found


def _joined(found: Sequence[Part]) -> str:
    return "".join(part.before + part.text for part in found)


def _around(record: ImageRecord, rules: CaptionRules, trigger: str) -> str:
    """The written caption, or trigger and class words, with prefix and suffix; several lines where one is to be drawn."""
    if record.has_caption:
        words = "\n".join(lines_of(record.caption)) if rules.wildcard else first_line(record.caption)
    else:
        words = _class_words(record, rules)
        if not holds(" ".join((rules.prefix, words, rules.suffix)), trigger):
            words = f"{trigger} {words}".strip()
    return " ".join(text for text in (rules.prefix, words, rules.suffix) if text)


def _class_words(record: ImageRecord, rules: CaptionRules) -> str:
    return (rules.class_tokens or record.class_tokens).strip()


def _drawn_text(text: str, rules: CaptionRules, moment: _Moment | None) -> str:
    """One of the lines, and in it one of the words between { | }; without a moment the first of each."""
    if not rules.wildcard or not ("\n" in text or "{" in text or "}" in text):
        return text
    draw = moment.draw("wildcard") if moment else None

    def one(choices: list[str]) -> str:
        return draw.choice(choices) if draw else choices[0]

    if "\n" in text:
        text = one(text.split("\n"))
    opening, closing = (sign for sign in _unused(text, 2))
    text = text.replace("{{", opening).replace("}}", closing)
    text = re.sub(r"\{([^}]+)\}", lambda found: one(found.group(1).split("|")), text)
    return text.replace(opening, "{").replace(closing, "}")


def _unused(text: str, count: int) -> list[str]:
    """Signs that the text does not hold."""
    return [sign for sign in map(chr, range(0xE000, 0xE000 + len(text) + count)) if sign not in text][:count]


def _tags(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]


def _leading(texts: Sequence[str], trigger: str, separator: str) -> int:
    """How many of the first parts are the trigger word's own place."""
    own = _tags(trigger, separator)
    return len(own) if own and holds(separator.join(texts[: len(own)]), separator.join(own)) else 0


def _mixed(text: str, trigger: str, rules: CaptionRules, draw: random.Random | None, moment: _Moment | None) -> list[Part]:
    """The parts of a caption, cut, shuffled and dropped behind those that are kept."""
    mark = rules.keep_tokens_separator
    last: list[str] = []
    if mark and mark in text:
        front, _, rest = text.partition(mark)
        rest, _, end = rest.partition(mark)
        first, free, last = _tags(front, rules.separator), _tags(rest, rules.separator), _tags(end, rules.separator)
    else:
        free = _tags(text, rules.separator)
        first, free = free[: rules.keep_tokens], free[rules.keep_tokens :]
    held = _leading([*first, *free], trigger, rules.separator) - len(first)
    if held > 0:
        first, free = [*first, *free[:held]], free[held:]
    if moment:
        safe = _tags(trigger, rules.separator)
        count = _length_at(len(free), rules, moment)
        free = [part for place, part in enumerate(free) if place < count or any(holds(part, word) for word in safe)]
        if rules.shuffle and draw:
            draw.shuffle(free)
        if rules.tag_dropout_rate > 0:
            chance = moment.draw("tags")
            kept = [(part, chance.random() >= rules.tag_dropout_rate) for part in free]
            free = [part for part, stays in kept if stays or any(holds(part, word) for word in safe)]
    in_front, behind = _kinds(rules)
    own = {word.casefold() for word in _tags(trigger, rules.separator)}
    found: list[tuple[str, Kind]] = [(part, "trigger" if part.casefold() in own else in_front) for part in first]
    found += [(part, behind) for part in free] + [(part, in_front) for part in last]
    return [Part(part, kind, ", " if place else "") for place, (part, kind) in enumerate(found)]


def _length_at(count: int, rules: CaptionRules, moment: _Moment) -> int:
    """How many of `count` parts are read at this step: from token_warmup_min to all of them, in a straight line."""
    end = rules.token_warmup_step
    if end < 1:
        end = math.floor(end * moment.total_steps)
    if moment.step >= end:
        return count
    return math.floor(moment.step * ((count - rules.token_warmup_min) / end)) + rules.token_warmup_min


def _as_written(text: str, trigger: str, rules: CaptionRules) -> list[Part]:
    """The parts of a caption that is read as it was written, with all that stands between and behind them."""
    found: list[tuple[str, str]] = []
    between = ""
    for number, segment in enumerate(text.split(rules.separator)):
        between += rules.separator if number else ""
        if part := segment.strip():
            begin = segment.index(part)
            found.append((part, between + segment[:begin]))
            between = segment[begin + len(part) :]
        else:
            between += segment
    own = {word.casefold() for word in _tags(trigger, rules.separator)}
    kept = max(rules.keep_tokens, _leading([part for part, _ in found], trigger, rules.separator))
    pieces = [
        Part(part, "trigger" if place < kept and part.casefold() in own else "plain", before) for place, (part, before) in enumerate(found)
    ]
    return [*pieces, Part("", "plain", between)] if between else pieces


def _kinds(rules: CaptionRules) -> tuple[Kind, Kind]:
    """What the parts in front and those behind are called."""
    return ("kept", "shuffled") if rules.shuffle else ("plain", "plain")


def _told_apart(part: Part, trigger: str, words: str) -> list[Part]:
    """A part of a picture's class words: the trigger word in front as a piece of its own."""
    head, rest = part.text[: len(trigger)], part.text[len(trigger) :]
    if trigger and head.casefold() == trigger.casefold() and (not rest or rest[0].isspace()):
        pieces = [Part(head, "trigger", part.before)]
        behind = rest.strip()
        return [*pieces, Part(behind, "class", rest[: len(rest) - len(rest.lstrip())])] if behind else pieces
    return [part._replace(kind="class")] if part.text and part.text in words else [part]
