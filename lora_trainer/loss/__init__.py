"""The arithmetic of the loss: noise, the target of the prediction, and the weight of each timestep."""
