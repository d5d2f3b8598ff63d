"""What a run writes down line by line: events, steps.csv, TensorBoard."""
