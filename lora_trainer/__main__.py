"""python -m lora_trainer VERB ..."""

import sys

from lora_trainer.cli.main import main

sys.exit(main())
