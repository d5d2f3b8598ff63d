"""An empty app for a page of our own: in a WebUI the host's app is used."""

from __future__ import annotations

from fastapi import FastAPI


def new_app() -> FastAPI:
    """Without FastAPI's own pages, which load scripts from the network."""
    return FastAPI(title="LoRA Trainer", docs_url=None, redoc_url=None, openapi_url=None)
