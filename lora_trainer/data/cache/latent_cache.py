"""Encoded pictures, kept in memory or on disk. What is kept equals what would be encoded anew, bit for bit."""

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
from lora_trainer.data.cache.array_store import LatentStore
from lora_trainer.data.cache.npz import read_npz
from lora_trainer.data.gc_pause import gc_paused
from lora_trainer.data.pictures.image_header import why_unreadable
from lora_trainer.data.pictures.images import fitted
from lora_trainer.data.records import ImageRecord
from lora_trainer.errors import DatasetError
from lora_trainer.events import Event, Progress, Warned
from lora_trainer.file_hashes import FileHashes, Stamp, stamp_of
from lora_trainer.messages import say

Encode = Callable[[Tensor], Tensor]
Wanted = tuple[ImageRecord, bool]
PLACE = struct.Struct("<8q?")
READER = 1
"""Counted up whenever a change of this program makes other pixels of a file."""
READ_AHEAD = 4
"""Pictures that are decoded while another one is encoded."""
ALIKE = 0.9
"""How alike a stored and an encoded latent have to be to come from the same VAE (correlation)."""


@attrs.define(eq=False)
class OnDisk:
    """Where latents are kept between runs, and what they depend on besides the picture: VAE, its number format, device, family."""

    folder: Path
    encoder: str
    store: LatentStore = attrs.field(init=False)
    contents: FileHashes = attrs.field(init=False)
    _begun: dict[str, Any] = attrs.field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self.store, self.contents = LatentStore(self.folder), FileHashes(self.folder)

    def key(self, record: ImageRecord, flipped: bool, digest: bytes) -> bytes:
        """Name of the latents of a picture's content in its bucket, 32 bytes."""
        begun = self._begun.get(record.interpolation)
        if begun is None:
            words = f"{READER}|{self.encoder}|{record.interpolation or 'lanczos'}|"
            begun = self._begun[record.interpolation] = hashlib.sha256(words.encode())
        hashed = begun.copy()
        hashed.update(digest)
        hashed.update(PLACE.pack(*_bucket(record), *(record.resized or (0, 0)), *(record.crop or (0, 0, 0, 0)), flipped))
        if record.frame is not None:
            hashed.update(struct.pack("<4d", *record.frame))
        return hashed.digest()


