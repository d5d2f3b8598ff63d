"""What can be chosen by name, as data: network types, optimizers, schedules, samplers, blocks of the U-Net (no torch)."""
