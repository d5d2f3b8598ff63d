"""Import of other trainers' settings: every key is taken, or listed with the reason why not (no torch)."""

from lora_trainer.config.importing.metadata import import_metadata
from lora_trainer.config.importing.reading import import_file, import_text
from lora_trainer.config.importing.result import Filled, Imported, Left, Taken

__all__ = ["Filled", "Imported", "Left", "Taken", "import_file", "import_metadata", "import_text"]
