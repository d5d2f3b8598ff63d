"""Suggestions for a folder of pictures, the most useful first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lora_trainer.config.schema import DataConfig
from lora_trainer.messages import say
from lora_trainer.prep.doctor import Diagnosis
from lora_trainer.prep.suggestion import Suggestion

FEW = 8
ON_EVERY = 0.95
"""A tag in at least this share of the captions counts as one in all of them."""
WORDS_NAMED = 5


def suggestions(diagnosis: Diagnosis, data: DataConfig) -> tuple[Suggestion, ...]:
    """Suggestions, most useful first; `data`: the options of the run."""
    unsorted = [*_about_files(diagnosis), *_about_captions(diagnosis, data), *_about_sizes(diagnosis, data)]
    return tuple(sorted(unsorted, key=lambda suggestion: -suggestion.worth))


def _share(keys: Sequence[object], diagnosis: Diagnosis) -> float:
    return len(keys) / max(1, len(diagnosis.records))


def _about_files(diagnosis: Diagnosis) -> Iterator[Suggestion]:
    used = diagnosis.used
    if not used:
        yield Suggestion(100, say("No picture can be trained on."), say("Replace the broken ones, or choose another folder."))
    elif len(used) < FEW:
        yield Suggestion(
            40, say("There are only {count} pictures.", count=len(used)), say("15 to 30 different pictures are usual for one subject.")
        )
    if broken := (*diagnosis.keys_with("broken"), *diagnosis.keys_with("not-a-picture"), *diagnosis.keys_with("too-small")):
        yield Suggestion(
            50 + 45 * _share(broken, diagnosis),
            say("{count} files cannot be used.", count=len(broken)),
            say("Save them again with an image program, or take them out."),
            broken,
        )
    if copies := tuple(key for key, _ in diagnosis.copies):
        yield Suggestion(
            30 + 50 * _share(copies, diagnosis),
            say("{count} pictures are nearly the same as others: they count twice.", count=len(copies)),
            say("Leave them out, unless it is meant so."),
            copies,
        )
    if diagnosis.blurred:
        yield Suggestion(
            25 + 45 * _share(diagnosis.blurred, diagnosis),
            say("{count} pictures look blurred; the result learns that.", count=len(diagnosis.blurred)),
            say("Leave them out, or take sharper ones."),
            diagnosis.blurred,
        )


def _about_captions(diagnosis: Diagnosis, data: DataConfig) -> Iterator[Suggestion]:
    used, trigger = diagnosis.used, data.trigger_word.strip()
    if used and not any(diagnosis.caption_statistics.tokens):
        yield Suggestion(
            99,
            say("No picture has a caption, and there is neither a trigger word nor a class word."),
            say("Write a trigger word, or put a .txt caption beside each picture."),
        )
    elif diagnosis.without_caption and len(diagnosis.without_caption) < len(used):
        yield Suggestion(
            35 + 40 * _share(diagnosis.without_caption, diagnosis),
            say("{count} of {all} pictures have no caption, the others do.", count=len(diagnosis.without_caption), all=len(used)),
            say("Write the missing ones, so that all are learned in the same way."),
            diagnosis.without_caption,
        )
    if diagnosis.empty_caption:
        yield Suggestion(
            45 + 30 * _share(diagnosis.empty_caption, diagnosis),
            say("{count} caption files are empty: these pictures are learned without words.", count=len(diagnosis.empty_caption)),
            say("Write their captions, or delete the files so that trigger and class word are used."),
            diagnosis.empty_caption,
        )
    if diagnosis.too_long:
        yield Suggestion(
            35 + 45 * _share(diagnosis.too_long, diagnosis),
            say(
                "{count} captions are longer than {limit} tokens: what comes behind is not read.",
                count=len(diagnosis.too_long),
                limit=diagnosis.limit,
            ),
            say("Shorten them, or set model.max_token_length to 150 or 225.")
            if diagnosis.limit < 225
            else say("Shorten them, what matters most in front."),
            tuple(key for key, _ in diagnosis.too_long),
        )
    if trigger and diagnosis.without_trigger:
        yield Suggestion(
            10 + 10 * _share(diagnosis.without_trigger, diagnosis),
            say("The trigger word {trigger} is not in {count} captions.", trigger=trigger, count=len(diagnosis.without_trigger)),
            say("Nothing to do: it is put in front of them while training."),
            diagnosis.without_trigger,
        )
    elif not trigger and any(diagnosis.caption_statistics.tokens) and not _tags_of_all(diagnosis):
        yield Suggestion(
            60,
            say("There is no trigger word, and no tag is in every caption: nothing calls the subject."),
            say("Give a trigger word (data.trigger_word, --trigger)."),
        )
    yield from _about_words(diagnosis)


def _about_words(diagnosis: Diagnosis) -> Iterator[Suggestion]:
    used = diagnosis.used
    if non_latin := tuple(used[index].key for index in diagnosis.caption_statistics.non_latin):
        yield Suggestion(
            40 + 50 * _share(non_latin, diagnosis),
            say("{count} captions are not in Latin letters: Stable Diffusion hardly reads them.", count=len(non_latin)),
            say("Write them in English."),
            non_latin,
        )
    if split_words := [word for word, _, count in diagnosis.caption_statistics.split_words if count > 1]:
        yield Suggestion(
            15,
            say("Words that CLIP does not know and reads in pieces: {words}", words=", ".join(split_words[:WORDS_NAMED])),
            say("As a trigger word such a word is fine; in tags look for typing errors."),
        )
    if shared := _tags_of_all(diagnosis)[1:]:
        yield Suggestion(
            12,
            say("Tags on every picture: {tags}", tags=", ".join(shared[:WORDS_NAMED])),
            say("What belongs to the subject itself can be left out of captions: it is learned with the trigger word then."),
        )


def _tags_of_all(diagnosis: Diagnosis) -> list[str]:
    captioned = len(diagnosis.used) - len(diagnosis.without_caption)
    return [text for text, count in diagnosis.tags if captioned > 1 and count >= ON_EVERY * captioned]


def _about_sizes(diagnosis: Diagnosis, data: DataConfig) -> Iterator[Suggestion]:
    if small := diagnosis.keys_with("small"):
        yield Suggestion(
            20 + 45 * _share(small, diagnosis),
            say("{count} pictures are smaller than the training size and are enlarged.", count=len(small)),
            say("Take larger ones, a smaller data.resolution, or data.bucket_no_upscale = true."),
            small,
        )
    if diagnosis.cropped:
        yield Suggestion(
            15 + 45 * _share(diagnosis.cropped, diagnosis),
            say("{count} pictures lose more than a tenth of their area.", count=len(diagnosis.cropped)),
            say("Look at their crops in the Pictures step.")
            if data.enable_bucket
            else say("Set data.enable_bucket = true: pictures keep their shape."),
            diagnosis.cropped,
        )
    lonely = [size for size, count in diagnosis.buckets if count < data.batch_size]
    if data.batch_size > 1 and len(lonely) > 1:
        yield Suggestion(
            10 + 20 * len(lonely) / max(1, len(diagnosis.buckets)),
            say("{count} of {all} groups hold fewer pictures than a step takes.", count=len(lonely), all=len(diagnosis.buckets)),
            say("Crop pictures to fewer shapes, or take a smaller data.batch_size."),
        )
