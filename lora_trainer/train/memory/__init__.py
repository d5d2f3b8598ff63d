"""What a step costs in memory, and how a run gets by with less."""
