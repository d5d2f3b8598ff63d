"""A training run from config to files, as a generator of events; nothing runs until somebody iterates."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import attrs
import torch

from lora_trainer.config import derive
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import Control
from lora_trainer.data import order
from lora_trainer.errors import HostBusy, TrainingError
from lora_trainer.events import (
    Event,
    Finished,
    Paused,
    Phase,
    Progress,
    Resumed,
    Started,
    Stepped,
    Stopped,
    Warned,
)
from lora_trainer.host.base import Host, Lease, with_remedy
from lora_trainer.jobs.ranks import ALONE, Place
from lora_trainer.train import setup
from lora_trainer.train.conditioning import ROWS, reach
from lora_trainer.train.course import Course
from lora_trainer.train.gradient import Gradient
from lora_trainer.train.output import Output, Silent
from lora_trainer.train.plan import Machine, make_plan
from lora_trainer.train.previews import Previews
from lora_trainer.train.runtime import choose_precision, vram_mb
from lora_trainer.train.saving import Names, claimed, refuse_overwriting
from lora_trainer.train.shares import Shares, joined
from lora_trainer.train.update import Updater
from lora_trainer.train.validate import Validation
from lora_trainer.train.wording import Wording

MOVED_AFTER = 10
BAD_STEPS = 10
WORTH_TELLING = 4 * ROWS
"""More captions than this are a phase of their own."""


def run(config: TrainConfig, host: Host, control: Control, folder: Path, place: Place = ALONE) -> Iterator[Event]:
    """Trains as `config` says and yields what happens; `folder` is the run's own (samples go there).

    Of several processes each iterates its own; only the first one writes. Ends with Finished or Stopped; raises TrainerError. The
    host is given back in every case.
    """
    names = Names(Path(config.save.output_dir or host.paths().lora_dir), derive.output_name(config))
    if place.leads:
        refuse_overwriting(names, config.save.overwrite)
    pictures = setup.read_pictures(config)
    setup.check_optimizer(config)
    setup.preview_requests(config)
    with host.lease(config.model) as lease, joined(place, lease.device) as shares, _claimed(names, config, place):
        machine = Machine(lease.device.type, host.memory()["free_mb"])
        plan = make_plan(config, pictures.records, setup.facts_of(lease.checkpoint), machine, pictures.datasets, place.count)
        shares.require_same(setup.digest(config, pictures))
        precision = choose_precision(config.memory.mixed_precision, lease.source, lease.device)
        yield Started(plan.to_json(), str(lease.device), str(precision.base).removeprefix("torch."), place.count)
        yield from setup.early_warnings(config, pictures, lease.checkpoint)
        trainer = setup.prepare(config, pictures if place.leads else pictures.without_held(), lease, host.paths().cache_dir)
        trainer.requests = trainer.requests if place.leads else ()
        trainer.attach()
        try:
            run = _Run.of(trainer, Course(plan), names, lease, shares.listening(control), folder, shares)
            yield from run.events()
        finally:
            trainer.detach()
            trainer.cache.close()
    host.refresh_networks()
    yield (Stopped if run.stopped else Finished)(run.course.step, tuple(str(path) for path in run.course.files))


def _claimed(names: Names, config: TrainConfig, place: Place) -> AbstractContextManager[None]:
    return claimed(names, config.save.overwrite) if place.leads else nullcontext()


@attrs.define(eq=False)
class _Run:
    """One run between its steps."""

    trainer: setup.Trainer
    course: Course
    control: Control
    lease: Lease
    names: Names
    words: Wording
    gradient: Gradient
    updater: Updater
    output: Output
    previews: Previews
    validation: Validation
    shares: Shares
    stopped: bool = False
    bad: int = 0

    @classmethod
    def of(cls, trainer: setup.Trainer, course: Course, names: Names, lease: Lease, control: Control, folder: Path, shares: Shares) -> _Run:
        words = Wording(trainer.pictures, trainer.config.seed, course)
        output = (Output if shares.place.leads else Silent)(trainer, course, names, lease)
        return cls(
            trainer=trainer,
            course=course,
            control=control,
            lease=lease,
            names=names,
            words=words,
            gradient=Gradient(trainer, course, words, shares),
            updater=Updater(trainer.optimizer, trainer.scaler),
            output=output,
            previews=Previews(trainer, course, output, lease, control.now, folder / "samples"),
            validation=Validation(trainer, course, words, control.now),
            shares=shares,
        )

    @property
    def config(self) -> TrainConfig:
        return self.trainer.config

    def events(self) -> Iterator[Event]:
        """The whole run: cache, look before training, epochs, the last file."""
        if self.config.data.cache_latents or self.trainer.pictures.held:
            yield Phase("caching", len(self.trainer.pictures.records))
            for event in setup.fill_cache(self.trainer, self.control.now, self.shares):
                yield event
                if self.control.pausing:
                    yield from self._pause()
        self.control.agree()
        if not self.control.stopping:
            yield from self.validation.look()
            if self.config.sample.at_first:
                yield from self.previews.draw()
        yield Phase("training", self.course.plan.total_steps)
        while not self.course.over and not self.control.stopping:
            self.course.epoch += 1
            yield from self._one_epoch()
        yield from self._end()

    def _one_epoch(self) -> Iterator[Event]:
        course, groups = self.course, self._groups()
        course.groups = encoded = 0
        while course.groups < len(groups):
            yield from self._between_steps()
            if course.groups >= encoded and not self.control.stopping:
                encoded = course.groups + (yield from self._encode_ahead(groups[course.groups :]))
            if self.control.stopping or course.over:
                return
            yield self._one_step(groups[course.groups])
            yield from self._after_step(course.groups == len(groups))

    def _groups(self) -> list[list[tuple[order.Item, ...]]]:
        """The batches of this epoch, those of each step together."""
        pictures, accumulation = self.trainer.pictures, self.config.steps.gradient_accumulation_steps
        sizes = [size * self.shares.place.count for size in pictures.batch_sizes]
        batches = order.epoch_batches(pictures.trained, batch_size=sizes, seed=self.config.seed, epoch=self.course.epoch)
        return [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]

    def _encode_ahead(self, groups: Sequence[Sequence[Sequence[order.Item]]]) -> Generator[Event, None, int]:
        """Encodes the captions of the steps that come, as far as they may be kept; returns how many steps that are."""
        captions, left = self.trainer.captions, groups[: self.course.plan.total_steps - self.course.step]
        if captions.trained:
            return len(groups)
        step = self.course.step
        own = ([item for batch in group for item in self.shares.of(batch)] for group in left)
        showings = ([self.words.of(item, step + number) for item in group] for number, group in enumerate(own))
        texts, count = reach(showings, captions.room())
        captions.forget_others([*texts, *map(self.words.held, self.trainer.pictures.held)])
        missing = captions.missing(texts)
        if len(missing) > WORTH_TELLING:
            yield Phase("encoding", len(missing))
        for start in range(0, len(missing), ROWS):
            if start and self.shares.place.alone:  # others have other captions to encode: they meet between the steps only
                yield from self._between_steps()
            if self.control.stopping:
                break
            captions.fill(self.trainer.bundle, missing[start : start + ROWS])
            if len(missing) > WORTH_TELLING:
                yield Progress(min(start + ROWS, len(missing)))
        return count

    def _one_step(self, group: Sequence[Sequence[order.Item]]) -> Stepped:
        begin = time.perf_counter()
        course, plan = self.course, self.course.plan
        with torch.inference_mode(False), torch.enable_grad():
            total = self.gradient.add_up(group)
            total = self.shares.add_up([group.buffer for group in self.trainer.optimizer.groups], total)
            rate = plan.rate_factor(course.step)
            norm = self.updater.update(rate, self.config.optimizer.max_grad_norm)
        loss, rates = float(total), self.trainer.optimizer.rates(rate)
        self._watch(loss)
        course.stepped(loss)
        return Stepped(
            step=course.step,
            epoch=course.epoch,
            loss=loss,
            loss_average=course.loss_average,
            lr=next(iter(rates.values())),
            grad_norm=norm,
            seconds=time.perf_counter() - begin,
            vram_mb=round(vram_mb(self.trainer.bundle.device), 1),
            rates=rates if len(rates) > 1 else {},
        )

    def _watch(self, loss: float) -> None:
        """Stops a run whose loss is no number: ten such steps in a row cannot become well again."""
        self.bad = 0 if loss == loss and loss not in (float("inf"), float("-inf")) else self.bad + 1
        if self.bad >= BAD_STEPS:
            raise TrainingError(
                "the loss has been no number for {count} steps.",
                count=BAD_STEPS,
                fix='Use a lower learning rate, or set memory.mixed_precision to "no".',
            )

    def _after_step(self, epoch_ends: bool) -> Iterator[Event]:
        """Whatever is due at this step; done again at the same step, it does nothing."""
        course, plan = self.course, self.course.plan
        if course.step == MOVED_AFTER:
            setup.check_moved(self.trainer)
        epoch_done = epoch_ends or course.over
        if plan.saves.steps and course.step % plan.saves.steps == 0 and not course.over:
            yield from self.output.save(self.names.step(course.step))
        if plan.saves.epochs and epoch_done and (course.epoch % plan.saves.epochs == 0 or course.over):
            yield from self.output.save(self.names.epoch(course.epoch))
        if plan.validations.hit(course.step, course.epoch, epoch_done):
            yield from self.validation.look()
            yield from self._end_early()
        if plan.previews.hit(course.step, course.epoch, epoch_done):
            yield from self.previews.draw()

    def _end_early(self) -> Iterator[Event]:
        """Ends the run where validation has found nothing better for long; every process learns it from the first."""
        course = self.course
        if not self.config.validate.early_stop_patience or not self.shares.told(course.early.ended) or course.over:
            return
        course.ended = True
        if self.shares.place.leads:
            yield Warned(self.validation.why_early(), "validate.early_stop_patience")

    def _between_steps(self) -> Iterator[Event]:
        """What the user asked for meanwhile: save, preview, pause; and other people's turn at the host."""
        self.control.agree()
        if self.control.take("save"):
            yield from self.output.save(self.names.step(self.course.step))
        if self.control.take("sample"):
            yield from self.previews.draw()
        if self.control.pausing:
            yield from self._pause()
        else:
            self.lease.breathe()
            self._follow_source()

    def _pause(self) -> Iterator[Event]:
        self.trainer.release()
        self.lease.pause()
        yield Paused(self.course.step)
        while True:
            self.control.wait_while_paused()
            if self.control.stopping:  # the host stays with its user: what is saved now does not need it
                return
            try:
                source = self.lease.resume()
            except HostBusy as busy:
                yield Warned(with_remedy(busy))
                self.control.command("pause")
            else:
                self.trainer.rebuild(source)
                yield Resumed(self.course.step)
                return

    def _follow_source(self) -> None:
        """The host may have had to read the model anew while somebody else generated."""
        if self.lease.source is not self.trainer.source:
            self.trainer.rebuild(self.lease.source)

    def _end(self) -> Iterator[Event]:
        course = self.course
        self.stopped = not course.over
        if self.stopped:
            if self.control.save_on_stop and course.step:
                yield from self.output.save(self.names.step(course.step))
            return
        yield from self.validation.look()
        yield from self.output.save(self.names.final(), final=True)
