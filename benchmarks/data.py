"""Pictures of a training set: found, encoded, kept and put into batches, each beside the plain way (PIL, one npz a picture).

    python benchmarks/data.py                          10 000 pictures, about three minutes
    python benchmarks/data.py --pictures 1000 --json   a short one, for programs

Times are seconds of this process's CPU with one thread; each row is the best of some rounds, and says what it may be at most.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lora_trainer import file_hashes
from lora_trainer.config.build import build
from lora_trainer.config.schema import DataConfig
from lora_trainer.control import Control
from lora_trainer.data.buckets import assign_buckets
from lora_trainer.data.cache.latent_cache import DiskCache, LatentCache
from lora_trainer.data.records import ImageRecord
from lora_trainer.data.sources import scan
from lora_trainer.data.sources.blueprint import Source
from lora_trainer.data.sources.scan import cached_scan
from lora_trainer.gc_pause import gc_paused

SMALL = {"resolution": 64, "min_bucket_reso": 32, "bucket_reso_steps": 8}
LARGE = {"resolution": 512}
ENCODED = 100
BATCH = 4


@attrs.frozen
class Row:
    """`ours` and `plain` in `unit`; `limit`: what ours may be at most."""

    name: str
    ours: float
    plain: float
    limit: float
    unit: str

    def to_json(self) -> dict[str, object]:
        ratio = round(self.ours / self.plain, 4) if self.plain else None
        return {**attrs.asdict(self), "reference": self.plain, "ratio": ratio, "holds": self.ours <= self.limit}


def rows(folder: Path, count: int) -> Iterator[Row]:
    """Every measurement, in `folder`, with `count` small pictures and ten times as many for the growth."""
    pictures = folder / "pictures"
    write_pictures(pictures, count)
    yield from of_scanning(pictures, count)
    yield from of_growth(folder / "many", count)
    yield from of_encoding(folder)
    yield from of_warm_start(folder, pictures, count)
    yield from of_batches(folder, min(count, 1000))


def write_pictures(folder: Path, count: int) -> None:
    """JPEGs of 64 pixels a side and less, each with bytes of its own."""
    folder.mkdir(parents=True)
    kinds = []
    for number in range(20):
        packed = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64 - number % 4 * 8, 40 + number)).save(packed, "JPEG")
        kinds.append(packed.getvalue())
    for number in range(count):
        (folder / f"{number:06d}.jpg").write_bytes(kinds[number % 20] + b"%d" % number)


def of_scanning(pictures: Path, count: int) -> Iterator[Row]:
    source, data, share = Source("", str(pictures)), _options(SMALL), count / 10_000
    ours = best(lambda: _placed(source, data))
    plain = best(lambda: _plain_scan(pictures), 2)
    yield Row(f"scan and bucket {count} pictures", ours, plain, 0.5 * share, "s")
    with _believed():
        cached_scan(source)
        yield Row(f"scan {count} pictures again", best(lambda: cached_scan(source)), plain, 0.1 * share, "s")


def of_growth(folder: Path, count: int) -> Iterator[Row]:
    """Time and memory of ten times as many pictures."""
    write_pictures(folder, count * 10)
    few, data = Source("", str(folder.with_name("pictures"))), _options(SMALL)
    many = Source("", str(folder))
    gc.collect()
    before = resident()
    kept = _placed(many, data)
    each = (resident() - before) / len(kept)
    del kept
    ratio = best(lambda: _placed(many, data), 2) / best(lambda: _placed(few, data), 5) / 10
    yield Row(f"growth from {count} to {count * 10}, of linear", ratio, 1.0, 1.1, "times")
    yield Row("memory of a picture", each, 0.0, 2048.0, "bytes")


def of_encoding(folder: Path) -> Iterator[Row]:
    """What encoding costs besides the VAE: decoding, hashing, writing; and with the resizing that the plain way does too."""
    ours, plain = _encoding(folder / "of its size", 512)
    yield Row("encode a picture of 512 pixels, besides the VAE", ours, plain, 8.0, "ms")
    ours, plain = _encoding(folder / "larger", 640)
    yield Row("the same for one of 640 pixels, resized by Lanczos", ours, plain, 1.25 * plain, "ms")


def _encoding(pictures: Path, side: int) -> tuple[float, float]:
    """CPU milliseconds for each picture, ours and the plain way."""
    pictures.mkdir()
    for number in range(ENCODED):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(pictures / f"{number}.jpg", quality=92)
    records = assign_buckets(cached_scan(Source("", str(pictures))).records, _options(LARGE))
    ours, plain = [], []
    for number in range(2):
        encode, spent = _encoder()
        begin = time.process_time()
        _fill(LatentCache(encode, disk=lambda place=pictures / f"kept {number}": DiskCache(place, "stub", 4)), records)
        ours.append((time.process_time() - begin - sum(spent)) / ENCODED)
        encode, spent = _encoder()
        begin = time.process_time()
        for record in records:
            _plain_encode(record, encode)
        plain.append((time.process_time() - begin - sum(spent)) / ENCODED)
    return min(ours) * 1000, min(plain) * 1000


def of_warm_start(folder: Path, pictures: Path, count: int) -> Iterator[Row]:
    records = assign_buckets(cached_scan(Source("", str(pictures))).records, _options(SMALL))
    encode, _ = _encoder()

    def start() -> None:
        cache = LatentCache(encode, disk=lambda: DiskCache(folder / "warm", "stub", 4))
        _fill(cache, records)
        cache.close()

    with _believed():
        start()
        ours = best(start, 5)
    first = next(record for record in records if record.bucket)
    np.savez(folder / "one.npz", latents=np.zeros((4, 8, 8), np.float32), original_size=np.array([first.width, first.height]))
    plain = best(lambda: [_plain_check(folder / "one.npz") for _ in range(count)], 1)
    yield Row(f"start with {count} latents on disk", ours, plain, 0.1 * count / 10_000, "s")


def of_batches(folder: Path, count: int) -> Iterator[Row]:
    """A batch of four latents of 512 pixels."""
    disk = DiskCache(folder / "batches", "stub", 4)
    keys = [number.to_bytes(32, "little") for number in range(count)]
    latent = np.random.default_rng(0).standard_normal((4, 64, 64)).astype(np.float32)
    (folder / "npz").mkdir()
    for number, key in enumerate(keys):
        disk.store.put(key, latent + number)
        np.savez(folder / "npz" / f"{number}.npz", latents=latent)
    groups = [keys[begin : begin + BATCH] for begin in range(0, count - BATCH + 1, BATCH)]

    def ours() -> None:
        for group in groups:
            torch.stack([torch.from_numpy(array) for key in group if (array := disk.store.get((4, 64, 64), key)) is not None])

    def plain() -> None:
        for begin in range(0, count - BATCH + 1, BATCH):
            torch.stack([torch.from_numpy(np.load(folder / "npz" / f"{number}.npz")["latents"]) for number in range(begin, begin + BATCH)])

    ours()
    yield Row("put four latents of 512 pixels together", best(ours, 5) / len(groups) * 1000, best(plain, 2) / len(groups) * 1000, 0.1, "ms")


def best(work: Callable[[], object], rounds: int = 3) -> float:
    """CPU seconds of the fastest round."""
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return min(times)


def resident() -> int:
    """Bytes of memory that this process holds."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _placed(source: Source, data: DataConfig) -> list[ImageRecord]:
    with gc_paused():
        return assign_buckets(cached_scan(source).records, data)


