"""Whose turn it is: pauses, choices made meanwhile, others' pictures between two steps."""

import contextlib
import threading
import time
from pathlib import Path
from unittest.mock import patch

from lora_trainer.control import Control
from lora_trainer.errors import HostBusy
from lora_trainer.host.a1111 import LET_THROUGH
from lora_trainer.models.source import LiveSource
from tests.host.contract import REQUEST, check, only_in_a1111, raises, untouched, wait_for, weights


@check
def another_checkpoint_chosen_during_the_loan_waits_until_it_ends(world):
    m = world.modules
    chosen = m.shared.opts.data["sd_model_checkpoint"]
    with untouched(world):
        clean = world.hashes()
        with world.lend() as lease:
            before = lease.preview(REQUEST, weights(5), 1.0, Control()).tobytes()
            choosing = world.choose("sd_model_checkpoint", world.other)
            for _ in range(2):
                assert lease.preview(REQUEST, weights(5), 1.0, Control()).tobytes() == before
                assert m.shared.opts.data["sd_model_checkpoint"] == world.other
            assert not lease.let_one_through(), "let through what would load another model"
            assert world.hashes() == clean
            assert choosing.is_alive()
        choosing.join(60)
        assert world.loaded().sd_checkpoint_info.title == world.other
        assert world.hashes() != clean
        world.choose("sd_model_checkpoint", chosen).join(60)


@check
@only_in_a1111
def another_vae_chosen_during_the_loan_waits_until_it_ends(world):
    m = world.modules
    chosen, stored = m.shared.opts.sd_vae, "sd_vae" in m.shared.opts.data
    with untouched(world):
        clean = world.hashes()
        with world.lend() as lease:
            choosing = world.choose("sd_vae", world.vae)
            lease.preview(REQUEST, weights(5), 1.0, Control())
            assert world.hashes() == clean
            assert m.shared.opts.data["sd_vae"] == world.vae
        choosing.join(60)
        assert Path(m.sd_vae.loaded_vae_file).name == world.vae
        assert world.hashes() != clean
        world.choose("sd_vae", chosen).join(60)
        m.shared.opts.data.pop("sd_vae") if not stored else None


def places_of(source):
    """Where the lent tensors lie in memory."""
    states = (source.unet_state, source.vae_state, source.text_state)
    return {(number, name): tensor.data_ptr() for number, state in enumerate(states) for name, tensor in state.items()}


@check
def pause_gives_the_host_to_the_user_and_resume_takes_it_as_it_was(world):
    with untouched(world), world.lend() as lease:
        clean, places = world.hashes(), places_of(lease.source)
        lease.pause()
        assert places_of(lease.source) == {}
        world.generate("somebody else's picture <lora:mark:1>")
        assert world.hashes() != clean
        assert places_of(lease.resume()) == places
        assert world.hashes() == clean
        assert not world.queue_is_free()


@check
def model_that_cannot_be_brought_back_is_named_and_the_run_stays_paused(world):
    broken = {"unet.input_blocks.0.0.bias": 0}
    with untouched(world), world.lend() as lease:
        lease.pause()
        with patch(world.weight_fingerprints, return_value=broken):
            raises(HostBusy, lease.resume, lease.title, "Resume")
        assert world.queue_is_free()
        assert isinstance(lease.resume(), LiveSource)
        assert not world.queue_is_free()


@check
def checkpoint_whose_file_is_gone_is_named_and_the_host_keeps_what_it_has(world):
    chosen = world.modules.shared.opts.data["sd_model_checkpoint"]
    with untouched(world):
        with world.lend() as lease:
            lease.pause()
            world.choose("sd_model_checkpoint", world.other).join(60)
            with moved_away(lease.checkpoint):
                raises(HostBusy, lease.resume, lease.title, "Resume")
                assert world.loaded().sd_checkpoint_info.title == world.other
                assert world.generate("the host still draws")
            assert world.queue_is_free()
            lease.resume()
        world.choose("sd_model_checkpoint", chosen).join(60)


@contextlib.contextmanager
def moved_away(path):
    away = path.with_suffix(".away")
    path.rename(away)
    try:
        yield
    finally:
        away.rename(path)


@check
def another_checkpoint_loaded_in_a_pause_is_taken_off_and_comes_back(world):
    chosen = world.modules.shared.opts.data["sd_model_checkpoint"]
    with untouched(world):
        clean = world.hashes()
        with world.lend() as lease:
            before = lease.preview(REQUEST, weights(5), 1.0, Control()).tobytes()
            lease.pause()
            world.choose("sd_model_checkpoint", world.other).join(60)
            world.generate("somebody else's picture <lora:mark:1>")
            source = lease.resume()
            assert isinstance(source, LiveSource) and world.same_storages(source)
            assert world.hashes() == clean
            assert world.modules.shared.opts.data["sd_model_checkpoint"] == world.other
            assert lease.preview(REQUEST, weights(5), 1.0, Control()).tobytes() == before
        assert world.loaded().sd_checkpoint_info.title == world.other
        world.choose("sd_model_checkpoint", chosen).join(60)


@check
def run_that_ends_while_paused_leaves_the_host_to_its_user(world):
    with untouched(world):
        with world.lend() as lease:
            lease.pause()
            assert world.queue_is_free()
        assert world.queue_is_free()


@check
def breathing_lets_exactly_one_waiting_picture_through(world):
    done, threads = [], []
    with untouched(world):
        with world.lend() as lease:
            clean, source = world.hashes(), lease.source
            assert not lease.let_one_through()
            for number in range(12):
                draw = lambda number=number: done.append((number, world.generate("a ring <lora:mark:1>", seed=number)))  # noqa: E731
                threads.append(threading.Thread(target=draw))
                threads[-1].start()
                wait_for(lambda number=number: world.host.waiting() == number + 1)
            for count in range(1, 5):
                assert lease.let_one_through()
                assert [number for number, _ in done] == list(range(count))
                assert world.hashes() == clean
                assert lease.source is source
        for thread in threads:
            thread.join(120)
        assert len(done) == 12
        world.generate("a ring")  # takes the network of the last one off


@check
def breathing_lets_nobody_through_when_the_user_wants_so(world):
    options = world.modules.shared.opts.data
    before, done = options.get(LET_THROUGH), []
    options[LET_THROUGH] = False
    try:
        with untouched(world):
            with world.lend() as lease:
                thread = threading.Thread(target=lambda: done.append(world.generate("a ring")))
                thread.start()
                wait_for(lambda: world.host.waiting() == 1)
                assert not lease.let_one_through()
                assert not done
            thread.join(60)
            assert done
    finally:
        options.pop(LET_THROUGH) if before is None else options.update({LET_THROUGH: before})


@check
def forty_five_waiting_pictures_all_come(world):
    done, threads = [], []
    with untouched(world):
        with world.lend() as lease:
            for number in range(45):
                threads.append(threading.Thread(target=lambda number=number: done.append(world.generate("a ring", seed=number, steps=1))))
                threads[-1].start()
            wait_for(lambda: world.host.waiting() == 45)
            for _ in range(6):
                lease.let_one_through()
                time.sleep(0.01)
            assert 6 <= len(done) < 20
        for thread in threads:
            thread.join(300)
        assert len(done) == 45
