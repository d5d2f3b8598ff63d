"""The list of all options as a document, made from their declarations: `python -m lora_trainer.config.reference > docs/options.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from lora_trainer.config.param import DeclaredOption, declared_options
from lora_trainer.config.schema import TrainConfig
from lora_trainer.messages import translate

TITLES = {"en": "# All options", "zh_CN": "# 全部选项"}
HEADERS = {"en": ("Option", "Default", "Allowed", "What it does"), "zh_CN": ("选项", "默认值", "取值", "作用")}


def reference(language: str) -> str:
    """Markdown with one table per section of the config."""
    lines = [TITLES[language]]
    section = None
    for option in declared_options(TrainConfig):
        name = option.path.rpartition(".")[0]
        if name != section:
            section = name
            lines += ["", f"## [{name}]" if name else "## top level", "", _row(HEADERS[language]), "|---|---|---|---|"]
        lines.append(_row(_cells(option, language)))
    return "\n".join(lines) + "\n"


def _cells(option: DeclaredOption, language: str) -> Iterator[str]:
    details = option.option
    kohya = f" (sd-scripts: `{details.kohya}`)" if details.kohya else ""
    yield f"`{option.path}`{kohya}"
    yield f"`{_format_value(option.default)}`" if option.default not in (None, "", ()) else ""
    yield ", ".join(f"`{choice}`" for choice in details.choices) or _range(option)
    yield f"**{translate(details.label, language)}**: {translate(details.help, language)}".replace("|", "\\|")


def _range(option: DeclaredOption) -> str:
    details = option.option
    low = f"> {_format_number(details.above)}" if details.above is not None else _format_number(details.low)
    high = _format_number(details.high)
    return " … ".join(bound for bound in (low, high) if bound)


def _format_number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value == int(value) else f"{value:g}"


def _format_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(reference(sys.argv[1] if len(sys.argv) > 1 else "en"))
