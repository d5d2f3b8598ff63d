"""Names of what a model predicts (no torch)."""

FLOW = "flow"
"""The velocity along the straight path of rectified flow."""
