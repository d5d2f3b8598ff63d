"""Rank of this process in a distributed run. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping

import attrs

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@attrs.frozen
class Rank:
    """Rank of a process among `world_size`; rank 0 is the main process. `local_rank` is its rank on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files, draws previews and takes the user's commands."""
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        """Whether it is the only process."""
        return self.world_size == 1


SINGLE = Rank()


def process_rank(environment: Mapping[str, str] | None = None) -> Rank:
    """The rank from the variables that `torch.distributed.run` and `accelerate launch` set; SINGLE without them."""
    variables = os.environ if environment is None else environment
    if not all(variables.get(name, "").strip() for name in RANK_VARIABLES) or int(variables["WORLD_SIZE"]) < 2:
        return SINGLE
    rank = int(variables["RANK"])
    return Rank(rank, int(variables["WORLD_SIZE"]), int(variables.get("LOCAL_RANK") or rank))
