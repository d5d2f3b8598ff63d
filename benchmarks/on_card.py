"""Proves on a CUDA card what a CPU cannot, in order of risk per second; without a card it asserts what can be asserted there.

    python benchmarks/on_card.py                                 eight minutes on the first CUDA card (or the CPU without one)
    python benchmarks/on_card.py --wheels wheels                 from a bare checkout: wheels that card_wheels.sh has collected
    python benchmarks/on_card.py --device cpu --minutes 3        small shapes on the CPU, as CI runs it
    python benchmarks/on_card.py --only attention graphs         some of the blocks; --list names them all

One JSON line a block, at once; at the end a table, DIR/card-NAME.md. Exit status 1 when a block has failed. A block that would not
end in time is left out. Nothing is downloaded, and everything that is written besides goes to a temporary folder.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
GRACE_SECONDS = 240
"""So long after its time a run that hangs says where, and ends."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the blocks that were asked for; 1 when one of them has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="no block begins that would not end within them")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR", help="where the table goes")
    parser.add_argument("--device", default="", help="cuda, cuda:1 or cpu; without: the first CUDA card, else the CPU")
    parser.add_argument("--only", nargs="+", default=[], metavar="BLOCK", help="these blocks alone")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="a folder of wheels that are used without installing them")
    parser.add_argument("--list", action="store_true", help="names the blocks and ends")
    chosen = parser.parse_args(arguments)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lora-trainer-card-", ignore_cleanup_errors=True)))
        if chosen.wheels is not None:
            from benchmarks.card.wheels import use_wheels

            for note in use_wheels(chosen.wheels, work / "packages"):
                print(note, file=sys.stderr)
        os.environ["LORA_TRAINER_CACHE"] = str(work / "cache")  # nothing that was encoded elsewhere may stand in for this device's work
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        return _examine(parser, chosen, work)


def _examine(parser: argparse.ArgumentParser, chosen: argparse.Namespace, work: Path) -> int:
    import json

    import torch

    from benchmarks.card import runner
    from benchmarks.card.block import Card
    from benchmarks.card.catalogue import BLOCKS
    from lora_trainer.host.devices import device_named

    if chosen.list:
        print("\n".join(f"{block.name:<24} {block.title}" for block in BLOCKS))
        return 0
    unknown = set(chosen.only) - {block.name for block in BLOCKS}
    if unknown:
        parser.error(f"no block is called {', '.join(sorted(unknown))}; --list names them")
    device = device_named(chosen.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    card = Card(device, work / "runs")
    faulthandler.dump_traceback_later(chosen.minutes * 60 + GRACE_SECONDS, exit=True, file=sys.__stderr__)
    begin, facts = time.monotonic(), runner.machine(card)
    print(json.dumps({"machine": facts}), flush=True)
    blocks = [block for block in BLOCKS if not chosen.only or block.name in chosen.only]
    results = runner.run_blocks(blocks, card, chosen.minutes * 60, lambda line: print(line, flush=True))
    faulthandler.cancel_dump_traceback_later()
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / runner.file_name(facts)
    path.write_text(runner.table(facts, results, time.monotonic() - begin), encoding="utf-8")
    print(json.dumps({"table": str(path), "failed": [result.block for result in results if result.is_failed]}), flush=True)
    return int(any(result.is_failed for result in results))


if __name__ == "__main__":
    sys.exit(main())