def _fill(cache: LatentCache, records: Sequence[ImageRecord]) -> None:
    for _ in cache.fill(records, flip=lambda record: False, control=Control()):
        pass


def _encoder() -> tuple[Callable[[torch.Tensor], torch.Tensor], list[float]]:
    """A stand-in for a VAE, and the CPU seconds that it took each time."""
    spent: list[float] = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        begin = time.thread_time()
        small = torch.nn.functional.avg_pool2d(pixels, 8)
        found = torch.cat([small, small.mean(1, keepdim=True)], 1)
        spent.append(time.thread_time() - begin)
        return found

    return encode, spent


def _options(data: dict[str, int]) -> DataConfig:
    return build({"data": data}).data


class _believed:
    """Files that this program has just written count as if they had lain there for long."""

    def __enter__(self) -> None:
        self.kept = scan.FRESH, file_hashes.FRESH
        scan.FRESH = file_hashes.FRESH = -(10**18)

    def __exit__(self, *_: object) -> None:
        scan.FRESH, file_hashes.FRESH = self.kept


def _plain_scan(folder: Path) -> list[tuple[int, int]]:
    sizes = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".jpg", ".png"):
            with Image.open(path) as image:
                sizes.append(image.size)
    return sizes


def _plain_encode(record: ImageRecord, encode: Callable[[torch.Tensor], torch.Tensor]) -> None:
    assert record.resized is not None and record.crop is not None
    left, top, width, height = record.crop
    picture = Image.open(record.path).convert("RGB")
    picture = picture if picture.size == record.resized else picture.resize(record.resized, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(picture.crop((left, top, left + width, top + height))).copy()).permute(2, 0, 1)[None]
    np.savez(record.path.with_suffix(".npz"), latents=encode(pixels.float() / 127.5 - 1)[0].numpy())


def _plain_check(path: Path) -> bool:
    with np.load(path) as stored:
        return bool(stored["latents"].shape[1:] == (8, 8) and stored["original_size"].shape == (2,))


def main(words: Sequence[str] | None = None) -> int:
    """Prints the rows; 1 where one does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for row in rows(Path(folder), args.pictures):
            found.append(row)
            if not args.json:
                told = "" if row.ours <= row.limit else "  TOO MUCH"
                print(f"{row.name:<58}{row.ours:>10.4g} {row.unit:<6} plain {row.plain:>9.4g}   limit {row.limit:>7.4g}{told}", flush=True)
    if args.json:
        machine = {"processor": platform.processor() or platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
        print(json.dumps({"machine": machine, "rows": [row.to_json() for row in found]}, indent=1))
    return int(any(row.ours > row.limit for row in found))


if __name__ == "__main__":
    sys.exit(main())
