"""Works that need no model: generators of events as the trainer yields them."""

from __future__ import annotations

from pathlib import Path

from lora_trainer.events import Finished, Phase, Sampled, Saved, Started, Stepped, Stopped, Validated

PLAN = {"images": 12, "steps_per_epoch": 5, "epochs": 2, "total_steps": 10}


def stepped(step, epoch=1, seconds=0.01):
    return Stepped(step, epoch, loss=1 / step, loss_average=2 / step, lr=1e-4, grad_norm=0.5, seconds=seconds, vram_mb=100.0)


def small_work(folder, *, steps=10, output=Path("out")):
    """Two epochs of five steps with a file, a preview and a validation each."""

    def work(control):
        yield Started(PLAN, device="cpu")
        yield Phase("planning")
        yield Validated(0, 0, 0.5)
        yield Phase("training", steps)
        for step in range(1, steps + 1):
            if control.stopping:
                yield Stopped(step - 1, ())
                return
            epoch = (step - 1) // 5 + 1
            yield stepped(step, epoch)
            if step % 5 == 0:
                yield Saved(step, epoch, str(output / f"moon-{epoch:06d}.safetensors"), "ab" * 32, 1000)
                yield Sampled(step, epoch, str(folder.samples_dir / f"{epoch}.png"), "a moon", 7)
                yield Validated(step, epoch, 0.4 if epoch == 1 else 0.45)
        yield Finished(steps, ("moon.safetensors",))

    return work


def endless_work(control, seconds=0.01):
    """Steps until it is told to stop; pauses when told."""
    import time

    from lora_trainer.events import Paused, Resumed

    yield Started(PLAN | {"total_steps": 100000})
    step = 0
    while not control.stopping:
        if control.pausing:
            yield Paused(step)
            control.wait_while_paused(0.01)
            yield Resumed(step)
            continue
        time.sleep(seconds)
        step += 1
        yield stepped(step)
    yield Stopped(step, ())
