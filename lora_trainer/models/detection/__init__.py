"""What a model is, told from names and shapes."""
