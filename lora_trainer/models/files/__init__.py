"""Files and folders that models come from and go to."""
