"""The same tab without a WebUI: `python -m lora_trainer ui`."""

from __future__ import annotations

import os
import socket
import webbrowser
from typing import TYPE_CHECKING, Any

from lora_trainer.errors import TrainerError
from lora_trainer.ui.page import OwnNamesMiddleware, PageMiddleware

if TYPE_CHECKING:
    from lora_trainer.host.base import Host
    from lora_trainer.jobs.manager import JobManager

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Microsoft YaHei", "PingFang SC", "sans-serif")
"""System fonts: Gradio's default theme would load one from Google."""


def create_app(host: Host, manager: JobManager | None = None) -> Any:
    """An ASGI app: our routes, Gradio's page with the tab, our scripts and style."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    from lora_trainer.api.app import new_app
    from lora_trainer.api.routes.mount import mount
    from lora_trainer.jobs.manager import MANAGER
    from lora_trainer.ui.blocks import fill

    theme = gr.themes.Default(font=FONTS, font_mono=("ui-monospace", "Consolas", "monospace"))
    with gr.Blocks(analytics_enabled=False, title="LoRA Trainer", theme=theme) as blocks, gr.Column(elem_id="tab_lora_trainer"):
        fill(None)
    app = gr.mount_gradio_app(new_app(), blocks, path="/")
    mount(app, host, manager or MANAGER)
    app.add_middleware(PageMiddleware)
    app.add_middleware(OwnNamesMiddleware, names=host.web_names())
    return app


def serve(host: Host, manager: JobManager | None = None, *, port: int = 7860, address: str = "127.0.0.1", browser: bool = False) -> None:
    """Serves the page until Ctrl-C. Raises TrainerError when the port is taken."""
    import uvicorn

    require_free_port(address, port)
    app = create_app(host, manager)
    if browser:
        webbrowser.open(f"http://{'127.0.0.1' if address == '0.0.0.0' else address}:{port}/")
    uvicorn.run(app, host=address, port=port, log_level="warning")


def require_free_port(address: str, port: int) -> None:
    """Raises TrainerError when the port is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise TrainerError(
                "port {port} cannot be opened ({reason}).",
                port=port,
                reason=error.strerror or str(error),
                fix="Choose another with --port.",
            ) from error
