"""The wall: what the trainer needs of the program that it runs in, and nothing else of it."""
