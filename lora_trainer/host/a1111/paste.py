"""Filling the host's txt2img page from an infotext, X/Y/Z plot included."""

from __future__ import annotations

from typing import Any


def register(button: Any, text: Any) -> None:
    """A click on `button` puts the infotext that stands in `text` into txt2img and goes there (both are Gradio's)."""
    from modules import infotext_utils

    infotext_utils.register_paste_params_button(
        infotext_utils.ParamBinding(paste_button=button, tabname="txt2img", source_text_component=text)
    )
