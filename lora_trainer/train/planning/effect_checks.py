"""Options that are set and have no effect, or one that nobody wants, on these pictures or in a run of this length (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import attrs

from lora_trainer.config import effective
from lora_trainer.config.changes import value_at
from lora_trainer.config.checks.effect_checks import draws_previews, is_set, no_effect
from lora_trainer.config.checks.option_checks import options
from lora_trainer.config.checks.picture_options import parse_crop
from lora_trainer.config.schema import DataConfig, TrainConfig
from lora_trainer.config.subsets import PER_DATASET, PER_SUBSET
from lora_trainer.data import batch_sampler, buckets
from lora_trainer.data.captions import draws_words, plain_caption, shuffled_tags
from lora_trainer.data.pictures import augment, masks
from lora_trainer.data.records import ImageRecord, nfc
from lora_trainer.data.sources.blueprint import resolution_of
from lora_trainer.errors import TrainerError
from lora_trainer.messages import Message, say
from lora_trainer.optim.schedules import parse_step_rules
from lora_trainer.train.inputs.dataset import TrainingDataset

AREA_GIVEN_UP = 0.1
"""Share of the area that Never enlarge may give up before it is told."""
LONG_WARMUP = 0.5
"""Share of the run above which a warm-up is told."""


@attrs.frozen(slots=False)
class RunFacts:
    """What the rules read: the config, its pictures and the run's length. Captions are read once, where a rule needs them."""

    config: TrainConfig
    dataset: TrainingDataset

    @cached_property
    def batches(self) -> int:
        """Batches per epoch."""
        return batch_sampler.batches_per_epoch(self.dataset.train_records, self.dataset.batch_sizes)

    @cached_property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        accumulation = self.config.steps.gradient_accumulation_steps
        return batch_sampler.steps_per_epoch(self.dataset.train_records, self.dataset.batch_sizes, accumulation)

    @cached_property
    def length(self) -> tuple[int, int]:
        """(epochs, steps) of the run."""
        return effective.train_length(self.config, self.steps_per_epoch)

    @cached_property
    def subjects(self) -> list[ImageRecord]:
        """The trained pictures that are not for regularisation."""
        return [record for record in self.dataset.train_records if not record.is_reg]

    @cached_property
    def longest(self) -> int:
        """The largest number of parts of a caption that are not kept in place."""
        return max((len(shuffled_tags(record, self.dataset.caption_rules_of(record))) for record in self.subjects), default=0)

    @property
    def splits_tags(self) -> bool:
        """Whether parts of captions are shuffled, dropped or added one by one in any folder."""
        return any(rules.caption_rules.splits_tags for rules in self.dataset.subsets if not rules.validation)

    def holds(self, mark: str) -> bool:
        """Whether a caption holds the mark."""
        texts = (record.caption or plain_caption(record, self.dataset.caption_rules_of(record)) for record in self.subjects)
        fixed = (self.config.data.caption_prefix, self.config.data.caption_suffix)
        return any(mark in text for text in (*fixed, *texts))


Rule = Callable[[RunFacts], Message | None]


def effect_warnings(config: TrainConfig, dataset: TrainingDataset) -> Iterator[tuple[str, Message]]:
    """(option, warning) of each set option that these pictures or this length leave without effect, or give an unwanted one."""
    facts = RunFacts(config, dataset)
    for path, option in options().items():
        if not is_set(config, option):
            continue
        message = _set_by_every_folder(path, facts)
        if message is None and (rule := RULES.get(path)) is not None:
            message = rule(facts)
        if message is not None:
            yield path, message


def _set_by_every_folder(path: str, facts: RunFacts) -> Message | None:
    section, _, name = path.partition(".")
    if section != "data" or name not in (*PER_DATASET, *PER_SUBSET):
        return None
    own = [getattr(rules.data, name) for rules in facts.dataset.subsets if not rules.validation]
    if not own or getattr(facts.config.data, name) in own:
        return None
    return no_effect(path, say("every folder sets its own."))


