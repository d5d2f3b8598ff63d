"""An empty FastAPI app for the stand-alone page; inside a WebUI the host's app is used."""

from __future__ import annotations

from fastapi import FastAPI


def new_app() -> FastAPI:
    """An app without FastAPI's own documentation pages, which load scripts from the network."""
    return FastAPI(title="LoRA Trainer", docs_url=None, redoc_url=None, openapi_url=None)
