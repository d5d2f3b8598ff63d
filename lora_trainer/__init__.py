"""LoRA training for Stable Diffusion: a tab inside the WebUI, and the same engine on the command line."""

__version__ = "0.1.0"
