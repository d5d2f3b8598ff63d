"""What options must be, each by itself and all together."""
