"""What to do about a folder of pictures, the most useful first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lora_trainer.config.schema import DataConfig
from lora_trainer.messages import say
from lora_trainer.prep.doctor import Diagnosis
from lora_trainer.prep.suggestion import Suggestion

FEW = 8
ON_EVERY = 0.95
"""A tag on more than this share of the pictures is on all of them."""
WORDS_NAMED = 5


def suggestions(seen: Diagnosis, data: DataConfig) -> tuple[Suggestion, ...]:
    """Most useful first; `data`: the options that the run has."""
    found = [*_about_files(seen), *_about_captions(seen, data), *_about_sizes(seen, data)]
    return tuple(sorted(found, key=lambda one: -one.worth))


def _share(keys: Sequence[object], seen: Diagnosis) -> float:
    return len(keys) / max(1, len(seen.records))


def _about_files(seen: Diagnosis) -> Iterator[Suggestion]:
    used = seen.used
    if not used:
        yield Suggestion(100, say("No picture can be trained on."), say("Replace the broken ones, or choose another folder."))
    elif len(used) < FEW:
        yield Suggestion(
            40, say("There are only {count} pictures.", count=len(used)), say("15 to 30 different pictures are usual for one subject.")
        )
    if broken := (*seen.having("broken"), *seen.having("not-a-picture"), *seen.having("too-small")):
        yield Suggestion(
            50 + 45 * _share(broken, seen),
            say("{count} files cannot be used.", count=len(broken)),
            say("Save them again with an image program, or take them out."),
            broken,
        )
    if copies := tuple(key for key, _ in seen.copies):
        yield Suggestion(
            30 + 50 * _share(copies, seen),
            say("{count} pictures are nearly the same as others: they count twice.", count=len(copies)),
            say("Leave them out, unless it is meant so."),
            copies,
        )
    if seen.blurred:
        yield Suggestion(
            25 + 45 * _share(seen.blurred, seen),
            say("{count} pictures look blurred; the result learns that.", count=len(seen.blurred)),
            say("Leave them out, or take sharper ones."),
            seen.blurred,
        )


def _about_captions(seen: Diagnosis, data: DataConfig) -> Iterator[Suggestion]:
    used, trigger = seen.used, data.trigger_word.strip()
    if used and not any(seen.words.tokens):
        yield Suggestion(
            99,
            say("No picture has a caption, and there is neither a trigger word nor a class word."),
            say("Write a trigger word, or put a .txt caption beside each picture."),
        )
    elif seen.without_caption and len(seen.without_caption) < len(used):
        yield Suggestion(
            35 + 40 * _share(seen.without_caption, seen),
            say("{count} of {all} pictures have no caption, the others do.", count=len(seen.without_caption), all=len(used)),
            say("Write the missing ones, so that all are learned in the same way."),
            seen.without_caption,
        )
    if seen.empty_caption:
        yield Suggestion(
            45 + 30 * _share(seen.empty_caption, seen),
            say("{count} caption files are empty: these pictures are learned without words.", count=len(seen.empty_caption)),
            say("Write their captions, or delete the files so that trigger and class word are used."),
            seen.empty_caption,
        )
    if seen.too_long:
        yield Suggestion(
            35 + 45 * _share(seen.too_long, seen),
            say(
                "{count} captions are longer than {limit} tokens: what comes behind is not read.",
                count=len(seen.too_long),
                limit=seen.limit,
            ),
            say("Shorten them, or set model.max_token_length to 150 or 225.")
            if seen.limit < 225
            else say("Shorten them, what matters most in front."),
            tuple(key for key, _ in seen.too_long),
        )
    if trigger and seen.without_trigger:
        yield Suggestion(
            10 + 10 * _share(seen.without_trigger, seen),
            say("The trigger word {trigger} is not in {count} captions.", trigger=trigger, count=len(seen.without_trigger)),
            say("Nothing to do: it is put in front of them while training."),
            seen.without_trigger,
        )
    elif not trigger and any(seen.words.tokens) and not _shared_by_all(seen):
        yield Suggestion(
            60,
            say("There is no trigger word, and no tag is in every caption: nothing calls the subject."),
            say("Give a trigger word (data.trigger_word, --trigger)."),
        )
    yield from _about_words(seen)


def _about_words(seen: Diagnosis) -> Iterator[Suggestion]:
    used = seen.used
    if foreign := tuple(used[place].key for place in seen.words.foreign):
        yield Suggestion(
            40 + 50 * _share(foreign, seen),
            say("{count} captions are not in Latin letters: Stable Diffusion hardly reads them.", count=len(foreign)),
            say("Write them in English."),
            foreign,
        )
    if strange := [word for word, _, count in seen.words.strange if count > 1]:
        yield Suggestion(
            15,
            say("Words that CLIP does not know and reads in pieces: {words}", words=", ".join(strange[:WORDS_NAMED])),
            say("As a trigger word such a word is fine; in tags look for typing errors."),
        )
    if shared := _shared_by_all(seen)[1:]:
        yield Suggestion(
            12,
            say("Tags on every picture: {tags}", tags=", ".join(shared[:WORDS_NAMED])),
            say("What belongs to the subject itself can be left out of captions: it is learned with the trigger word then."),
        )


def _shared_by_all(seen: Diagnosis) -> list[str]:
    captioned = len(seen.used) - len(seen.without_caption)
    return [text for text, count in seen.tags if captioned > 1 and count >= ON_EVERY * captioned]


def _about_sizes(seen: Diagnosis, data: DataConfig) -> Iterator[Suggestion]:
    if small := seen.having("small"):
        yield Suggestion(
            20 + 45 * _share(small, seen),
            say("{count} pictures are smaller than the training size and are enlarged.", count=len(small)),
            say("Take larger ones, a smaller data.resolution, or data.bucket_no_upscale = true."),
            small,
        )
    if seen.cropped:
        yield Suggestion(
            15 + 45 * _share(seen.cropped, seen),
            say("{count} pictures lose more than a tenth of their area.", count=len(seen.cropped)),
            say("Look at their crops in the Pictures step.")
            if data.enable_bucket
            else say("Set data.enable_bucket = true: pictures keep their shape."),
            seen.cropped,
        )
    lonely = [size for size, count in seen.buckets if count < data.batch_size]
    if data.batch_size > 1 and len(lonely) > 1:
        yield Suggestion(
            10 + 20 * len(lonely) / max(1, len(seen.buckets)),
            say("{count} of {all} groups hold fewer pictures than a step takes.", count=len(lonely), all=len(seen.buckets)),
            say("Crop pictures to fewer shapes, or take a smaller data.batch_size."),
        )
