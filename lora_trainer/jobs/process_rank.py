"""Which of several processes that train together this one is. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping

import attrs

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@attrs.frozen
class Rank:
    """The `rank`-th of `count` processes (0 leads: it alone writes), the `local`-th of its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files, draws previews and listens to the user."""
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        """Whether there is no other."""
        return self.world_size == 1


SINGLE = Rank()


def process_rank(environment: Mapping[str, str] | None = None) -> Rank:
    """What `torch.distributed.run` and `accelerate launch` tell each process that they start; alone where nobody says anything."""
    given = os.environ if environment is None else environment
    if not all(given.get(name, "").strip() for name in NAMES) or int(given["WORLD_SIZE"]) < 2:
        return SINGLE
    rank = int(given["RANK"])
    return Rank(rank, int(given["WORLD_SIZE"]), int(given.get("LOCAL_RANK") or rank))
