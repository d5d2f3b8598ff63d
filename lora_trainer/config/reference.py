"""The list of all options as a document, made from their declarations: `python -m lora_trainer.config.reference > docs/options.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from lora_trainer.config.param import Declared, declared
from lora_trainer.config.schema import TrainConfig
from lora_trainer.messages import translate

TITLES = {"en": "# All options", "zh_CN": "# 全部选项"}
HEADS = {"en": ("Option", "Default", "Allowed", "What it does"), "zh_CN": ("选项", "默认值", "取值", "作用")}


def reference(language: str) -> str:
    """Markdown with one table per section of the config."""
    lines = [TITLES[language]]
    section = None
    for option in declared(TrainConfig):
        name = option.path.rpartition(".")[0]
        if name != section:
            section = name
            lines += ["", f"## [{name}]" if name else "## top level", "", _row(HEADS[language]), "|---|---|---|---|"]
        lines.append(_row(_cells(option, language)))
    return "\n".join(lines) + "\n"


def _cells(option: Declared, language: str) -> Iterator[str]:
    known = option.option
    kohya = f" (sd-scripts: `{known.kohya}`)" if known.kohya else ""
    yield f"`{option.path}`{kohya}"
    yield f"`{_toml(option.default)}`" if option.default not in (None, "", ()) else ""
    yield ", ".join(f"`{choice}`" for choice in known.choices) or _range(option)
    yield f"**{translate(known.label, language)}**: {translate(known.help, language)}".replace("|", "\\|")


def _range(option: Declared) -> str:
    known = option.option
    low = f"> {_number(known.above)}" if known.above is not None else _number(known.low)
    high = _number(known.high)
    return " … ".join(word for word in (low, high) if word)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value == int(value) else f"{value:g}"


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(reference(sys.argv[1] if len(sys.argv) > 1 else "en"))
