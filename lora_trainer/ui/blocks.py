"""The tab's frame: the place that javascript/start.js draws in, and the hidden fields behind "Send to txt2img"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

RegisterPaste = Callable[[Any, Any], None]
"""Has the host fill its txt2img page from the infotext in a Textbox when a Button is clicked: register(button, textbox)."""
PASTED = ("txt2img", "plot")
PLACE = '<div id="lora_trainer_root" role="application" aria-label="LoRA Trainer">LoRA Trainer …</div>'


def build(register_paste: RegisterPaste | None = None) -> gr.Blocks:
    """The tab. Without `register_paste` (no host page to fill) the tab offers the prompt for copying instead."""
    with gr.Blocks(analytics_enabled=False, title="LoRA Trainer") as blocks:
        fill(register_paste)
    return blocks


def fill(register_paste: RegisterPaste | None) -> None:
    """Puts the tab's parts into the open Blocks."""
    gr.HTML(PLACE, elem_id="lora_trainer_frame")
    if register_paste is None:
        return
    with gr.Row(elem_classes=["lora_trainer_hidden"]):
        for page in PASTED:
            text = gr.Textbox(label=f"LoRA Trainer {page}", elem_id=f"lora_trainer_{page}_text")
            button = gr.Button(f"LoRA Trainer {page}", elem_id=f"lora_trainer_{page}_button")
            for component in (text, button):
                component.do_not_save_to_config = True  # nothing of the user's: keeps it out of the host's ui-config.json
            register_paste(button, text)
