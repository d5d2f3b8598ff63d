"""Which epoch at which weight: one picture per cell, a ranking of the likeliest, and the way to the host's own plot."""
