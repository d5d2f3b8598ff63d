"""What goes into a step: the data set, its examples, captions and latents."""
