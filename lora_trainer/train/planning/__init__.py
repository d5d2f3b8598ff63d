"""What a run will do, before its first step: steps, time, memory, files, warnings."""
