"""Whatever stood in the config before, the wizard is content with its own result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lora_trainer.config.build import build
from lora_trainer.config.changes import apply_changes
from lora_trainer.data.records import ImageRecord
from lora_trainer.wizard.facts import DatasetFacts, MachineFacts
from lora_trainer.wizard.subjects import SUBJECTS
from tests.wizard.advice import advise


def _section(**options: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=options)


CONFIGS = st.fixed_dictionaries(
    {
        "data": _section(
            batch_size=st.sampled_from([1, 2, 64]),
            num_repeats=st.sampled_from([1, 5, 100]),
            resolution=st.sampled_from([64, 512, [512, 768], 1024]),
            enable_bucket=st.booleans(),
        ),
        "network": _section(dim=st.sampled_from([1, 16, 256]), alpha=st.sampled_from([1.0, 300.0])),
        "optimizer": _section(unet_lr=st.sampled_from([0.0, 1e-3]), learning_rate=st.sampled_from([0.0, 2e-3])),
        "steps": _section(
            max_train_epochs=st.integers(0, 500), max_train_steps=st.integers(0, 5000), gradient_accumulation_steps=st.integers(1, 9)
        ),
        "schedule": _section(type=st.sampled_from(["constant", "linear"]), warmup_steps=st.sampled_from([50, "10%"])),
        "memory": _section(gradient_checkpointing=st.booleans(), mixed_precision=st.sampled_from(["no", "bf16"])),
        "validate": _section(fraction=st.sampled_from([0.0, 0.2])),
        "sample": _section(prompts=st.just(["a sks"]), every_n_steps=st.integers(0, 50)),
        "save": _section(every_n_epochs=st.integers(0, 7), every_n_steps=st.integers(0, 50)),
    }
)
MACHINES = st.one_of(
    st.floats(2, 80).map(MachineFacts.from_vram), st.builds(lambda free: MachineFacts("cpu", 65536, free * 1024), st.floats(2, 60))
)
SIZES = st.tuples(st.sampled_from([64, 300, 512, 800, 1600]), st.sampled_from([64, 512, 800, 1024]))


@settings(max_examples=60, deadline=None)
@given(
    mapping=CONFIGS,
    machine=MACHINES,
    sizes=st.lists(SIZES, min_size=1, max_size=12),
    times=st.sampled_from([1, 7, 60]),
    folder=st.sampled_from(["plain", "1_a", "40_b"]),
    subject=st.sampled_from(sorted(SUBJECTS)),
)
def test_a_second_press_changes_nothing_whatever_stood_before(
    mapping: dict[str, Any], machine: MachineFacts, sizes: list[tuple[int, int]], times: int, folder: str, subject: str
) -> None:
    repeats = int(folder.partition("_")[0]) if "_" in folder else 1
    records = [
        ImageRecord(Path("set", folder, f"{number}.png"), f"{number}.png", width, height, repeats=repeats)
        for number, (width, height) in enumerate(sizes * times)
    ]
    pictures = DatasetFacts(tuple(records))
    config = build(mapping)
    after = apply_changes(config, advise(config, machine, pictures, None, subject))
    assert advise(after, machine, pictures, None, subject) == []
