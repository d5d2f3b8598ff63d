"""What a finished file has done to the small model: loss of pictures that it was not trained on."""

from __future__ import annotations

from pathlib import Path

from lora_trainer.data.captions import plain_caption
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.train import setup
from lora_trainer.train.inputs.dataset import load_dataset
from lora_trainer.train.validation import validation_loss
from tests.train.runs import small_config, tensors_of


def loss_of(pictures: Path, out: Path, lora: Path | None = None, **changes) -> float:
    """Validation loss of a folder's pictures with their captions as they are, with the network of a file or without."""
    config = small_config(out, data__train_data_dir=str(pictures), data__trigger_word="", **changes)
    found = load_dataset(config)
    with StandaloneHost(out).lease(config.model) as lease:
        trainer = setup.prepare(config, found, lease)
        trainer.attach()
        if lora is not None:
            trainer.adapter.load_state_dict(tensors_of(lora))
        records = found.train_records
        loss = validation_loss(
            trainer.bundle,
            [trainer.latent(record, False) for record in records],
            [record.key for record in records],
            lambda number: trainer.caption_encoder.encode(trainer.bundle, [plain_caption(records[number], found.caption_rules)]),
            trainer.precision,
        )
        trainer.detach()
    assert loss is not None
    return loss
