"""What is trained: small additions to a frozen model, their names in files, and the way on and off."""