# --- pictures ---


def _num_repeats(facts: RunFacts) -> Message | None:
    if any(record.repeats == facts.config.data.num_repeats for record in facts.subjects):
        return None
    return no_effect("data.num_repeats", say("the names of the folders set the repeats."))


def _class_tokens(facts: RunFacts) -> Message | None:
    if all(record.has_caption for record in facts.dataset.records):
        return no_effect("data.class_tokens", say("every picture has a caption, which is used instead."))
    return None


def _caption_extension(facts: RunFacts) -> Message | None:
    if all(rules.source.metadata_file for rules in facts.dataset.subsets):
        return no_effect("data.caption_extension", say("the captions come from a metadata file."))
    return None


def _leave_out(facts: RunFacts) -> Message | None:
    if len(facts.dataset.subsets) > 1 or facts.config.data.in_json.strip():
        return None
    folder = Path(facts.config.data.train_data_dir)
    return _unknown_keys("data.leave_out", [key for key in facts.config.data.leave_out if not (folder / key).exists()])


def _crops(facts: RunFacts) -> Message | None:
    known = {record.key for record in facts.dataset.records}
    keys = [parsed[0] for crop in facts.config.data.crops if (parsed := parse_crop(crop))]
    return _unknown_keys("data.crops", [key for key in keys if nfc(key) not in known])


def _unknown_keys(path: str, keys: list[str]) -> Message | None:
    if not keys:
        return None
    return say("{option} names {file}, which is not among the pictures ({count} such names).", option=path, file=keys[0], count=len(keys))


def _batch_size(facts: RunFacts) -> Message | None:
    showings: Counter[tuple[int, object]] = Counter()
    for record in facts.dataset.train_records:
        showings[record.dataset, record.bucket] += record.repeats
    largest = max(showings.values(), default=0)
    if max(facts.dataset.batch_sizes) <= largest:
        return None
    values = {"value": max(facts.dataset.batch_sizes), "largest": largest}
    return say("data.batch_size is {value}, and the largest group of one size has {largest} pictures with their repeats.", **values)


def _bucket_no_upscale(facts: RunFacts) -> Message | None:
    """Never enlarge leaves large pictures smaller than they would be without it: sd-scripts' rule rounds their sides down."""
    changed, lost, any_enlarged = 0, [], False
    for record in facts.dataset.train_records:
        data = facts.dataset.datasets[record.dataset]
        if not data.bucket_no_upscale or record.bucket is None:
            continue
        usual = _usual_bucket(record, data)
        changed += usual.bucket != record.bucket
        enlarges = usual.resized[0] > record.width or usual.resized[1] > record.height
        any_enlarged |= enlarges
        whole = record.width * record.height if enlarges else usual.bucket[0] * usual.bucket[1]
        lost.append((1 - record.bucket[0] * record.bucket[1] / whole, record))
    if not changed:
        return no_effect("data.bucket_no_upscale", say("no picture would be enlarged."))
    count, (share, record) = sum(share > AREA_GIVEN_UP for share, _ in lost), max(lost, key=lambda pair: pair[0])
    if not count or record.bucket is None:
        return None
    values = {"count": count, "width": record.bucket[0], "height": record.bucket[1], "percent": round(share * 100)}
    if any_enlarged:  # without the switch others would be enlarged
        return say(
            "Never enlarging gives up more than a tenth of the area of {count} pictures, which need no enlarging; one of them is trained "
            "at {width} x {height}, {percent} % less: set data.bucket_reso_steps to less.",
            **values,
        )
    return say(
        "Never enlarging gives up more than a tenth of the area of {count} pictures, which need no enlarging; one of them is trained at "
        "{width} x {height}, {percent} % less: set data.bucket_no_upscale = false, or data.bucket_reso_steps to less.",
        **values,
    )


