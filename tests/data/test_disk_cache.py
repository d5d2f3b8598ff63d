"""Encoded pictures on disk: never stale, shared by processes, whole after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

from lora_trainer.data.cache import array_store
from lora_trainer.data.cache.array_store import ArrayStore
from lora_trainer.data.cache.latent_cache import LatentCache
from lora_trainer.data.cache.npz import NpzFormat
from lora_trainer.errors import DatasetError
from lora_trainer.events import Warned
from lora_trainer.file_hashes import FileHashes, stamp_of

from .conftest import noise
from .encoder import Encoder, disk_cache, filled, placed

ROOT = Path(__file__).parent.parent.parent
COUNT = 5


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "数据 集" / "ü {x}" / "[1]"
    folder.mkdir(parents=True)
    for number in range(COUNT):
        noise((64, 96) if number % 2 else (80, 64), number).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def encoded(pictures, tmp_path):
    """How many pictures a run that begins now encodes, as a process of its own would."""

    def count(*, seed: int = 0, flip: bool = False, crops: tuple[str, ...] = (), folder: Path = pictures, **data) -> int:
        encoder = Encoder(seed)
        records = placed(folder, crops, **data)
        cache = disk_cache(encoder, tmp_path / "cache")
        filled(cache, records, flip=flip)
        calls = encoder.calls
        for record in records:  # and what it serves is what would be encoded anew
            for flipped in (False, True) if flip else (False,):
                assert torch.equal(cache.get(record, flipped), LatentCache(Encoder(seed)).get(record, flipped)), record.key
        assert encoder.calls == calls
        cache.close()
        return calls

    return count


def test_a_second_run_encodes_nothing(encoded):
    assert encoded(flip=True) == 2 * COUNT
    assert encoded(flip=True) == 0 and encoded() == 0


def test_one_changed_pixel_encodes_one_picture(encoded, pictures):
    encoded()
    with Image.open(pictures / "2.png") as image:
        image.putpixel((3, 3), tuple(255 - value for value in image.getpixel((3, 3))))
        image.save(pictures / "2.png")
    assert encoded() == 1


def test_a_pixel_changed_without_another_size_or_time_is_seen(encoded, pictures):
    path = pictures / "0.bmp"
    (pictures / "0.png").unlink()
    noise((80, 64), 9).save(path)
    long_ago = time.time() - 1000
    os.utime(path, (long_ago, long_ago))
    encoded()
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-10] ^= 255
    path.write_bytes(bytes(data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns
    assert encoded() == 1


def test_a_touched_time_encodes_nothing(encoded, pictures):
    encoded()
    for path in pictures.iterdir():
        os.utime(path, (time.time() + 5, time.time() + 5))
    assert encoded() == 0


def test_swapped_files_encode_nothing_and_stay_themselves(encoded, pictures):
    encoded()
    (pictures / "0.png").rename(pictures / "x.png")
    (pictures / "2.png").rename(pictures / "0.png")
    (pictures / "x.png").rename(pictures / "2.png")
    assert encoded() == 0


def test_swapped_files_of_the_same_size_and_time_are_not_mistaken(encoded, pictures):
    for name, seed in (("a.bmp", 20), ("b.bmp", 21)):
        noise((64, 64), seed).save(pictures / name)
        os.utime(pictures / name, (1e9, 1e9))
    encoded()
    (pictures / "a.bmp").rename(pictures / "c.bmp")
    (pictures / "b.bmp").rename(pictures / "a.bmp")
    (pictures / "c.bmp").rename(pictures / "b.bmp")
    assert encoded() == 0  # and `encoded` has compared each with itself


def test_a_moved_or_copied_folder_encodes_nothing(encoded, pictures, tmp_path):
    encoded()
    shutil.copytree(pictures, tmp_path / "copy")
    assert encoded(folder=tmp_path / "copy") == 0


def test_another_vae_encodes_all_and_the_first_ones_stay(encoded):
    encoded()
    assert encoded(seed=1) == COUNT
    assert encoded(seed=0) == 0 and encoded(seed=1) == 0


def test_another_size_or_way_of_resizing_encodes_what_it_changes(encoded):
    encoded()
    assert encoded(resolution=128, max_bucket_reso=256) == COUNT
    assert encoded(min_bucket_reso=32) == COUNT
    assert encoded(enable_bucket=False) == 0  # at this size there was but the square
    assert encoded() == 0 and encoded(resolution=128, max_bucket_reso=256) == 0


def test_only_the_picture_whose_part_was_chosen_anew_is_encoded(encoded):
    encoded()
    assert encoded(crops=("1.png=0,0,1,0.7",)) == 1
    assert encoded(crops=("1.png=0,0,1,0.7",)) == 0
    assert encoded(crops=("1.png=0,0.3,1,1",)) == 1
    assert encoded() == 0


def test_another_interpolation_is_another_latent(pictures, tmp_path):
    records = placed(pictures, enable_bucket=False)
    filled(disk_cache(Encoder(), tmp_path / "cache"), records)
    encoder = Encoder()
    filled(disk_cache(encoder, tmp_path / "cache"), [attrs.evolve(record, interpolation="nearest") for record in records])
    assert encoder.calls == COUNT


def test_the_same_picture_twice_is_encoded_once(encoded, pictures):
    shutil.copy(pictures / "1.png", pictures / "again.png")
    assert encoded() == COUNT


def test_nothing_is_written_into_the_folder_of_pictures(encoded, pictures):
    before = {path.name: path.read_bytes() for path in pictures.iterdir()}
    encoded(flip=True)
    assert {path.name: path.read_bytes() for path in pictures.iterdir()} == before


def test_a_picture_that_changes_while_it_is_encoded_is_not_kept_under_its_old_content(pictures, tmp_path):
    class Slow(Encoder):
        def __call__(self, pixels):
            if self.calls == 0:
                noise((80, 64), 99).save(pictures / "0.png")
            return super().__call__(pixels)

    records = placed(pictures)
    filled(disk_cache(Slow(), tmp_path / "cache"), records)
    encoder = Encoder()
    cache = disk_cache(encoder, tmp_path / "cache")
    filled(cache, records)
    assert encoder.calls == 1 and torch.equal(cache.get(records[0], False), LatentCache(Encoder()).get(records[0], False))


def test_pictures_encoded_together_are_the_same_whoever_stands_beside_them(pictures, tmp_path):
    records = placed(pictures)
    one, other = LatentCache(Encoder(), batch_size=4), LatentCache(Encoder(), batch_size=4)
    filled(one, records)
    filled(other, records[:3])
    for record in records[:3]:
        assert torch.equal(one.get(record, False), other.get(record, False))
        assert torch.allclose(one.get(record, False), LatentCache(Encoder()).get(record, False), atol=1e-5)


def test_what_is_already_there_is_told_at_once(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_trainer.file_hashes.FRESH", -(10**18))  # as if the pictures had lain there for long
    records = placed(pictures)
    filled(disk_cache(Encoder(), tmp_path / "cache"), records[:3])
    assert [event.done for event in filled(disk_cache(Encoder(), tmp_path / "cache"), records)] == [3, 4, 5]
    assert [event.done for event in filled(disk_cache(Encoder(), tmp_path / "cache"), records)] == [5]


def test_latents_on_disk_take_no_memory(pictures, tmp_path):
    cache = disk_cache(Encoder(), tmp_path / "cache")
    filled(cache, placed(pictures))
    assert cache.megabytes == 0 and array_store.store_size(tmp_path / "cache") > COUNT * 4 * 8 * 8


# --- damage and other processes -------------------------------------------------------------------------------------------------------


def stored(folder: Path) -> int:
    return sum((path.stat().st_size - array_store.HEAD.size) // array_store.ENTRY.size for path in folder.glob("*.keys"))


def test_a_flipped_bit_on_disk_is_seen_and_the_picture_encoded_anew(pictures, tmp_path):
    records = placed(pictures)
    filled(disk_cache(Encoder(), tmp_path / "cache"), records)
    for path in (tmp_path / "cache").glob("*.latents"):
        data = bytearray(path.read_bytes())
        data[0] ^= 1
        path.write_bytes(bytes(data))
    encoder = Encoder()
    cache = disk_cache(encoder, tmp_path / "cache")
    filled(cache, records)
    for record in records * 2:
        assert torch.equal(cache.get(record, False), LatentCache(Encoder()).get(record, False))
    assert encoder.calls == len(list((tmp_path / "cache").glob("*.latents")))
    after = Encoder()
    cache = disk_cache(after, tmp_path / "cache")
    filled(cache, records)
    assert [cache.get(record, False) for record in records] and after.calls == 0


@pytest.mark.parametrize("cut", [1, array_store.ENTRY.size - 1, array_store.ENTRY.size + 3])
def test_torn_keys_cost_only_their_pictures(encoded, pictures, tmp_path, cut):
    (pictures / "0.png").unlink(), (pictures / "2.png").unlink(), (pictures / "4.png").unlink()
    for number in (5, 7):
        noise((64, 96), number).save(pictures / f"{number}.png")
    assert encoded() == 4  # one bucket
    keys = next((tmp_path / "cache").glob("*.keys"))
    keys.write_bytes(keys.read_bytes()[:-cut])
    assert encoded() == (1 if cut < array_store.ENTRY.size else 2)
    assert encoded() == 0


@pytest.mark.parametrize("left", [0, 3, array_store.HEAD.size - 1])
def test_a_file_of_keys_without_its_head_begins_anew(encoded, tmp_path, left):
    encoded()
    for keys in (tmp_path / "cache").glob("*.keys"):
        keys.write_bytes(keys.read_bytes()[:left])
    assert encoded() == COUNT and encoded() == 0


def test_keys_of_zeros_as_after_a_power_cut_are_no_keys(encoded, tmp_path):
    encoded()
    for keys in (tmp_path / "cache").glob("*.keys"):
        keys.write_bytes(keys.read_bytes()[: array_store.HEAD.size] + bytes(keys.stat().st_size - array_store.HEAD.size))
    assert encoded() == COUNT and encoded() == 0


def test_a_missing_file_of_latents_is_written_again(pictures, tmp_path):
    records = placed(pictures)
    filled(disk_cache(Encoder(), tmp_path / "cache"), records)
    for path in (tmp_path / "cache").glob("*.latents"):
        path.unlink()
    for expected in (COUNT, 0):
        encoder = Encoder()
        cache = disk_cache(encoder, tmp_path / "cache")
        filled(cache, records)
        for record in records:
            assert torch.equal(cache.get(record, False), LatentCache(Encoder()).get(record, False))
        assert encoder.calls == expected


def test_a_broken_index_of_contents_costs_only_time(encoded, tmp_path):
    encoded()
    (tmp_path / "cache" / "contents.sqlite").write_bytes(b"no database" * 100)
    assert encoded() == 0


def test_a_disk_that_refuses_leaves_latents_in_memory_and_says_so_once(pictures, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ArrayStore, "put", full)
    encoder = Encoder()
    cache, records = disk_cache(encoder, tmp_path / "cache"), placed(pictures)
    told = [event for event in filled(cache, records) if isinstance(event, Warned)]
    assert len(told) == 1 and "No space left" in told[0].message.text() and encoder.calls == COUNT
    assert torch.equal(cache.get(records[0], False), LatentCache(Encoder()).get(records[0], False)) and cache.megabytes > 0


def process(pictures: Path, cache: Path, slow: float = 0.0) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "tests.data.encoder", str(pictures), str(cache), str(slow)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")


def test_two_processes_at_once_end_with_one_right_cache(pictures, tmp_path, encoded):
    both = [process(pictures, tmp_path / "cache", 0.05) for _ in range(2)]
    for one in both:
        output, errors = one.communicate(timeout=120)
        assert one.returncode == 0 and output.split()[-1] == str(COUNT), errors
    assert stored(tmp_path / "cache") == 2 * COUNT  # no picture twice
    assert encoded(flip=True) == 0


def test_after_a_kill_in_the_middle_the_next_start_goes_on(pictures, tmp_path, encoded):
    killed = process(pictures, tmp_path / "cache", 0.3)
    assert killed.stdout is not None
    while killed.stdout.readline().strip() != "2":
        pass
    killed.send_signal(signal.SIGKILL)
    killed.wait(30)
    killed.stdout.close(), killed.stderr.close()
    there = stored(tmp_path / "cache")
    assert 4 <= there < 2 * COUNT
    assert encoded(flip=True) == 2 * COUNT - there
    assert encoded(flip=True) == 0


def test_a_process_sees_what_another_has_written_meanwhile(pictures, tmp_path):
    records = placed(pictures)

    class Overtaken(Encoder):
        def __call__(self, pixels):
            if not self.calls:
                filled(disk_cache(Encoder(), tmp_path / "cache"), records)
            return super().__call__(pixels)

    encoder = Overtaken()
    filled(disk_cache(encoder, tmp_path / "cache"), records)
    assert encoder.calls == 1 and stored(tmp_path / "cache") == COUNT


def test_clearing_under_a_run_takes_nothing_from_it(pictures, tmp_path):
    records = placed(pictures)
    cache = disk_cache(Encoder(), tmp_path / "cache")
    filled(cache, records)
    size = array_store.store_size(tmp_path / "cache")
    freed, left = array_store.clear(tmp_path / "cache")
    assert (freed, left) == (size, 0) and array_store.store_size(tmp_path / "cache") == 0
    for record in records:
        assert torch.equal(cache.get(record, False), LatentCache(Encoder()).get(record, False))
    other = Encoder()
    filled(disk_cache(other, tmp_path / "cache"), records)
    for record in records:
        assert torch.equal(cache.get(record, False), LatentCache(Encoder()).get(record, False))


def test_contents_are_read_again_only_when_a_file_was_touched(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    os.utime(path, (1e9, 1e9))
    first = FileHashes(tmp_path / "known")
    monkeypatch.setattr("lora_trainer.file_hashes.FRESH", -(10**18))  # as if it had been written long ago
    _, digest = first.digest(path)
    first.save()
    second = FileHashes(tmp_path / "known")
    second.preload([path])
    assert second.get(path, stamp_of(path)) == digest
    path.write_bytes(b"two")
    assert second.get(path, stamp_of(path)) is None and second.digest(path)[1] != digest


def test_a_file_that_was_changed_just_now_is_not_believed_to_stay(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    contents = FileHashes(tmp_path / "known")
    contents.digest(path)
    assert contents.get(path, stamp_of(path)) is None


# --- sd-scripts' npz ------------------------------------------------------------------------------------------------------------------


def npz_beside(record, *, name: str = "", seed: int = 0, scale: float = 0.5, shape=None, flipped=True, **known) -> Path:
    latents = LatentCache(Encoder(seed)).get(record, False).numpy() / scale
    mirrored = LatentCache(Encoder(seed)).get(record, True).numpy() / scale
    path = record.path.with_name(name or f"{record.path.stem}_{record.width:04d}x{record.height:04d}_sd.npz")
    content = {"latents": latents, "original_size": np.array([record.width, record.height]), "crop_ltrb": np.zeros(4), **known}
    np.savez(path, **content, **({"latents_flipped": mirrored} if flipped else {}))
    return path


def with_npz(records, **how):
    encoder = Encoder()
    cache = LatentCache(encoder, npz=lambda: NpzFormat(0.5, 4), **how)
    events = filled(cache, records, flip=True)
    return cache, encoder.calls, " ".join(event.message.text() for event in events if isinstance(event, Warned))


@pytest.mark.parametrize("name", ["", "0.npz"])
def test_npz_files_of_sd_scripts_are_read_where_they_fit(pictures, name):
    records = placed(pictures)
    npz_beside(records[0], name=name)
    cache, calls, told = with_npz(records)
    assert calls == 2 * (COUNT - 1) + 1 and "2 latents" in told and "no hash" in told  # one more to compare the VAE
    for flipped in (False, True):
        assert torch.allclose(cache.get(records[0], flipped), LatentCache(Encoder()).get(records[0], flipped), atol=1e-6)


def test_npz_files_are_not_read_unless_asked_for(pictures):
    records = placed(pictures)
    npz_beside(records[0])
    encoder = Encoder()
    filled(LatentCache(encoder), records)
    assert encoder.calls == COUNT


@pytest.mark.parametrize("fault", ["older", "another size", "damaged", "another VAE", "no mirrored", "not a number"])
def test_npz_files_that_do_not_fit_are_refused_and_counted(pictures, fault):
    records = placed(pictures)
    known = {"original_size": np.array([640, 480])} if fault == "another size" else {}
    path = npz_beside(records[0], seed=7 if fault == "another VAE" else 0, flipped=fault != "no mirrored", **known)
    if fault == "older":
        os.utime(path, (1e9, 1e9))
    if fault == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    if fault == "not a number":
        latents = np.full((4, records[0].bucket[1] // 8, records[0].bucket[0] // 8), np.nan, np.float32)
        np.savez(path, latents=latents, latents_flipped=latents)
    cache, _, told = with_npz(records)
    assert told
    for flipped in (False, True):
        assert torch.allclose(cache.get(records[0], flipped), LatentCache(Encoder()).get(records[0], flipped), atol=1e-6)


def test_a_picture_that_is_gone_is_named(pictures, tmp_path):
    records = placed(pictures)
    (pictures / "3.png").unlink()
    with pytest.raises(DatasetError, match=r"3\.png"):
        filled(disk_cache(Encoder(), tmp_path / "cache"), records)
