"""Filling the host's txt2img page from an infotext, including the X/Y/Z plot."""

from __future__ import annotations

from typing import Any


def register(button: Any, text: Any) -> None:
    """Has a click on `button` fill txt2img from the infotext in `text` and open that page (both are Gradio components)."""
    from modules import infotext_utils

    infotext_utils.register_paste_params_button(
        infotext_utils.ParamBinding(paste_button=button, tabname="txt2img", source_text_component=text)
    )
