"""What goes into a step: the data set, each picture as it is shown, captions and latents."""
