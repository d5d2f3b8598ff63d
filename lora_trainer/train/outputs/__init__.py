"""What a run writes: weights and their headers, averaged weights, files written beside the steps."""
