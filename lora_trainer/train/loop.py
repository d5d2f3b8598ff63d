"""A training run from config to files, as a generator of events; nothing runs until somebody iterates."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import attrs
import torch

from lora_trainer.config import effective
from lora_trainer.config.live_settings import apply_live_changes
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import Control
from lora_trainer.data import batch_sampler
from lora_trainer.events import (
    Event,
    Finished,
    Phase,
    Progress,
    Resumed,
    Started,
    Stepped,
    Stopped,
    Warned,
)
from lora_trainer.host.base import Host, Lease
from lora_trainer.host.memory import MemoryLimit, reset_peak_memory
from lora_trainer.jobs.process_rank import SINGLE, Rank
from lora_trainer.jobs.resume_point import ResumePoint
from lora_trainer.jobs.status import FROM_STATE
from lora_trainer.messages import say
from lora_trainer.models.source import LiveSource
from lora_trainer.train import setup, state
from lora_trainer.train.distributed import SingleProcess, process_group
from lora_trainer.train.guards import Guards, check_disk, check_layers_trained
from lora_trainer.train.inputs.caption_encoder import CAPTION_BATCH, captions_within
from lora_trainer.train.inputs.dataset import load_dataset
from lora_trainer.train.inputs.examples import CaptionSampler
from lora_trainer.train.keep_awake import keep_awake
from lora_trainer.train.live_changes import LiveChanges
from lora_trainer.train.memory.oom import raise_as_out_of_memory, retry_after_free
from lora_trainer.train.memory.oom_fallback import OomFallback
from lora_trainer.train.memory.placement import CAPTIONS, EVALUATING, PICTURES
from lora_trainer.train.outputs.background_writer import BackgroundWriter
from lora_trainer.train.outputs.output import NullOutput, Output
from lora_trainer.train.outputs.saving import OutputNames, claimed_names, refuse_overwriting
from lora_trainer.train.pausing import Pausing
from lora_trainer.train.planning.memory_plan import Machine
from lora_trainer.train.planning.plan import TrainingPlan, make_plan
from lora_trainer.train.planning.preflight import early_warnings
from lora_trainer.train.previews.previews import NullPreviews, Previews
from lora_trainer.train.previews.prompt_networks import PromptNetworks, network_notes
from lora_trainer.train.progress import TrainingProgress
from lora_trainer.train.setup import inspect_checkpoint
from lora_trainer.train.state import NullStateKeeper, StateKeeper
from lora_trainer.train.step.accumulate import GradientAccumulator, OptimizerStep
from lora_trainer.train.step.precision import choose_precision, vram_mb
from lora_trainer.train.trainer import Trainer
from lora_trainer.train.validation import Validation

CHECK_LAYERS_AT = 10
"""After so many steps that were not skipped every layer must have changed."""
ENCODING_PHASE_MIN = 4 * CAPTION_BATCH
"""Encoding more captions than this is a phase of its own."""


def run(
    config: TrainConfig, host: Host, control: Control, folder: Path, rank: Rank = SINGLE, since: ResumePoint | None = None
) -> Iterator[Event]:
    """Trains as `config` says and yields what happens; `folder` is the run's own (previews and states go there).

    With `since` the run continues from that state: `config` is then the one that it was started with. Each of several processes
    iterates its own generator; only the first one writes. Ends with Finished or Stopped. Raises TrainerError. The host gets everything
    back in every case.
    """
    config = setup.with_ranks_of_weights(config)
    names = OutputNames(Path(config.save.output_dir or host.paths().lora_dir), effective.output_name(config))
    overwrite = config.save.overwrite or since is not None
    if rank.is_main:
        refuse_overwriting(names, overwrite)
    dataset = load_dataset(config)
    setup.check_optimizer(config)
    yield from setup.fetch_models(config.model, host, control)
    if control.stopping:
        yield Stopped(0, ())
        return
    with (
        raise_as_out_of_memory(lambda: config),
        keep_awake(enabled=config.steps.keep_awake),
        host.lease(config.model) as lease,
        process_group(rank, lease.device) as group,
        claimed_names(names, overwrite) if rank.is_main else nullcontext(),
        MemoryLimit(lease.device) as memory_limit,
    ):
        reset_peak_memory(lease.device)
        precision = choose_precision(config.memory.mixed_precision, lease.source, lease.device)
        machine = Machine.of(lease.device.type, host.memory(), lent=isinstance(lease.source, LiveSource), auto_precision=precision.name)
        facts = inspect_checkpoint(lease.checkpoint, config.model, host.known_sha256(lease.checkpoint))

        def plan_for(config: TrainConfig) -> TrainingPlan:
            return make_plan(config, dataset.records, facts, machine, dataset.datasets, rank.world_size)

        progress = TrainingProgress(plan_for(config if since is None else apply_live_changes(config, since.changed_settings())[0]))
        progress.started_at = 0.0 if since is None else since.state.content["began"]
        group.require_same(setup.run_digest(config, dataset))
        yield Started(progress.plan.to_json(), str(lease.device), str(precision.base).removeprefix("torch."), rank.world_size)
        yield from (Warned(note, "model.pretrained_model_name_or_path") for note in lease.notes)
        yield from early_warnings(config, dataset, lease.checkpoint)
        networks = setup.preview_networks(config, host.paths())
        yield from (Warned(note, "sample.prompts") for note in network_notes(setup.preview_prompts(config), networks, lease))
        if rank.is_main and (disk_warning := check_disk(names.folder, names.name, progress.plan)) is not None:
            yield Warned(disk_warning, "save.output_dir")
        own_dataset = dataset if rank.is_main else dataset.without_validation()
        trainer = retry_after_free(
            lambda: setup.prepare(config, own_dataset, lease, host.paths().cache_dir, is_resumed=since is not None), config, lease.device
        )
        yield from trainer.notes
        shared = group.shared_control(control)
        run_loop = RunLoop.of(trainer, progress, names, lease, networks, shared, folder, group, plan_for, memory_limit)
        trainer.attach()
        try:
            with raise_as_out_of_memory(lambda: trainer.config, lambda: progress.step):
                if since is not None:
                    yield from run_loop.restore(since)
                yield from run_loop.events()
        except Exception:
            yield from run_loop.writer.finish()
            raise
        finally:
            run_loop.writer.close()
            trainer.detach()
            trainer.latent_cache.close()
            trainer.caption_encoder.close()
    host.refresh_networks()
    yield (Stopped if run_loop.stopped else Finished)(progress.step, tuple(str(path) for path in progress.files))


@attrs.define(eq=False)
class RunLoop:
    """The loop of one run, from the first encoded picture to the last file."""

    trainer: Trainer
    progress: TrainingProgress
    control: Control
    names: OutputNames
    captions: CaptionSampler
    accumulator: GradientAccumulator
    optimizer_step: OptimizerStep
    writer: BackgroundWriter
    output: Output
    state_keeper: StateKeeper
    previews: Previews
    validation: Validation
    live_changes: LiveChanges
    guards: Guards
    group: SingleProcess
    oom_fallback: OomFallback
    pausing: Pausing
    stopped: bool = False

    @classmethod
    def of(
        cls,
        trainer: Trainer,
        progress: TrainingProgress,
        names: OutputNames,
        lease: Lease,
        networks: PromptNetworks,
        control: Control,
        folder: Path,
        group: SingleProcess,
        plan_for: Callable[[TrainConfig], TrainingPlan],
        memory_limit: MemoryLimit | None = None,
    ) -> RunLoop:
        """Makes the parts of a run's loop; `folder` is the run's own. Processes other than the first write nothing."""
        captions, writer = CaptionSampler(trainer.dataset, trainer.config.seed, progress), BackgroundWriter(lambda: control.local.stopping)
        is_main = group.rank.is_main
        output = (Output if is_main else NullOutput)(trainer, progress, names, lease, writer)
        optimizer_step = OptimizerStep(trainer.optimizer, trainer.scaler, trainer.ema, trainer.clip_weight_norms)
        return cls(
            trainer=trainer,
            progress=progress,
            control=control,
            names=names,
            captions=captions,
            accumulator=GradientAccumulator(trainer, progress, captions, group),
            optimizer_step=optimizer_step,
            writer=writer,
            output=output,
            state_keeper=(StateKeeper if is_main else NullStateKeeper)(trainer, progress, writer, folder),
            previews=(Previews if is_main else NullPreviews)(trainer, progress, output, lease, networks, control.local, folder / "samples"),
            validation=Validation(trainer, progress, captions, control.local),
            live_changes=LiveChanges(trainer, progress, plan_for),
            guards=Guards(trainer, progress),
            group=group,
            oom_fallback=OomFallback(trainer, progress, lambda: optimizer_step.is_irreversible or group.synced),
            pausing=Pausing(trainer, progress, lease, control, writer, memory_limit),
        )

    @property
    def config(self) -> TrainConfig:
        return self.trainer.config

    def restore(self, since: ResumePoint) -> Iterator[Event]:
        """Brings the run back to a saved state; changes of settings that were made after it are applied again at their steps."""
        progress = self.progress
        self.output.remove_partial_files()
        self.state_keeper.remove_partial_files()
        self.live_changes.restore(since.state.content["changes"])
        with torch.inference_mode(False):
            state.restore(state.read(since.state), self.trainer, progress)
        self.state_keeper.mark_saved()
        yield Resumed(progress.step, FROM_STATE, progress.epoch)
        if since.state.content["pictures"] != self.trainer.dataset.digest:
            yield Warned(say("The pictures have changed since this run began: it continues with those that are there now."))
        yield from self.output.replay(since.saved_files)
        self.live_changes.pending = list(since.replay)
        yield from self.live_changes.replay()
        if not progress.is_done:  # a finished run that continues: its last files are written anew
            rewritten = (self.names.final(), *([] if progress.is_epoch_done else [self.names.epoch(progress.epoch)]))
            progress.files = [path for path in progress.files if path not in rewritten]
            progress.saves = {path: save for path, save in progress.saves.items() if Path(path) in progress.files}

    def events(self) -> Iterator[Event]:
        """The whole run: caching, the first validation, epochs of steps, the last file."""
        if self.trainer.can_offload:
            yield from self._encode_first_captions()
        if self.config.data.cache_latents or self.trainer.dataset.validation_records:
            yield Phase("caching", len(self.trainer.dataset.records))
            for event in self.oom_fallback.with_fallback(
                lambda: setup.cache_latents(self.trainer, self.control.local, self.group), PICTURES
            ):
                yield event
                if self.control.pausing:
                    yield from self.pausing.pause()
            self.trainer.offload_unused()
        self.control.sync()
        if not self.control.stopping:
            yield from self._before_first_step()
        yield Phase("training", self.progress.plan.total_steps)
        while not self.progress.is_done and not self.control.stopping:
            if self.progress.is_epoch_done:
                self.progress.begin_epoch()
            yield from self._epoch()
        yield from self._end()

    def _encode_first_captions(self) -> Iterator[Event]:
        """The captions that come first, before the pictures and before the U-Net is on the device: an epoch's, and those of validation."""
        progress = attrs.evolve(self.progress)
        if progress.is_epoch_done and not progress.is_done:
            progress.begin_epoch()
        encoder, captions = self.trainer.caption_encoder, CaptionSampler(self.trainer.dataset, self.config.seed, progress)
        yield from self._encode_ahead(self._step_batches(progress.epoch)[progress.step_in_epoch :], captions)
        validation = [] if encoder.is_trained else map(captions.validation_caption, self.validation.records)
        missing = encoder.missing(validation)
        if missing and not self.control.stopping:
            yield from self.oom_fallback.with_fallback(lambda: self._encode(missing), CAPTIONS)

    def _before_first_step(self) -> Iterator[Event]:
        """Validation and previews of the untrained model; a resumed run does what was due at the step that it resumed from."""
        if self.progress.step:
            yield from self._after_step()
            return
        yield from self._validate()
        if self.config.sample.at_first:
            yield from self._preview()

    def _epoch(self) -> Iterator[Event]:
        """The steps of this epoch that are left."""
        progress, steps = self.progress, self._step_batches(self.progress.epoch)
        encoded = progress.step_in_epoch
        while progress.step_in_epoch < len(steps):
            yield from self._between_steps()
            if progress.step_in_epoch >= encoded and not self.control.stopping:
                encoded = progress.step_in_epoch + (yield from self._encode_ahead(steps[progress.step_in_epoch :], self.captions))
            if self.control.stopping or progress.is_done:
                return
            yield from self.oom_fallback.with_fallback(lambda: self._step(steps[progress.step_in_epoch]))
            yield from self._after_step()
        if self.pausing.is_rest_due:
            yield from self._save_state()
            yield from self.pausing.rest()

    def _step_batches(self, epoch: int) -> list[list[tuple[batch_sampler.Item, ...]]]:
        """For each optimizer step of an epoch, the batches whose gradients it accumulates."""
        dataset, accumulation = self.trainer.dataset, self.config.steps.gradient_accumulation_steps
        sizes = [size * self.group.rank.world_size for size in dataset.batch_sizes]
        batches = batch_sampler.epoch_batches(dataset.train_records, batch_size=sizes, seed=self.config.seed, epoch=epoch)
        return [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]

    def _encode_ahead(
        self, steps: Sequence[Sequence[Sequence[batch_sampler.Item]]], sampler: CaptionSampler
    ) -> Generator[Event, None, int]:
        """Encodes the captions of the next steps, as many as fit into memory; returns how many steps that are."""
        encoder, remaining = self.trainer.caption_encoder, steps[: self.progress.plan.total_steps - self.progress.step]
        if encoder.is_trained:
            return len(steps)
        step = self.progress.step
        items = ([item for batch in batches for item in self.group.shard(batch)] for batches in remaining)
        step_captions = ([sampler.caption_at(item, step + number) for item in own] for number, own in enumerate(items))
        captions, count = captions_within(step_captions, encoder.capacity())
        encoder.retain([*captions, *map(self.captions.validation_caption, self.trainer.dataset.validation_records)])
        missing = encoder.missing(captions)
        if len(missing) > ENCODING_PHASE_MIN:
            yield Phase("encoding", len(missing))
        for start in range(0, len(missing), CAPTION_BATCH):
            if start and self.group.rank.is_single:  # other processes encode other captions: all of them meet between the steps only
                yield from self._between_steps()
            if self.control.stopping:
                break
            yield from self.oom_fallback.with_fallback(lambda: self._encode(missing[start : start + CAPTION_BATCH]), CAPTIONS)  # noqa: B023 - called at once
            if len(missing) > ENCODING_PHASE_MIN:
                yield Progress(min(start + CAPTION_BATCH, len(missing)))
        yield from self._offload_encoders()
        return count

    def _offload_encoders(self) -> Iterator[Event]:
        """Once captions are encoded, the encoders leave the GPU until they are needed again, where the config wants that."""
        if effective.caches_captions(self.config):
            self.trainer.offload_unused()
        yield from map(Warned, self.trainer.caption_encoder.warnings)
        self.trainer.caption_encoder.warnings.clear()

    def _encode(self, captions: Sequence[str]) -> Iterator[Event]:
        self.trainer.caption_encoder.fill(self.trainer.bundle, captions)
        return iter(())

    def _step(self, batches: Sequence[Sequence[batch_sampler.Item]]) -> Iterator[Event]:
        """One optimizer step. Until the optimizer has stepped, it can be repeated; on a CPU it gives the same bits."""
        started = time.perf_counter()
        progress, plan = self.progress, self.progress.plan
        with torch.inference_mode(False), torch.enable_grad():
            mean_loss = self.accumulator.accumulate(batches)
            mean_loss = self.group.all_reduce([params.buffer for params in self.trainer.optimizer.groups], mean_loss)
            rate_factor = plan.rate_factor(progress.step)
            grad_norm, loss = self.optimizer_step.update(rate_factor, self.config.optimizer.max_grad_norm, mean_loss, progress.step + 1)
        rates = self.trainer.optimizer.learning_rates(rate_factor)
        seconds = time.perf_counter() - started
        self.guards.check_step(loss, grad_norm, seconds)
        progress.count_step(loss)
        yield Stepped(
            step=progress.step,
            epoch=progress.epoch,
            loss=loss,
            loss_average=progress.loss_average,
            lr=next(iter(rates.values())),
            grad_norm=grad_norm,
            seconds=seconds,
            vram_mb=round(vram_mb(self.trainer.bundle.device), 1),
            rates=rates if len(rates) > 1 else {},
            skipped=progress.skipped,
            loss_scale=self.optimizer_step.loss_scale,
        )

    def _after_step(self) -> Iterator[Event]:
        """Whatever is due at this step; a second call at the same step does nothing."""
        progress, plan = self.progress, self.progress.plan
        if progress.steps_taken == CHECK_LAYERS_AT:
            check_layers_trained(self.trainer)
        yield from self.guards.warnings()
        yield from self.accumulator.warnings()
        epoch_done, file_count = progress.is_epoch_done or progress.is_done, len(progress.files)
        if plan.saves.steps and progress.step % plan.saves.steps == 0 and not progress.is_done:
            yield from self._save(self.names.step(progress.step))
        if plan.saves.epochs and epoch_done and (progress.epoch % plan.saves.epochs == 0 or progress.is_done):
            yield from self._save(self.names.epoch(progress.epoch))
        if self.state_keeper.is_due(len(progress.files) - file_count) and not progress.is_done:
            yield from self._save_state()
        if plan.validations.is_due(progress.step, progress.epoch, epoch_done):
            yield from self._validate()
            yield from self._stop_early()
        if plan.previews.is_due(progress.step, progress.epoch, epoch_done):
            yield from self._preview()

    def _stop_early(self) -> Iterator[Event]:
        """Ends the run when the validation loss has not fallen for long enough; all processes follow the first one."""
        progress = self.progress
        if not self.config.validate.early_stop_patience or not self.group.broadcast(progress.early_stop.should_stop) or progress.is_done:
            return
        progress.stopped_early = True
        if self.group.rank.is_main:
            yield Warned(self.validation.early_stop_reason(), "validate.early_stop_patience")

    def _between_steps(self) -> Iterator[Event]:
        """What was asked for meanwhile: changed settings, a file, previews, a pause; and generations that wait at the host."""
        self.control.sync()
        yield from self.writer.poll()
        if self.group.rank.is_single:  # other processes would go on and wait for this one
            yield from self.pausing.wait_for_writer()
        yield from self.live_changes.replay()
        for values in self.control.take_changes():
            yield from self.live_changes.apply(values)
        if self.control.take("save"):
            yield from self._save(self.names.step(self.progress.step))
        if self.control.take("sample"):
            yield from self._preview()
        yield from self._turn()

    def _turn(self) -> Iterator[Event]:
        """Between two steps, and between two previews."""
        if self.control.pausing:
            yield from self._save_state()
            yield from self.pausing.pause()
        else:
            yield from self.pausing.let_host_in()

    def _save(self, path: Path, *, final: bool = False) -> Iterator[Event]:
        yield from self.pausing.wait_for_disk(path.parent, self.output.size_mb())
        yield from self.oom_fallback.with_fallback(lambda: self.output.save(path, final=final), EVALUATING)

    def _save_state(self) -> Iterator[Event]:
        if self.config.save.state:
            yield from self.pausing.wait_for_disk(self.state_keeper.folder, self.state_keeper.size_mb())
            yield from self.oom_fallback.with_fallback(self.state_keeper.save, EVALUATING)

    def _validate(self) -> Iterator[Event]:
        return self.oom_fallback.with_fallback(self.validation.run, EVALUATING)

    def _preview(self) -> Iterator[Event]:
        """Draws previews; every file, the last one too, is on the disk before that."""
        if self.progress.is_done:
            yield from self._save(self.names.final(), final=True)
        yield from self.pausing.finish_writing() if self.group.rank.is_single else self.writer.finish()
        yield from self.previews.draw(self._turn if self.group.rank.is_single else lambda: iter(()))
        yield from self.pausing.follow_source()  # drawing may have ended where the model no longer fits
        yield from self._offload_encoders()

    def _end(self) -> Iterator[Event]:
        progress = self.progress
        self.stopped = not progress.is_done
        if not self.stopped:
            yield from self._validate()
            yield from self._save(self.names.final(), final=True)
            yield from self._save_state()
        elif self.control.save_on_stop and progress.step:
            yield from self._save(self.names.step(progress.step))
            yield from self._save_state()
        yield from self.pausing.finish_writing()