def _usual_bucket(record: ImageRecord, data: DataConfig) -> buckets.BucketChoice:
    """The bucket without Never enlarge."""
    limits = (data.min_bucket_reso, data.max_bucket_reso, data.bucket_reso_steps)
    return buckets.select_bucket((record.width, record.height), buckets.make_bucket_resolutions(resolution_of(data), *limits))


def _resize_interpolation(facts: RunFacts) -> Message | None:
    if any(record.resized != (record.width, record.height) for record in facts.dataset.records):
        return None
    return no_effect("data.resize_interpolation", say("no picture is resized."))


def _random_crop(facts: RunFacts) -> Message | None:
    if any(record.kept_area < 1 for record in facts.dataset.train_records):
        return None
    return no_effect("data.random_crop", say("nothing of any picture is cut off."))


def _face_crop(facts: RunFacts) -> Message | None:
    if any(augment.face_in_name(record) is not None for record in facts.dataset.train_records):
        return None
    return no_effect("data.face_crop_aug_range", say("no file name gives the place of a face (NAME_x_y_width_height)."))


def _of_masks(path: str) -> Rule:
    def rule(facts: RunFacts) -> Message | None:
        if not any(masks.has_mask(record) for record in facts.dataset.train_records):
            return no_effect(path, say("no picture has a mask."))
        if facts.config.data.mask_min_value >= 1:
            return no_effect("data.mask_min_value", say("what lies outside masks counts as much as the rest: the masks do nothing."))
        return None

    return rule


def _prior_loss_weight(facts: RunFacts) -> Message | None:
    if any(rules.is_reg for rules in facts.dataset.subsets):
        return None
    return no_effect("loss.prior_loss_weight", say("there are no regularisation pictures."))


# --- captions ---


def _of_parts(path: str, least: int) -> Rule:
    """For an option that moves or drops parts: some caption needs at least so many that are not kept in place."""

    def rule(facts: RunFacts) -> Message | None:
        if facts.longest >= least:
            return None
        separators = {rules.caption_rules.separator for rules in facts.dataset.subsets if not rules.validation}
        values = {"option": path, "least": least, "separator": " ".join(sorted(separators))}
        return say(
            "{option} has no effect: no caption has {least} or more parts, with {separator} between, that are not kept in place.", **values
        )

    return rule


def _token_warmup(facts: RunFacts) -> Message | None:
    data = facts.config.data
    if facts.longest <= data.token_warmup_min:
        return no_effect("data.token_warmup_step", say("no caption has more parts than those that are read at first."))
    if data.token_warmup_step >= max(1, facts.length[1]):
        values = {"end": round(data.token_warmup_step), "steps": facts.length[1]}
        return say("Captions grow until step {end}, and the run has {steps} steps: they are never read whole.", **values)
    return None


def _keep_tokens(facts: RunFacts) -> Message | None:
    if not facts.splits_tags:
        return no_effect("data.keep_tokens", say("parts of captions are neither shuffled nor dropped."))
    mark = facts.config.data.keep_tokens_separator
    if mark and all(mark in record.caption for record in facts.subjects):
        return no_effect("data.keep_tokens", say("every caption holds {mark}, which is used instead.", mark=mark))
    return None


def _of_mark(path: str) -> Rule:
    def rule(facts: RunFacts) -> Message | None:
        mark = str(value_at(facts.config, path))
        return None if facts.holds(mark) else no_effect(path, say("no caption holds {mark}.", mark=mark))

    return rule


def _wildcard(facts: RunFacts) -> Message | None:
    if any(draws_words(record, facts.dataset.caption_rules_of(record)) for record in facts.subjects):
        return None
    return no_effect("data.enable_wildcard", say("no caption has several lines or choices {mark}.", mark="{a|b}"))


def _caption_dropout(facts: RunFacts) -> Message | None:
    if facts.config.data.caption_dropout_rate < 1:
        return None
    return say("Every caption is dropped: the pictures are learned without words, and no other option of captions has an effect.")


