"""Preview pictures: prompts, samplers, and drawing between the steps."""
