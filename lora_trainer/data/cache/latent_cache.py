"""Latents cached in memory or on disk. A cached latent equals a newly encoded one, bit for bit."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lora_trainer.control import Control
from lora_trainer.data.cache.array_store import ArrayStore
from lora_trainer.data.cache.npz import NpzFormat, read_npz
from lora_trainer.data.pictures.image_header import unreadable_reason
from lora_trainer.data.pictures.images import load_bucket_image
from lora_trainer.data.records import ImageRecord
from lora_trainer.errors import DatasetError
from lora_trainer.events import Event, Progress, Warned
from lora_trainer.file_hashes import FileHashes, Stamp, stamp_of
from lora_trainer.gc_pause import gc_paused
from lora_trainer.messages import say

Encode = Callable[[Tensor], Tensor]
RecordView = tuple[ImageRecord, bool]
"""A record, and whether it is flipped."""
PLACEMENT = struct.Struct("<8q?")
PIXELS_VERSION = 1
"""Increased whenever a change of this program changes the pixels of a file."""
READ_AHEAD = 4
"""Pictures that are decoded ahead while another one is encoded."""
SAME_VAE_CORRELATION = 0.9
"""Least correlation of a stored and an encoded latent of the same VAE."""


@attrs.define(eq=False)
class DiskCache:
    """Latents kept between runs in `folder`. `encoder` identifies all that they depend on besides the picture (models/identity.py)."""

    folder: Path
    encoder: str
    channels: int
    store: ArrayStore = attrs.field(init=False)
    hashes: FileHashes = attrs.field(init=False)
    _key_prefixes: dict[str, Any] = attrs.field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self.store, self.hashes = ArrayStore(self.folder), FileHashes(self.folder)

    def shape(self, record: ImageRecord) -> tuple[int, int, int]:
        """Shape of a record's latents, (channels, h/8, w/8)."""
        width, height = _bucket(record)
        return self.channels, height // 8, width // 8

    def key(self, record: ImageRecord, flipped: bool, digest: bytes) -> bytes:
        """32-byte key of the latents of a file's content (`digest`) in its bucket."""
        prefix = self._key_prefixes.get(record.interpolation)
        if prefix is None:
            text = f"{PIXELS_VERSION}|{self.encoder}|{record.interpolation or 'lanczos'}|"
            prefix = self._key_prefixes[record.interpolation] = hashlib.sha256(text.encode())
        key = prefix.copy()
        key.update(digest)
        key.update(PLACEMENT.pack(*_bucket(record), *(record.resized or (0, 0)), *(record.crop or (0, 0, 0, 0)), flipped))
        if record.frame is not None:
            key.update(struct.pack("<4d", *record.frame))
        return key.digest()


