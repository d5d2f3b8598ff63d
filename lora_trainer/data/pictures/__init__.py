"""One picture: opened, rotated, masked, cropped, augmented, checked."""
