"""Training: the plan, the setting up, one step, the loop, and what happens between steps."""
