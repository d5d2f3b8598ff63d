"""The arithmetic of the loss: noise, what the model should say, and how much each picture counts."""