class LatentCache:
    """`encode`: pixels float32 [n, 3, h, w] from -1 to 1 -> latents [n, 4, h/8, w/8]. With `keep` False only validation pictures stay.

    `batch`: pictures encoded together, always as many (the last group is filled up), so that who stands beside a picture changes no
    bit. `disk` None: all is kept in memory. `npz_scale`: what sd-scripts' unscaled latents beside pictures are multiplied with; 0:
    they are not read. Both are asked for when filling begins.
    """

    def __init__(
        self,
        encode: Encode,
        *,
        keep: bool = True,
        disk: Callable[[], OnDisk] | None = None,
        batch: int = 1,
        npz_scale: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._encode = encode
        self._keep = keep
        self._make_disk = disk
        self._disk: OnDisk | None = None
        self.batch = batch
        self._npz_scale = npz_scale
        self._kept: dict[tuple[object, ...], Tensor] = {}
        self._keys: dict[tuple[object, ...], tuple[bytes, Stamp]] = {}

    def fill(self, records: Sequence[ImageRecord], *, flip: Callable[[ImageRecord], bool], control: Control) -> Iterator[Event]:
        """Encodes what is missing, mirrored ones too where `flip` says so; ends early when stopped. Raises DatasetError.

        Progress counts records; those that are there already are told of together.
        """
        if self._make_disk is not None and self._disk is None:
            self._disk = self._make_disk()
        with gc_paused():
            wanted = [(record, flipped) for record in records if self._keep or record.validation for flipped in _ways(record, flip(record))]
            if self._disk is not None:
                self._disk.contents.look_up(record.path for record, flipped in wanted if not flipped)
            missing = [one for one in wanted if not self._present(one)]
        if missing and (scale := self._npz_scale()):
            missing = yield from self._take_npz(missing, scale)
        left = Counter(id(record) for record, _ in missing)
        done = len(records) - len(left)
        if done and not control.stopping:
            yield Progress(done)
        try:
            for group, pixels in self._read_ahead(missing, control):
                if not all(self._there(one) for one in group):  # the content was known, or another process was faster
                    yield from self._keep_group(group, self._encoded(group, pixels))
                for record, _ in group:
                    left[id(record)] -= 1
                    if not left[id(record)]:
                        done += 1
                        yield Progress(done)
        finally:
            if self._disk is not None:
                self._disk.contents.save()

    def get(self, record: ImageRecord, flipped: bool) -> Tensor:
        """Latents [4, h/8, w/8] on the CPU, kept or encoded now. Raises DatasetError naming the picture."""
        name = _name(record, flipped)
        if (kept := self._kept.get(name)) is not None:
            return kept
        if self._disk is not None and (known := self._keys.get(name)) is not None:
            stored = self._disk.store.get(_shape(record), known[0])
            if stored is not None:
                return torch.from_numpy(stored)
        latent = self.encoded(record, pixels_of(record, flipped))
        for _ in self._keep_group([(record, flipped)], [latent]) if name in self._keys else ():  # was damaged, or cleared meanwhile
            pass
        return latent

    def encoded(self, record: ImageRecord, pixels: Tensor) -> Tensor:
        """Latents [4, h/8, w/8] of these pixels [1, 3, h, w] of a picture, encoded now. Raises DatasetError naming the picture."""
        return self._encoded([(record, False)], [pixels])[0]

    @property
    def lasting(self) -> bool:
        """Whether latents are kept on disk, where other processes find them."""
        return self._make_disk is not None

    @property
    def megabytes(self) -> float:
        """Memory that the kept latents take; those on disk take none."""
        return sum(latent.numel() * latent.element_size() for latent in self._kept.values()) / 2**20

    def close(self) -> None:
        """Lets go of the files on disk."""
        if self._disk is not None:
            self._disk.store.close()

    def _present(self, wanted: Wanted) -> bool:
        """Whether the latents are known to be there, without reading the picture."""
        record, flipped = wanted
        name = _name(record, flipped)
        if self._disk is None or name in self._kept:
            return name in self._kept
        stamp = _stamp_of(record)
        digest = self._disk.contents.known(record.path, stamp)
        if digest is None:
            return False
        key = self._disk.key(record, flipped, digest)
        self._keys[name] = key, stamp
        return self._disk.store.has(_shape(record), key)

    def _there(self, wanted: Wanted) -> bool:
        """Whether the latents are there by now; another process may have been faster."""
        record, flipped = wanted
        name = _name(record, flipped)
        if name in self._kept:
            return True
        if self._disk is None or name not in self._keys:
            return False
        self._disk.store.look_again(_shape(record))
        return self._disk.store.has(_shape(record), self._keys[name][0])

    def _name_on_disk(self, record: ImageRecord, flipped: bool, stamp: Stamp, digest: bytes) -> None:
        if self._disk is not None:
            self._keys[_name(record, flipped)] = self._disk.key(record, flipped, digest), stamp

    def _load(self, record: ImageRecord, flipped: bool) -> tuple[tuple[Stamp, bytes] | None, Tensor]:
        """What is in the file, and its pixels; called in other threads. Raises DatasetError."""
        try:
            content = self._disk.contents.digest(record.path) if self._disk is not None else None
        except OSError as error:
            raise _unread(record, error) from error
        return content, pixels_of(record, flipped)

    def _keep_group(self, group: Sequence[Wanted], latents: Sequence[Tensor]) -> Iterator[Event]:
        for (record, flipped), latent in zip(group, latents, strict=True):
            name = _name(record, flipped)
            if self._disk is None or name not in self._keys or not _untouched(record.path, self._keys[name][1]):
                self._kept[name] = latent
                continue
            try:
                self._disk.store.put(self._keys[name][0], latent.numpy())
            except OSError as error:
                self._kept[name], self._disk, self._make_disk = latent, None, None
                why = error.strerror or str(error)
                yield Warned(say("Encoded pictures cannot be kept on disk ({why}); they are kept in memory.", why=why))

    def _read_ahead(self, missing: Sequence[Wanted], control: Control) -> Iterator[tuple[list[Wanted], list[Tensor]]]:
        """Groups of the same size with their pixels, the next ones being decoded meanwhile; ends early when stopped."""
        groups = list(_groups(missing, self.batch))
        ahead = max(1, READ_AHEAD // self.batch)
        with ThreadPoolExecutor(2, "lora-trainer-read") as pool:
            coming: list[list[Future[tuple[tuple[Stamp, bytes] | None, Tensor]]]] = []
            try:
                for number, group in enumerate(groups):
                    for later in groups[number + len(coming) : number + ahead]:
                        coming.append([pool.submit(self._load, record, flipped) for record, flipped in later])
                    if control.stopping:
                        return
                    loaded = [future.result() for future in coming.pop(0)]
                    for (record, flipped), (content, _) in zip(group, loaded, strict=True):
                        if content is not None:
                            self._name_on_disk(record, flipped, *content)
                    yield group, [pixels for _, pixels in loaded]
            finally:
                for futures in coming:
                    for future in futures:
                        future.cancel()

    def _encoded(self, group: Sequence[Wanted], pixels: Sequence[Tensor]) -> list[Tensor]:
        filled = [*pixels, *[pixels[-1]] * (self.batch - len(pixels))]
        latents = self._encode(filled[0] if len(filled) == 1 else torch.cat(filled))[: len(pixels)].detach().to("cpu", copy=True).float()
        for (record, _), latent in zip(group, latents, strict=True):
            if not torch.isfinite(latent).all():
                raise DatasetError(
                    "the VAE gives no finite numbers for {file}.",
                    path=str(record.path),
                    file=record.path.name,
                    fix='Choose another VAE (model.vae), or set memory.mixed_precision to "no".',
                )
        return [latent.clone() for latent in latents] if len(latents) > 1 else [latents[0].contiguous()]

    def _take_npz(self, missing: Sequence[Wanted], scale: float) -> Iterator[Event]:
        """Keeps in memory what sd-scripts' files hold; gives back what is still missing, and tells how many were of no use."""
        still: list[Wanted] = []
        faults: Counter[str] = Counter()
        taken = 0
        for record, flipped in missing:
            latents, fault = read_npz(record, flipped)
            if latents is None:
                still.append((record, flipped))
                faults[fault] += fault != "none"
                continue
            latent = torch.from_numpy(latents * np.float32(scale))
            if not taken and not self._same_vae(record, flipped, latent):
                yield Warned(say("sd-scripts' latents beside the pictures come from another VAE; they are not used."))
                return list(missing)
            self._kept[_name(record, flipped)] = latent
            taken += 1
        if taken:
            yield Warned(say("{count} latents of sd-scripts' .npz files are used; they hold no hash of the picture.", count=taken))
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
        return still

    def _same_vae(self, record: ImageRecord, flipped: bool, latent: Tensor) -> bool:
        own = self.encoded(record, pixels_of(record, flipped))
        if not torch.isfinite(latent).all():
            return False
        pair = torch.stack([own.flatten(), latent.flatten()])
        size_fits = 0.5 < float(latent.std() / own.std().clamp_min(1e-6)) < 2.0
        return size_fits and float(torch.corrcoef(pair)[0, 1]) > ALIKE


def pixels_of(record: ImageRecord, flipped: bool) -> Tensor:
    """Pixels float32 [1, 3, h, w] from -1 to 1 of the picture in its bucket, mirrored with `flipped`. Raises DatasetError."""
    return as_pixels(fitted(record), flipped)


def as_pixels(picture: NDArray[np.uint8], flipped: bool) -> Tensor:
    """Pixels float32 [1, 3, h, w] from -1 to 1 of uint8 [h, w, 3]."""
    shown = picture[:, ::-1] if flipped else picture
    bands = np.ascontiguousarray(shown.transpose(2, 0, 1))
    return torch.from_numpy(bands).to(torch.float32).div_(127.5).sub_(1.0).unsqueeze(0)


def _ways(record: ImageRecord, flip: bool) -> tuple[bool, ...]:
    return (False, True) if flip and not record.validation else (False,)


def _groups(missing: Sequence[Wanted], batch: int) -> Iterator[list[Wanted]]:
    """Lists of at most `batch`, one bucket each; in the order given where `batch` is 1."""
    if batch == 1:
        yield from ([one] for one in missing)
        return
    for _, same in groupby(sorted(missing, key=lambda one: _bucket(one[0])), key=lambda one: _bucket(one[0])):
        members = list(same)
        yield from (members[start : start + batch] for start in range(0, len(members), batch))


def _name(record: ImageRecord, flipped: bool) -> tuple[object, ...]:
    return str(record.path), record.bucket, record.resized, record.frame, record.interpolation, flipped


def _bucket(record: ImageRecord) -> tuple[int, int]:
    if record.bucket is None:
        raise ValueError(f"{record.key} has no bucket: call buckets.place first")
    return record.bucket


def _shape(record: ImageRecord) -> tuple[int, int, int]:
    width, height = _bucket(record)
    return 4, height // 8, width // 8


def _untouched(path: Path, stamp: Stamp) -> bool:
    try:
        return stamp_of(path) == stamp
    except OSError:
        return False


def _stamp_of(record: ImageRecord) -> Stamp:
    try:
        return stamp_of(record.path)
    except OSError as error:
        raise _unread(record, error) from error


def _unread(record: ImageRecord, error: OSError) -> DatasetError:
    return DatasetError(
        "{file} cannot be read: {why}",
        path=str(record.path),
        file=record.path.name,
        why=why_unreadable(error),
        fix="Save it again with an image program, or leave it out.",
    )
