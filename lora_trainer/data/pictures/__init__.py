"""One picture: opened, turned upright, masked, cropped, varied, checked."""