def _caption_dropout_epochs(facts: RunFacts) -> Message | None:
    every = facts.config.data.caption_dropout_every_n_epochs
    if every == 1:
        return say("Every caption is dropped: the pictures are learned without words, and no other option of captions has an effect.")
    return _never("data.caption_dropout_every_n_epochs", every, facts)


def _caption_cache(facts: RunFacts) -> Message | None:
    if all(rules.caption_rules.splits_tags for rules in facts.dataset.subsets if not rules.validation):
        return no_effect("data.cache_text_encoder_outputs_to_disk", say("captions that differ each time are not kept."))
    return None


# --- length ---


def _never(path: str, every: int, facts: RunFacts) -> Message | None:
    """That something at every n-th epoch never happens."""
    if every <= facts.length[0]:
        return None
    return say("{option} has no effect: it is {value}, and the run has {epochs} epochs.", option=path, value=every, epochs=facts.length[0])


def _by_epochs(path: str) -> Rule:
    return lambda facts: _never(path, int(value_at(facts.config, path)), facts)


def _by_steps(path: str) -> Rule:
    def rule(facts: RunFacts) -> Message | None:
        every, total = int(value_at(facts.config, path)), facts.length[1]
        if every <= total:
            return None
        return say("{option} has no effect: it is {value}, and the run has {steps} steps.", option=path, value=every, steps=total)

    return rule


def _of_previews(rule: Rule) -> Rule:
    return lambda facts: rule(facts) if draws_previews(facts.config) else None


def _of_validation(path: str, rule: Rule) -> Rule:
    def of_validation(facts: RunFacts) -> Message | None:
        return rule(facts) if facts.dataset.validation_records else no_effect(path, say("no pictures are held back for validation."))

    return of_validation


def _max_pictures(facts: RunFacts) -> Message | None:
    count, limit = len(facts.dataset.validation_records), facts.config.validate.max_pictures
    if limit < count:
        return None
    values = {"option": "validate.max_pictures", "value": limit, "count": count}
    return say("{option} has no effect: it is {value}, and {count} pictures are held back.", **values)


def _fraction(facts: RunFacts) -> Message | None:
    return None if facts.dataset.validation_records else no_effect("validate.fraction", say("there are too few pictures to hold any back."))


def _patience(facts: RunFacts) -> Message | None:
    validate = facts.config.validate
    epochs, steps = effective.interval_epochs(validate), effective.interval_steps(validate)
    last, total = facts.length
    ends = {min(number * facts.steps_per_epoch, total) for number in range(epochs, last + 1, epochs)} if epochs else set()
    count = len(ends | set(range(steps, total + 1, steps))) if steps else len(ends)
    if not count or not facts.dataset.validation_records or validate.early_stop_patience < count:
        return None
    values = {"patience": validate.early_stop_patience, "count": count}
    return say("The run cannot end early: it validates {count} times, and waits for {patience} without a lower loss.", **values)


def _accumulation(facts: RunFacts) -> Message | None:
    wanted = facts.config.steps.gradient_accumulation_steps
    if wanted <= facts.batches:
        return None
    template = "steps.gradient_accumulation_steps is {value}, and an epoch has {batches} batches: a step never has more."
    return say(template, value=wanted, batches=facts.batches)


def _warmup(facts: RunFacts) -> Message | None:
    warmup, total = _asked_steps(facts.config.schedule.warmup_steps, facts.length[1]), facts.length[1]
    values = {"warmup": warmup, "steps": total}
    if warmup >= total:
        return say("{warmup} warm-up steps, {steps} steps in all: the learning rate never reaches its height.", **values)
    if warmup > total * LONG_WARMUP:
        return say("{warmup} warm-up steps, {steps} steps in all: for most of the run the learning rate only rises.", **values)
    return None


def _decay(facts: RunFacts) -> Message | None:
    config, total = facts.config, facts.length[1]
    decay = _asked_steps(config.schedule.decay_steps, total)
    if config.schedule.type != "warmup_stable_decay" or not decay or decay + effective.warmup_steps(config, total) < total:
        return None
    return say("{decay} steps of decay, {steps} steps in all: there are none at the full learning rate.", decay=decay, steps=total)