class LatentCache:
    """Encodes pictures with the VAE and keeps their latents.

    Args:
        encode: pixels float32 [n, 3, h, w] in -1..1 -> latents [n, channels, h/8, w/8].
        keep: False caches validation pictures only.
        disk: opens the cache on disk when filling starts; None caches in memory.
        batch_size: pictures encoded together; always as many (the last batch is padded), so that the others in a batch change no bit.
        npz: how sd-scripts' .npz files beside the pictures are read, called when filling starts; None: they are not.
    """

    def __init__(
        self,
        encode: Encode,
        *,
        keep: bool = True,
        disk: Callable[[], DiskCache] | None = None,
        batch_size: int = 1,
        npz: Callable[[], NpzFormat | None] = lambda: None,
    ) -> None:
        self._encode_pixels = encode
        self._keep = keep
        self._make_disk = disk
        self._disk: DiskCache | None = None
        self.batch_size = batch_size
        self._npz = npz
        self._memory: dict[tuple[object, ...], Tensor] = {}
        self._keys: dict[tuple[object, ...], tuple[bytes, Stamp]] = {}

    def fill(self, records: Sequence[ImageRecord], *, flip: Callable[[ImageRecord], bool], control: Control) -> Iterator[Event]:
        """Encodes what is missing, also flipped where `flip` says so; ends early if stopped. Raises DatasetError.

        Progress counts records; cached ones are reported in one event.
        """
        if self._make_disk is not None and self._disk is None:
            self._disk = self._make_disk()
        with gc_paused():
            views = [(record, flipped) for record in records if self._keep or record.validation for flipped in _flips(record, flip(record))]
            if self._disk is not None:
                self._disk.hashes.preload(record.path for record, flipped in views if not flipped)
            missing = [view for view in views if not self._is_cached(view)]
        if missing and (npz := self._npz()) is not None:
            missing = yield from self._read_npz_files(missing, npz)
        pending = Counter(id(record) for record, _ in missing)
        done = len(records) - len(pending)
        if done and not control.stopping:
            yield Progress(done)
        try:
            for batch, pixels in self._load_batches(missing, control):
                if not all(self._is_cached_now(view) for view in batch):  # two files with the same content, or another process was faster
                    yield from self._store(batch, self._encode_batch(batch, pixels))
                for record, _ in batch:
                    pending[id(record)] -= 1
                    if not pending[id(record)]:
                        done += 1
                        yield Progress(done)
        finally:
            if self._disk is not None:
                self._disk.hashes.save()

    def get(self, record: ImageRecord, flipped: bool) -> Tensor:
        """Latents [channels, h/8, w/8] on the CPU, cached or encoded now. Raises DatasetError naming the picture."""
        name = _view_key(record, flipped)
        if (latent_in_memory := self._memory.get(name)) is not None:
            return latent_in_memory
        if self._disk is not None and (key := self._keys.get(name)) is not None:
            stored = self._disk.store.get(self._disk.shape(record), key[0])
            if stored is not None:
                return torch.from_numpy(stored)
        latent = self.encode(record, load_pixels(record, flipped))
        for _ in self._store([(record, flipped)], [latent]) if name in self._keys else ():  # damaged, or cleared meanwhile
            pass
        return latent

    def encode(self, record: ImageRecord, pixels: Tensor) -> Tensor:
        """Encodes pixels [1, 3, h, w] of a picture to latents [channels, h/8, w/8]. Raises DatasetError naming the picture."""
        return self._encode_batch([(record, False)], [pixels])[0]

    @property
    def is_on_disk(self) -> bool:
        """Whether latents are on disk, where other processes can read them."""
        return self._make_disk is not None

    @property
    def megabytes(self) -> float:
        """Memory of the latents in memory, in MiB."""
        return sum(latent.numel() * latent.element_size() for latent in self._memory.values()) / 2**20

    def close(self) -> None:
        """Closes the files on disk."""
        if self._disk is not None:
            self._disk.store.close()

    def _is_cached(self, view: RecordView) -> bool:
        """Whether the latents are cached, without reading the picture."""
        record, flipped = view
        name = _view_key(record, flipped)
        if self._disk is None or name in self._memory:
            return name in self._memory
        stamp = _stamp_of(record)
        digest = self._disk.hashes.get(record.path, stamp)
        if digest is None:
            return False
        key = self._disk.key(record, flipped, digest)
        self._keys[name] = key, stamp
        return self._disk.store.has(self._disk.shape(record), key)

    def _is_cached_now(self, view: RecordView) -> bool:
        """Whether the latents are cached by now, perhaps by another process."""
        record, flipped = view
        name = _view_key(record, flipped)
        if name in self._memory:
            return True
        if self._disk is None or name not in self._keys:
            return False
        self._disk.store.refresh(self._disk.shape(record))
        return self._disk.store.has(self._disk.shape(record), self._keys[name][0])

    def _set_key(self, record: ImageRecord, flipped: bool, stamp: Stamp, digest: bytes) -> None:
        if self._disk is not None:
            self._keys[_view_key(record, flipped)] = self._disk.key(record, flipped, digest), stamp

    def _load(self, record: ImageRecord, flipped: bool) -> tuple[tuple[Stamp, bytes] | None, Tensor]:
        """Stamp and digest of the file (None without a cache on disk), and its pixels; called in worker threads. Raises DatasetError."""
        try:
            content = self._disk.hashes.digest(record.path) if self._disk is not None else None
        except OSError as error:
            raise _unreadable(record, error) from error
        return content, load_pixels(record, flipped)

    def _store(self, batch: Sequence[RecordView], latents: Sequence[Tensor]) -> Iterator[Event]:
        for (record, flipped), latent in zip(batch, latents, strict=True):
            name = _view_key(record, flipped)
            if self._disk is None or name not in self._keys or not _is_unchanged(record.path, self._keys[name][1]):
                self._memory[name] = latent
                continue
            try:
                self._disk.store.put(self._keys[name][0], latent.numpy())
            except OSError as error:
                self._memory[name], self._disk, self._make_disk = latent, None, None
                why = error.strerror or str(error)
                yield Warned(say("Encoded pictures cannot be kept on disk ({why}); they are kept in memory.", why=why))

    def _load_batches(self, missing: Sequence[RecordView], control: Control) -> Iterator[tuple[list[RecordView], list[Tensor]]]:
        """Batches of one bucket with their pixels, decoded ahead in threads; ends early if stopped."""
        batches = list(_batches(missing, self.batch_size))
        ahead = max(1, READ_AHEAD // self.batch_size)
        with ThreadPoolExecutor(2, "lora-trainer-read") as pool:
            pending: list[list[Future[tuple[tuple[Stamp, bytes] | None, Tensor]]]] = []
            try:
                for number, batch in enumerate(batches):
                    for later in batches[number + len(pending) : number + ahead]:
                        pending.append([pool.submit(self._load, record, flipped) for record, flipped in later])
                    if control.stopping:
                        return
                    loaded = [future.result() for future in pending.pop(0)]
                    for (record, flipped), (content, _) in zip(batch, loaded, strict=True):
                        if content is not None:
                            self._set_key(record, flipped, *content)
                    yield batch, [pixels for _, pixels in loaded]
            finally:
                for futures in pending:
                    for future in futures:
                        future.cancel()

    def _encode_batch(self, batch: Sequence[RecordView], pixels: Sequence[Tensor]) -> list[Tensor]:
        padded = [*pixels, *[pixels[-1]] * (self.batch_size - len(pixels))]
        encoded = self._encode_pixels(padded[0] if len(padded) == 1 else torch.cat(padded))[: len(pixels)]
        latents = encoded.detach().to("cpu", copy=True).float()
        for (record, _), latent in zip(batch, latents, strict=True):
            if not torch.isfinite(latent).all():
                raise DatasetError(
                    "the VAE's output for {file} is not finite.",
                    path=str(record.path),
                    file=record.path.name,
                    fix='Choose another VAE (model.vae), or set memory.mixed_precision to "no".',
                )
        return [latent.clone() for latent in latents] if len(latents) > 1 else [latents[0].contiguous()]

    def _read_npz_files(self, missing: Sequence[RecordView], npz: NpzFormat) -> Iterator[Event]:
        """Caches latents of sd-scripts' files in memory, yields warnings, and returns the views that are still missing."""
        remaining: list[RecordView] = []
        faults: Counter[str] = Counter()
        used = 0
        for record, flipped in missing:
            latents, fault = read_npz(record, flipped, npz.channels)
            if latents is None:
                remaining.append((record, flipped))
                faults[fault] += fault != "none"
                continue
            latent = torch.from_numpy(latents * np.float32(npz.scale))
            if not used and not self._is_of_same_vae(record, flipped, latent):
                yield Warned(say("sd-scripts' latents beside the pictures come from another VAE; they are not used."))
                return list(missing)
            self._memory[_view_key(record, flipped)] = latent
            used += 1
        if used:
            yield Warned(say("{count} latents of sd-scripts' .npz files are used; they hold no hash of the picture.", count=used))
        if refused := sum(faults.values()):
            yield Warned(
                say(
                    "{count} .npz files of sd-scripts are not used: {older} are older than the picture, "
                    "{size} have another size, {damaged} are damaged.",
                    count=refused,
                    older=faults["older"],
                    size=faults["other size"],
                    damaged=faults["damaged"],
                )
            )
        return remaining

    def _is_of_same_vae(self, record: ImageRecord, flipped: bool, latent: Tensor) -> bool:
        encoded = self.encode(record, load_pixels(record, flipped))
        if not torch.isfinite(latent).all():
            return False
        pair = torch.stack([encoded.flatten(), latent.flatten()])
        size_fits = 0.5 < float(latent.std() / encoded.std().clamp_min(1e-6)) < 2.0
        return size_fits and float(torch.corrcoef(pair)[0, 1]) > SAME_VAE_CORRELATION


def load_pixels(record: ImageRecord, flipped: bool) -> Tensor:
    """Pixels float32 [1, 3, h, w] in -1..1 of the picture in its bucket, mirrored if `flipped`. Raises DatasetError."""
    return to_pixels(load_bucket_image(record), flipped)


def to_pixels(picture: NDArray[np.uint8], flipped: bool) -> Tensor:
    """Pixels float32 [1, 3, h, w] in -1..1 from uint8 [h, w, 3]."""
    oriented = picture[:, ::-1] if flipped else picture
    bands = np.ascontiguousarray(oriented.transpose(2, 0, 1))
    return torch.from_numpy(bands).to(torch.float32).div_(127.5).sub_(1.0).unsqueeze(0)


def _flips(record: ImageRecord, flip: bool) -> tuple[bool, ...]:
    return (False, True) if flip and not record.validation else (False,)


def _batches(missing: Sequence[RecordView], batch_size: int) -> Iterator[list[RecordView]]:
    """Lists of at most `batch_size`, one bucket each; in the given order if `batch_size` is 1."""
    if batch_size == 1:
        yield from ([view] for view in missing)
        return
    for _, group in groupby(sorted(missing, key=lambda view: _bucket(view[0])), key=lambda view: _bucket(view[0])):
        views = list(group)
        yield from (views[start : start + batch_size] for start in range(0, len(views), batch_size))


def _view_key(record: ImageRecord, flipped: bool) -> tuple[object, ...]:
    return str(record.path), record.bucket, record.resized, record.frame, record.interpolation, flipped


def _bucket(record: ImageRecord) -> tuple[int, int]:
    if record.bucket is None:
        raise ValueError(f"{record.key} has no bucket: call buckets.assign_buckets first")
    return record.bucket


def _is_unchanged(path: Path, stamp: Stamp) -> bool:
    try:
        return stamp_of(path) == stamp
    except OSError:
        return False


def _stamp_of(record: ImageRecord) -> Stamp:
    try:
        return stamp_of(record.path)
    except OSError as error:
        raise _unreadable(record, error) from error


def _unreadable(record: ImageRecord, error: OSError) -> DatasetError:
    return DatasetError(
        "{file} cannot be read: {why}",
        path=str(record.path),
        file=record.path.name,
        why=unreadable_reason(error),
        fix="Save it again with an image program, or leave it out.",
    )
