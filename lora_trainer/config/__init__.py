"""The user's settings: frozen sections, read from TOML, `--set` and the tab, and checked all at once."""
