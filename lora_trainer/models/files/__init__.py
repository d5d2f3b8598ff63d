"""Model files and folders: reading, downloading, saving."""
