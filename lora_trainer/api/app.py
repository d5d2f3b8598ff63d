"""An app of our own, for the page that is served without a WebUI."""

from __future__ import annotations

from fastapi import FastAPI


def new_app() -> FastAPI:
    """An empty app without documentation pages."""
    return FastAPI(title="LoRA Trainer", docs_url=None, redoc_url=None, openapi_url=None)