def _step_rules(facts: RunFacts) -> Message | None:
    late: list[int] = []
    with suppress(TrainerError):  # the plan reports rules that cannot be parsed
        late = [end for end, _ in parse_step_rules(facts.config.schedule.args)[0] if end >= facts.length[1]]
    if facts.config.schedule.type != "piecewise_constant" or not late:
        return None
    return say("The schedule changes the rate at step {step}, and the run has {steps} steps.", step=late[0], steps=facts.length[1])


def _timescale(facts: RunFacts) -> Message | None:
    scale, total = facts.config.schedule.timescale, facts.length[1]
    if facts.config.schedule.type != "inverse_sqrt" or scale < total:
        return None
    return say("The time scale is {scale} steps, and the run has {steps}: the learning rate hardly falls.", scale=scale, steps=total)


def _asked_steps(steps: int | str, total: int) -> int:
    """The steps that were asked for, which may be more than there are."""
    return steps if isinstance(steps, int) else round(float(steps.rstrip("% ")) / 100 * total)


def _rest(facts: RunFacts) -> Message | None:
    every, epochs = facts.config.steps.pause_after_n_epochs, facts.length[0]
    if every < epochs:
        return None
    return say(
        "{option} has no effect: it is {value}, and the run has {epochs} epochs.",
        option="steps.pause_after_n_epochs",
        value=every,
        epochs=epochs,
    )


RULES: Mapping[str, Rule] = {
    "data.batch_size": _batch_size,
    "data.bucket_no_upscale": _bucket_no_upscale,
    "data.cache_text_encoder_outputs_to_disk": _caption_cache,
    "data.caption_dropout_every_n_epochs": _caption_dropout_epochs,
    "data.caption_dropout_rate": _caption_dropout,
    "data.caption_extension": _caption_extension,
    "data.caption_tag_dropout_rate": _of_parts("data.caption_tag_dropout_rate", 1),
    "data.class_tokens": _class_tokens,
    "data.crops": _crops,
    "data.enable_wildcard": _wildcard,
    "data.face_crop_aug_range": _face_crop,
    "data.keep_tokens": _keep_tokens,
    "data.keep_tokens_separator": _of_mark("data.keep_tokens_separator"),
    "data.leave_out": _leave_out,
    "data.mask_min_value": _of_masks("data.mask_min_value"),
    "data.mask_threshold": _of_masks("data.mask_threshold"),
    "data.num_repeats": _num_repeats,
    "data.random_crop": _random_crop,
    "data.resize_interpolation": _resize_interpolation,
    "data.secondary_separator": _of_mark("data.secondary_separator"),
    "data.shuffle_caption": _of_parts("data.shuffle_caption", 2),
    "data.token_warmup_step": _token_warmup,
    "loss.prior_loss_weight": _prior_loss_weight,
    "sample.every_n_epochs": _of_previews(_by_epochs("sample.every_n_epochs")),
    "sample.every_n_steps": _of_previews(_by_steps("sample.every_n_steps")),
    "save.every_n_epochs": _by_epochs("save.every_n_epochs"),
    "save.every_n_steps": _by_steps("save.every_n_steps"),
    "save.state_every_n_steps": _by_steps("save.state_every_n_steps"),
    "schedule.args": _step_rules,
    "schedule.decay_steps": _decay,
    "schedule.timescale": _timescale,
    "schedule.warmup_steps": _warmup,
    "steps.gradient_accumulation_steps": _accumulation,
    "steps.pause_after_n_epochs": _rest,
    "validate.early_stop_patience": _patience,
    "validate.every_n_epochs": _of_validation("validate.every_n_epochs", _by_epochs("validate.every_n_epochs")),
    "validate.every_n_steps": _of_validation("validate.every_n_steps", _by_steps("validate.every_n_steps")),
    "validate.fraction": _fraction,
    "validate.max_pictures": _of_validation("validate.max_pictures", _max_pictures),
}
