"""A training run from config to files, as a generator of events; nothing runs until somebody iterates."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import attrs
import torch

from lora_trainer.config import effective
from lora_trainer.config.live_settings import changed
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import Control
from lora_trainer.data import batch_sampler
from lora_trainer.errors import HostBusy
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
from lora_trainer.jobs.process_rank import SINGLE, Rank
from lora_trainer.jobs.resume_point import ResumePoint
from lora_trainer.jobs.status import FROM_STATE
from lora_trainer.messages import say
from lora_trainer.models.source import LiveSource
from lora_trainer.train import setup, state
from lora_trainer.train.distributed import SingleProcess, process_group
from lora_trainer.train.guards import Guards, check_disk, check_moved, missing_mb
from lora_trainer.train.inputs.caption_encoder import ROWS, captions_within
from lora_trainer.train.inputs.dataset import load_dataset
from lora_trainer.train.inputs.examples import CaptionSampler
from lora_trainer.train.keep_awake import keep_awake
from lora_trainer.train.live_changes import LiveChanges
from lora_trainer.train.memory.oom import ENCODING, LOOKING, OomFallback, is_out_of_memory, raise_as_out_of_memory, retry_after_free
from lora_trainer.train.outputs.background_writer import BackgroundWriter
from lora_trainer.train.outputs.output import NullOutput, Output
from lora_trainer.train.outputs.saving import OutputNames, claimed_names, refuse_overwriting
from lora_trainer.train.planning.plan import Machine, TrainingPlan, make_plan
from lora_trainer.train.planning.preflight import early_warnings
from lora_trainer.train.previews.previews import NullPreviews, Previews
from lora_trainer.train.progress import TrainingProgress
from lora_trainer.train.setup import facts_of
from lora_trainer.train.state import NullStateKeeper, StateKeeper
from lora_trainer.train.step.accumulate import GradientAccumulator, OptimizerStep
from lora_trainer.train.step.precision import choose_precision, vram_mb
from lora_trainer.train.trainer import Trainer
from lora_trainer.train.validation import Validation

MOVED_AFTER = 10
WORTH_TELLING = 4 * ROWS
"""More captions than this are a phase of their own."""


def run(
    config: TrainConfig, host: Host, control: Control, folder: Path, place: Rank = SINGLE, since: ResumePoint | None = None
) -> Iterator[Event]:
    """Trains as `config` says and yields what happens; `folder` is the run's own (samples and states go there).

    With `since` it goes on from there: `config` is then what the run began with. Of several processes each iterates its own; only the
    first one writes. Ends with Finished or Stopped; raises TrainerError. The host is given back in every case.
    """
    config = setup.with_rank_of_weights(config)
    names = OutputNames(Path(config.save.output_dir or host.paths().lora_dir), effective.output_name(config))
    own = config.save.overwrite or since is not None
    if place.is_main:
        refuse_overwriting(names, own)
    pictures = load_dataset(config)
    setup.check_optimizer(config)
    yield from setup.fetched(config.model, host, control)
    if control.stopping:
        yield Stopped(0, ())
        return
    with (
        raise_as_out_of_memory(lambda: config),
        keep_awake(wanted=config.steps.keep_awake),
        host.lease(config.model) as lease,
        process_group(place, lease.device) as shares,
        claimed_names(names, own) if place.is_main else nullcontext(),
    ):
        machine = Machine(lease.device.type, host.memory()["free_mb"], lent=isinstance(lease.source, LiveSource))
        facts = facts_of(lease.checkpoint, config.model, host.known_sha256(lease.checkpoint))

        def planned(config: TrainConfig) -> TrainingPlan:
            return make_plan(config, pictures.records, facts, machine, pictures.datasets, place.world_size)

        course = TrainingProgress(planned(config if since is None else changed(config, since.settings())[0]))
        course.began = 0.0 if since is None else since.kept.plain["began"]
        shares.require_same(setup.digest(config, pictures))
        precision = choose_precision(config.memory.mixed_precision, lease.source, lease.device)
        yield Started(course.plan.to_json(), str(lease.device), str(precision.base).removeprefix("torch."), place.world_size)
        yield from (Warned(note, "model.pretrained_model_name_or_path") for note in lease.notes)
        yield from early_warnings(config, pictures, lease.checkpoint)
        if place.is_main and (full := check_disk(names.folder, names.name, course.plan)) is not None:
            yield Warned(full, "save.output_dir")
        own_pictures = pictures if place.is_main else pictures.without_held()
        trainer = retry_after_free(
            lambda: setup.prepare(config, own_pictures, lease, host.paths().cache_dir, resumed=since is not None), config, lease.device
        )
        yield from trainer.notes
        run = _Run.of(trainer, course, names, lease, shares.shared_control(control), folder, shares, planned)
        trainer.attach()
        try:
            with raise_as_out_of_memory(lambda: trainer.config, lambda: course.step):
                if since is not None:
                    yield from run.take_back(since)
                yield from run.events()
        except Exception:
            yield from run.writer.finish()
            raise
        finally:
            run.writer.close()
            trainer.detach()
            trainer.latent_cache.close()
            trainer.caption_encoder.close()
    host.refresh_networks()
    yield (Stopped if run.stopped else Finished)(course.step, tuple(str(path) for path in course.files))


@attrs.define(eq=False)
class _Run:
    """One run between its steps."""

    trainer: Trainer
    course: TrainingProgress
    control: Control
    lease: Lease
    names: OutputNames
    words: CaptionSampler
    gradient: GradientAccumulator
    updater: OptimizerStep
    writer: BackgroundWriter
    output: Output
    keeping: StateKeeper
    previews: Previews
    validation: Validation
    live: LiveChanges
    guards: Guards
    shares: SingleProcess
    ladder: OomFallback
    stopped: bool = False

    @classmethod
    def of(
        cls,
        trainer: Trainer,
        course: TrainingProgress,
        names: OutputNames,
        lease: Lease,
        control: Control,
        folder: Path,
        shares: SingleProcess,
        planned: Callable[[TrainConfig], TrainingPlan],
    ) -> _Run:
        words, writer, leads = CaptionSampler(trainer.dataset, trainer.config.seed, course), BackgroundWriter(), shares.rank.is_main
        output = (Output if leads else NullOutput)(trainer, course, names, lease, writer)
        updater = OptimizerStep(trainer.optimizer, trainer.scaler, trainer.ema, trainer.clip_weight_norms)
        return cls(
            trainer=trainer,
            course=course,
            control=control,
            lease=lease,
            names=names,
            words=words,
            gradient=GradientAccumulator(trainer, course, words, shares),
            updater=updater,
            writer=writer,
            output=output,
            keeping=(StateKeeper if leads else NullStateKeeper)(trainer, course, writer, folder),
            previews=(Previews if leads else NullPreviews)(trainer, course, output, lease, control.now, folder / "samples"),
            validation=Validation(trainer, course, words, control.now),
            live=LiveChanges(trainer, course, planned),
            guards=Guards(trainer, course),
            shares=shares,
            ladder=OomFallback(trainer, course, lambda: updater.begun or shares.synced),
        )

    @property
    def config(self) -> TrainConfig:
        return self.trainer.config

    def take_back(self, since: ResumePoint) -> Iterator[Event]:
        """The run is where it was when its state was kept; changes that were made after that are to be made again."""
        course = self.course
        self.output.sweep()
        self.keeping.sweep()
        self.live.restore(since.kept.plain["changes"])
        with torch.inference_mode(False):
            state.restore(state.read(since.kept), self.trainer, course)
        self.keeping.mark_saved()
        yield Resumed(course.step, FROM_STATE, course.epoch)
        if since.kept.plain["pictures"] != self.trainer.dataset.digest:
            yield Warned(say("The pictures are not those that this run began with: it goes on with what is there now."))
        yield from self.output.replay(since.told)
        self.live.coming = list(since.replay)
        yield from self.live.replay()
        if not course.over:  # a run that was finished, and goes on
            again = (self.names.final(), *([] if course.epoch_ends else [self.names.epoch(course.epoch)]))
            course.files = [path for path in course.files if path not in again]
            course.saves = {path: save for path, save in course.saves.items() if Path(path) in course.files}

    def events(self) -> Iterator[Event]:
        """The whole run: cache, look before training, epochs, the last file."""
        if self.config.data.cache_latents or self.trainer.dataset.held:
            yield Phase("caching", len(self.trainer.dataset.records))
            for event in self.ladder.with_fallback(lambda: setup.fill_cache(self.trainer, self.control.now, self.shares), ENCODING):
                yield event
                if self.control.pausing:
                    yield from self._pause()
            self.trainer.offload_unused()
        self.control.agree()
        if not self.control.stopping:
            yield from self._look_first()
        yield Phase("training", self.course.plan.total_steps)
        while not self.course.over and not self.control.stopping:
            if self.course.epoch_ends:
                self.course.next_epoch()
            yield from self._rest_of_epoch()
        yield from self._end()

    def _look_first(self) -> Iterator[Event]:
        """Before the first step; a run that was resumed does what was due at the step where it was."""
        if self.course.step:
            yield from self._after_step()
            return
        yield from self._validate()
        if self.config.sample.at_first:
            yield from self._preview()

    def _rest_of_epoch(self) -> Iterator[Event]:
        course, groups = self.course, self._groups()
        encoded = course.groups
        while course.groups < len(groups):
            yield from self._between_steps()
            if course.groups >= encoded and not self.control.stopping:
                encoded = course.groups + (yield from self._encode_ahead(groups[course.groups :]))
            if self.control.stopping or course.over:
                return
            yield from self.ladder.with_fallback(lambda: self._one_step(groups[course.groups]))
            yield from self._after_step()
        yield from self._rest()

    def _groups(self) -> list[list[tuple[batch_sampler.Item, ...]]]:
        """The batches of this epoch, those of each step together."""
        pictures, accumulation = self.trainer.dataset, self.config.steps.gradient_accumulation_steps
        sizes = [size * self.shares.rank.world_size for size in pictures.batch_sizes]
        batches = batch_sampler.epoch_batches(pictures.trained, batch_size=sizes, seed=self.config.seed, epoch=self.course.epoch)
        return [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]

    def _encode_ahead(self, groups: Sequence[Sequence[Sequence[batch_sampler.Item]]]) -> Generator[Event, None, int]:
        """Encodes the captions of the steps that come, as far as they may be kept; returns how many steps that are."""
        captions, left = self.trainer.caption_encoder, groups[: self.course.plan.total_steps - self.course.step]
        if captions.trained:
            return len(groups)
        step = self.course.step
        own = ([item for batch in group for item in self.shares.shard(batch)] for group in left)
        showings = ([self.words.caption_at(item, step + number) for item in group] for number, group in enumerate(own))
        texts, count = captions_within(showings, captions.room())
        captions.forget_others([*texts, *map(self.words.validation_caption, self.trainer.dataset.held)])
        missing = captions.missing(texts)
        if len(missing) > WORTH_TELLING:
            yield Phase("encoding", len(missing))
        for start in range(0, len(missing), ROWS):
            if start and self.shares.rank.is_single:  # others have other captions to encode: they meet between the steps only
                yield from self._between_steps()
            if self.control.stopping:
                break
            yield from self.ladder.with_fallback(lambda: self._encode(missing[start : start + ROWS]), ENCODING)  # noqa: B023 - used at once
            if len(missing) > WORTH_TELLING:
                yield Progress(min(start + ROWS, len(missing)))
        yield from self._without_encoders()
        return count

    def _without_encoders(self) -> Iterator[Event]:
        """Everything that this epoch reads is encoded: where that is wanted, the encoders leave the GPU until they are needed again."""
        if effective.keeps_captions(self.config):
            self.trainer.offload_unused()
        yield from map(Warned, self.trainer.caption_encoder.told)
        self.trainer.caption_encoder.told.clear()

    def _encode(self, texts: Sequence[str]) -> Iterator[Event]:
        self.trainer.caption_encoder.fill(self.trainer.bundle, texts)
        return iter(())

    def _one_step(self, group: Sequence[Sequence[batch_sampler.Item]]) -> Iterator[Event]:
        """Until the optimizer has stepped, it can be done again with the same bits."""
        begin = time.perf_counter()
        course, plan = self.course, self.course.plan
        with torch.inference_mode(False), torch.enable_grad():
            total = self.gradient.accumulate(group)
            total = self.shares.all_reduce([group.buffer for group in self.trainer.optimizer.groups], total)
            rate = plan.rate_factor(course.step)
            norm, loss = self.updater.update(rate, self.config.optimizer.max_grad_norm, total, course.step + 1)
        rates = self.trainer.optimizer.rates(rate)
        seconds = time.perf_counter() - begin
        self.guards.look(loss, norm, seconds)
        course.stepped(loss)
        yield Stepped(
            step=course.step,
            epoch=course.epoch,
            loss=loss,
            loss_average=course.loss_average,
            lr=next(iter(rates.values())),
            grad_norm=norm,
            seconds=seconds,
            vram_mb=round(vram_mb(self.trainer.bundle.device), 1),
            rates=rates if len(rates) > 1 else {},
            skipped=course.skipped,
            loss_scale=self.updater.loss_scale,
        )

    def _after_step(self) -> Iterator[Event]:
        """Whatever is due at this step; done again at the same step, it does nothing."""
        course, plan = self.course, self.course.plan
        if course.step == MOVED_AFTER:
            check_moved(self.trainer)
        yield from self.guards.warnings()
        yield from self.gradient.warnings()
        epoch_done, files = course.epoch_ends or course.over, len(course.files)
        if plan.saves.steps and course.step % plan.saves.steps == 0 and not course.over:
            yield from self._save(self.names.step(course.step))
        if plan.saves.epochs and epoch_done and (course.epoch % plan.saves.epochs == 0 or course.over):
            yield from self._save(self.names.epoch(course.epoch))
        if self.keeping.due(len(course.files) - files) and not course.over:
            yield from self._keep()
        if plan.validations.is_due(course.step, course.epoch, epoch_done):
            yield from self._validate()
            yield from self._end_early()
        if plan.previews.is_due(course.step, course.epoch, epoch_done):
            yield from self._preview()

    def _end_early(self) -> Iterator[Event]:
        """Ends the run where validation has found nothing better for long; every process learns it from the first."""
        course = self.course
        if not self.config.validate.early_stop_patience or not self.shares.broadcast(course.early.ended) or course.over:
            return
        course.ended = True
        if self.shares.rank.is_main:
            yield Warned(self.validation.why_early(), "validate.early_stop_patience")

    def _between_steps(self) -> Iterator[Event]:
        """What the user asked for meanwhile: change, save, preview, pause; and other people's turn at the host."""
        self.control.agree()
        yield from self.writer.notes()
        yield from self.live.replay()
        for wanted in self.control.take_changes():
            yield from self.live.change(wanted)
        if self.control.take("save"):
            yield from self._save(self.names.step(self.course.step))
        if self.control.take("sample"):
            yield from self._preview()
        yield from self._turn()

    def _turn(self) -> Iterator[Event]:
        """Between two steps, and between two previews."""
        if self.control.pausing:
            yield from self._keep()
            yield from self._pause()
        else:
            self.lease.breathe()
            self._follow_source()

    def _save(self, path: Path, *, final: bool = False) -> Iterator[Event]:
        yield from self._wait_for_room(path.parent, self.output.megabytes())
        yield from self.ladder.with_fallback(lambda: self.output.save(path, final=final), LOOKING)

    def _keep(self) -> Iterator[Event]:
        if self.config.save.state:
            yield from self._wait_for_room(self.keeping.folder, self.keeping.megabytes())
            yield from self.ladder.with_fallback(self.keeping.save, LOOKING)

    def _validate(self) -> Iterator[Event]:
        return self.ladder.with_fallback(self.validation.look, LOOKING)

    def _preview(self) -> Iterator[Event]:
        """What is saved is on the disk before anything is drawn, the last file too."""
        if self.course.over:
            yield from self._save(self.names.final(), final=True)
        yield from self.writer.finish()
        yield from self.previews.draw(self._turn if self.shares.rank.is_single else lambda: iter(()))
        yield from self._without_encoders()

    def _wait_for_room(self, folder: Path, megabytes: float) -> Iterator[Event]:
        """A full disk loses nothing: the run waits until there is room, or somebody stops it."""
        while (missing := missing_mb(folder, megabytes)) and not self.control.stopping:
            yield Warned(
                say("The disk of {folder} lacks {mb} MB: the run waits until there is room.", folder=str(folder), mb=round(missing)),
                "save.output_dir",
            )
            yield from self._pause("disk", lambda: self._until(lambda: not missing_mb(folder, megabytes)))

    def _until(self, there: Callable[[], bool]) -> None:
        while not there() and not self.control.rest(5.0):
            pass

    def _rest(self) -> Iterator[Event]:
        """A rest for the graphics card after so many epochs."""
        every, seconds = self.config.steps.pause_after_n_epochs, self.config.steps.pause_seconds
        if every and seconds and self.course.epoch % every == 0 and not self.course.over and not self.control.stopping:
            yield from self._keep()
            yield from self._pause("rest", lambda: self.control.rest(seconds))

    def _pause(self, reason: str = "user", wait: Callable[[], object] = lambda: None) -> Iterator[Event]:
        """Gives everything back, waits (also as long as the user wants), and takes it again as it was."""
        yield from self.writer.finish()
        self.trainer.release()
        self.lease.pause()
        yield Paused(self.course.step, reason)
        wait()
        while True:
            self.control.wait_while_paused()
            if self.control.stopping:  # the host stays with its user: what is saved now does not need it
                return
            try:
                source = self.lease.resume()
            except HostBusy as busy:
                yield Warned(with_remedy(busy))
                self.control.command("pause")
                continue
            try:
                self.trainer.rebuild(source)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self.trainer.release()
                self.lease.pause()
                yield Warned(say("There is not enough memory to go on: close what else uses it, then press Resume."))
                self.control.command("pause")
            else:
                yield Resumed(self.course.step)
                return

    def _follow_source(self) -> None:
        """The host may have had to read the model anew while somebody else generated."""
        if self.lease.source is not self.trainer.source:
            self.trainer.rebuild(self.lease.source)

    def _end(self) -> Iterator[Event]:
        course = self.course
        self.stopped = not course.over
        if not self.stopped:
            yield from self._validate()
            yield from self._save(self.names.final(), final=True)
            yield from self._keep()
        elif self.control.save_on_stop and course.step:
            yield from self._save(self.names.step(course.step))
            yield from self._keep()
        yield from self.writer.finish()
