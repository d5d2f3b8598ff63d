"""The tab's Gradio frame: the element that javascript/start.js draws in, and the hidden fields behind "Send to txt2img"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

RegisterPaste = Callable[[Any, Any], None]
"""Has the host fill its txt2img page from the infotext in a Textbox when a Button is clicked: register(button, textbox)."""
PASTE_TARGETS = ("txt2img", "plot")
ROOT_HTML = '<div id="lora_trainer_root" role="application" aria-label="LoRA Trainer">LoRA Trainer …</div>'


def build(register_paste: RegisterPaste | None = None) -> gr.Blocks:
    """The tab. Without `register_paste` (no txt2img page to fill) the tab offers the prompt for copying instead."""
    with gr.Blocks(analytics_enabled=False, title="LoRA Trainer") as blocks:
        fill(register_paste)
    return blocks


def fill(register_paste: RegisterPaste | None) -> None:
    """Adds the tab's components to the open Blocks."""
    gr.HTML(ROOT_HTML, elem_id="lora_trainer_frame")
    if register_paste is None:
        return
    with gr.Row(elem_classes=["lora_trainer_hidden"]):
        for page in PASTE_TARGETS:
            text = gr.Textbox(label=f"LoRA Trainer {page}", elem_id=f"lora_trainer_{page}_text")
            button = gr.Button(f"LoRA Trainer {page}", elem_id=f"lora_trainer_{page}_button")
            for component in (text, button):
                component.do_not_save_to_config = True  # not a user setting: stays out of the host's ui-config.json
            register_paste(button, text)
