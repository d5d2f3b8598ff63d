"""What will happen, told before the first step: steps, time, memory, files, warnings."""
