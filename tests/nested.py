"""Documents of tables and lists, one value of which is another."""

from __future__ import annotations

import copy
from typing import Any


def with_value(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with the value at `path` replaced; () replaces all of it."""
    if not path:
        return value
    changed = copy.deepcopy(document)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed
