"""Where pictures and captions come from: folders, metadata JSON, dataset TOML; scanned and assembled."""
