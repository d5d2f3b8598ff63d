"""What a user can set: frozen sections, read from TOML, from `--set` and from the tab, checked all at once."""
