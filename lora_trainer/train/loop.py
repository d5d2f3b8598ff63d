"""A training run from config to files, as a generator of events; nothing runs until somebody iterates."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import attrs
import torch
from PIL.Image import Image
from torch import Tensor

from lora_trainer.adapters.files import write_lora
from lora_trainer.config import derive
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import Control
from lora_trainer.data import captions as wording
from lora_trainer.data import order
from lora_trainer.data.describe import size_of
from lora_trainer.data.records import ImageRecord
from lora_trainer.errors import HostBusy, TrainerError, TrainingError
from lora_trainer.events import (
    Event,
    Finished,
    Paused,
    Phase,
    Progress,
    Resumed,
    Sampled,
    Saved,
    Started,
    Stepped,
    Stopped,
    Validated,
    Warned,
)
from lora_trainer.host.base import Host, Lease, with_remedy
from lora_trainer.messages import say
from lora_trainer.optim.schedules import factor
from lora_trainer.train import metadata, setup
from lora_trainer.train.conditioning import ROWS, reach
from lora_trainer.train.plan import Machine, TrainingPlan, make_plan
from lora_trainer.train.prompts import SampleRequest
from lora_trainer.train.runtime import choose_precision, computing, vram_mb
from lora_trainer.train.sample import draw
from lora_trainer.train.saving import Names, claimed, refuse_overwriting, write_side_files
from lora_trainer.train.showing import mirrored, text_of
from lora_trainer.train.step import noisy_batch, picture_losses, weighted
from lora_trainer.train.validate import validation_loss

MOVED_AFTER = 10
BAD_STEPS = 10
WORTH_TELLING = 4 * ROWS
"""More captions than this are a phase of their own."""


def run(config: TrainConfig, host: Host, control: Control, folder: Path) -> Iterator[Event]:
    """Trains as `config` says and yields what happens; `folder` is the run's own (samples go there).

    Ends with Finished or Stopped; raises TrainerError. The host is given back in every case.
    """
    names = Names(Path(config.save.output_dir or host.paths().lora_dir), derive.output_name(config))
    refuse_overwriting(names, config.save.overwrite)
    pictures = setup.read_pictures(config)
    setup.check_optimizer(config)
    setup.preview_requests(config)
    with host.lease(config.model) as lease, claimed(names, config.save.overwrite):
        machine = Machine(lease.device.type, host.memory()["free_mb"])
        plan = make_plan(config, pictures.records, setup.facts_of(lease.checkpoint), machine, pictures.datasets)
        precision = choose_precision(config.memory.mixed_precision, lease.source, lease.device)
        yield Started(plan.to_json(), str(lease.device), str(precision.base).removeprefix("torch."), 1)
        yield from setup.early_warnings(config, pictures, lease.checkpoint)
        run = _Run(config, host, control, folder, names, plan, lease, setup.prepare(config, pictures, lease, host.paths().cache_dir))
        run.trainer.attach()
        try:
            yield from run.events()
        finally:
            run.trainer.detach()
            run.trainer.cache.close()
    host.refresh_networks()
    yield (Stopped if run.stopped else Finished)(run.step, tuple(str(path) for path in run.files))


@attrs.define(eq=False)
class _Run:
    """The state of one run between its steps."""

    config: TrainConfig
    host: Host
    control: Control
    folder: Path
    names: Names
    plan: TrainingPlan
    lease: Lease
    trainer: setup.Trainer
    step: int = 0
    epoch: int = 0
    stopped: bool = False
    bad: int = 0
    files: list[Path] = attrs.field(factory=list)
    saved_at: tuple[int, int] = (-1, -1)
    sampled_at: int = -1
    validated_at: int = -1
    recent: deque[float] = attrs.field(factory=deque)
    shared_words: dict[str, str] = attrs.field(factory=dict)

    def events(self) -> Iterator[Event]:
        """The whole run: cache, look before training, epochs, the last file."""
        self.recent = deque(maxlen=max(1, self.plan.steps_per_epoch))
        self.shared_words = self._shared_words()
        if self.config.data.cache_latents or self.trainer.pictures.held:
            yield Phase("caching", len(self.trainer.pictures.records))
            for event in setup.fill_cache(self.trainer, self.control):
                yield event
                if self.control.pausing:
                    yield from self._pause()
        if not self.control.stopping:
            yield from self._validate()
            if self.config.sample.at_first and self.trainer.requests:
                yield from self._preview()
        yield Phase("training", self.plan.total_steps)
        while self.step < self.plan.total_steps and not self.control.stopping:
            self.epoch += 1
            yield from self._one_epoch()
        yield from self._end()

    def _one_epoch(self) -> Iterator[Event]:
        pictures, accumulation = self.trainer.pictures, self.config.steps.gradient_accumulation_steps
        batches = order.epoch_batches(pictures.trained, batch_size=pictures.batch_sizes, seed=self.config.seed, epoch=self.epoch)
        groups = [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]
        encoded = 0
        for number, group in enumerate(groups, start=1):
            yield from self._between_steps()
            if number > encoded and not self.control.stopping:
                encoded = number - 1 + (yield from self._encode_ahead(groups[number - 1 :]))
            if self.control.stopping or self.step >= self.plan.total_steps:
                return
            yield self._one_step(group)
            yield from self._after_step(number == len(groups))

    def _encode_ahead(self, groups: Sequence[Sequence[Sequence[order.Item]]]) -> Generator[Event, None, int]:
        """Encodes the captions of the steps that come, as far as they may be kept; returns how many steps that are."""
        captions, left = self.trainer.captions, groups[: self.plan.total_steps - self.step]
        if captions.trained:
            return len(groups)
        showings = ([self._text(item, self.step + number) for batch in group for item in batch] for number, group in enumerate(left))
        texts, count = reach(showings, captions.room())
        captions.forget_others([*texts, *map(self._held_text, self.trainer.pictures.held)])
        missing = captions.missing(texts)
        if len(missing) > WORTH_TELLING:
            yield Phase("encoding", len(missing))
        for start in range(0, len(missing), ROWS):
            if start:
                yield from self._between_steps()
            if self.control.stopping:
                break
            captions.fill(self.trainer.bundle, missing[start : start + ROWS])
            if len(missing) > WORTH_TELLING:
                yield Progress(min(start + ROWS, len(missing)))
        return count

    def _one_step(self, group: Sequence[Sequence[order.Item]]) -> Stepped:
        begin = time.perf_counter()
        trainer, pictures = self.trainer, sum(len(batch) for batch in group)
        with torch.inference_mode(False), torch.enable_grad():
            total = torch.zeros((), device=trainer.bundle.device)
            for batch in group:
                with trainer.adapter.calculating_with(trainer.optimizer.tensors(trainer.precision.autocast)):
                    loss = self._batch_loss(batch) / pictures
                    (loss if trainer.scaler is None else trainer.scaler.scale(loss)).backward()
                total += loss.detach()
            rate = factor(
                self.config.schedule.type, self.step, self.plan.total_steps, self.plan.warmup_steps, self.config.schedule.min_lr_ratio
            )
            norm = self._update(rate)
        loss_value = float(total)
        self._watch(loss_value)
        self.step += 1
        self.recent.append(loss_value)
        return Stepped(
            step=self.step,
            epoch=self.epoch,
            loss=loss_value,
            loss_average=sum(self.recent) / len(self.recent),
            lr=trainer.optimizer.groups[0].rate * rate,
            grad_norm=norm,
            seconds=time.perf_counter() - begin,
            vram_mb=round(vram_mb(trainer.bundle.device), 1),
        )

    def _batch_loss(self, batch: Sequence[order.Item]) -> Tensor:
        trainer, pictures, seed = self.trainer, self.trainer.pictures, self.config.seed
        records = [pictures.trained[item.index] for item in batch]
        keys = [(seed, self.epoch, record.key, item.repeat) for record, item in zip(records, batch, strict=True)]
        flips = [mirrored(pictures, record, key) for record, key in zip(records, keys, strict=True)]
        seen = [
            trainer.views.seen(record, flipped, epoch=self.epoch, repeat=item.repeat)
            for record, flipped, item in zip(records, flips, batch, strict=True)
        ]
        texts = [self._text(item, self.step) for item in batch]
        with computing(trainer.precision, trainer.bundle.device, grad=True):
            drawn = noisy_batch(
                [latent for latent, _ in seen],
                keys,
                lambda: trainer.captions.encode(trainer.bundle, texts),
                trainer.rules,
                trainer.bundle.device,
                [mask for _, mask in seen],
            )
            losses = picture_losses(trainer.bundle, drawn, trainer.rules)
            return weighted(losses, [record.is_reg for record in records], self.config.loss.prior_loss_weight).sum()

    def _text(self, item: order.Item, step: int) -> str:
        """The caption as this showing reads it after `step` steps."""
        total = self.plan.total_steps
        return text_of(self.trainer.pictures, item, seed=self.config.seed, epoch=self.epoch, step=step, total_steps=total)

    def _held_text(self, record: ImageRecord) -> str:
        """The caption of a picture that is held back: the same each time."""
        return wording.caption_of(record, self.trainer.pictures.rules_of(record))

    def _update(self, rate: float) -> float:
        """Clips the gradient and steps; returns its length before clipping."""
        optimizer, scaler = self.trainer.optimizer, self.trainer.scaler
        if scaler is not None:
            scaler.unscale_(optimizer.inner)
        gradients = optimizer.gradients()
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
        length = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
        limit = self.config.optimizer.max_grad_norm
        norm = float(length)
        if limit and norm > limit:
            for gradient in gradients:
                gradient.mul_(limit / (norm + 1e-6))
        if norm == norm and norm != float("inf"):
            optimizer.step(rate)
        else:
            optimizer.drop()
        if scaler is not None:
            scaler.update()
        return norm

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
        if self.step == min(MOVED_AFTER, self.plan.total_steps) and self.step == MOVED_AFTER:
            setup.check_moved(self.trainer)
        last = self.step >= self.plan.total_steps
        epoch_done = epoch_ends or last
        saves = self.plan.saves
        if saves.steps and self.step % saves.steps == 0 and not last:
            yield from self._save(self.names.step(self.step))
        if saves.epochs and epoch_done and (self.epoch % saves.epochs == 0 or last):
            yield from self._save(self.names.epoch(self.epoch))
        if self.plan.validations.hit(self.step, self.epoch, epoch_done):
            yield from self._validate()
        if self.trainer.requests and self.plan.previews.hit(self.step, self.epoch, epoch_done):
            yield from self._preview()

    def _between_steps(self) -> Iterator[Event]:
        """What the user asked for meanwhile: save, preview, pause; and other people's turn at the host."""
        if self.control.take("save"):
            yield from self._save(self.names.step(self.step))
        if self.control.take("sample") and self.trainer.requests:
            yield from self._preview()
        if self.control.pausing:
            yield from self._pause()
        else:
            self.lease.breathe()
            self._follow_source()

    def _pause(self) -> Iterator[Event]:
        self.trainer.release()
        self.lease.pause()
        yield Paused(self.step)
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
                yield Resumed(self.step)
                return

    def _follow_source(self) -> None:
        """The host may have had to read the model anew while somebody else generated."""
        if self.lease.source is not self.trainer.source:
            self.trainer.rebuild(self.lease.source)

    def _end(self) -> Iterator[Event]:
        self.stopped = self.step < self.plan.total_steps
        if self.stopped:
            if self.control.save_on_stop and self.step:
                yield from self._save(self.names.step(self.step))
            return
        if self.validated_at != self.step:
            yield from self._validate()
        yield from self._save(self.names.final(), final=True)

    def _save(self, path: Path, *, final: bool = False) -> Iterator[Event]:
        if path in self.files:
            return
        yield Phase("saving", 1)
        words = metadata.moment(self.shared_words, step=self.step, epoch=self.epoch)
        state = self.trainer.adapter.state_dict()
        sha256 = write_lora(path, state, words, self.config.save.precision)
        self.files.append(path)
        self._describe(path)
        yield Saved(self.step, self.epoch, str(path), sha256, path.stat().st_size, final)

    def _describe(self, path: Path) -> None:
        text = f"{self.names.name}: epoch {self.epoch}, step {self.step}, {self.plan.images} pictures"
        preview = self._sample_path(0) if self.sampled_at == self.step else None
        write_side_files(path, trigger=self.config.data.trigger_word, description=text, preview=preview)

    def _validate(self) -> Iterator[Event]:
        held = self.trainer.pictures.held
        if not held or self.validated_at == self.step:
            return
        yield Phase("validating", len(held))
        captions = self.trainer.captions
        captions.fill(self.trainer.bundle, captions.missing(map(self._held_text, held)))
        loss = validation_loss(
            self.trainer.bundle,
            [self.trainer.latent(record, False) for record in held],
            [record.key for record in held],
            lambda number: captions.encode(self.trainer.bundle, [self._held_text(held[number])]),
            self.trainer.precision,
            lambda: not self.control.stopping,
        )
        if loss is not None:
            self.validated_at = self.step
            yield Validated(self.step, self.epoch, loss)

    def _preview(self) -> Iterator[Event]:
        """Draws every preview prompt; one that fails or is interrupted is a warning, never the end of the run."""
        if self.sampled_at == self.step:
            return
        yield Phase("sampling", len(self.trainer.requests))
        for index, request in enumerate(self.trainer.requests):
            try:
                picture = self._draw(request)
            except (RuntimeError, OSError, TrainerError) as error:
                yield Warned(say("The preview at step {step} was left out: {reason}", step=self.step, reason=str(error)[:200]))
                break
            if picture is None:
                break
            path = self._sample_path(index)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
            self.sampled_at = self.step
            yield Sampled(self.step, self.epoch, str(path), request.prompt, request.seed, index)
            yield Progress(index + 1)
        if self.sampled_at == self.step:
            for saved in self.files[-2:]:
                if saved in (self.names.epoch(self.epoch), self.names.step(self.step)):
                    self._describe(saved)

    def _draw(self, request: SampleRequest) -> Image | None:
        if not self.lease.own_previews:
            return draw(self.trainer.bundle, request, self.trainer.precision, lambda: self.control.stopping)
        self.trainer.detach()
        try:
            return self.lease.preview(request, None if self.step == 0 else self._write_temporary, 1.0, self.control)
        finally:
            self.trainer.rebuild(self.lease.source)

    def _write_temporary(self, path: Path) -> None:
        """The weights as they would be saved, so that the preview is what the file will draw."""
        words = metadata.moment(self.shared_words, step=self.step, epoch=self.epoch)
        write_lora(path, self.trainer.adapter.state_dict(), words, self.config.save.precision)

    def _sample_path(self, index: int) -> Path:
        return self.folder / "samples" / f"{self.names.name}_{self.step:06d}_{index:02d}.png"

    def _shared_words(self) -> dict[str, str]:
        config, pictures = self.config, self.trainer.pictures
        facts = metadata.RunFacts(
            output_name=self.names.name,
            started_at=metadata.now(),
            checkpoint=self.lease.checkpoint,
            checkpoint_sha256=self.lease.sha256,
            vae=self.lease.vae_title,
            trigger=config.data.trigger_word,
            resolution=size_of(pictures.datasets[0]),
            options=setup.header_options(config, self.plan, pictures.datasets[0], self.trainer.precision.name),
            datasets=metadata.dataset_words(pictures.datasets, pictures.subsets, pictures.trained),
        )
        return metadata.run_metadata(facts, pictures.trained, self.trainer.adapter.metadata())
