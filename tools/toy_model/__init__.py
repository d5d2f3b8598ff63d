"""The pieces of the small model's build: drawing, words, VAE, U-Net with text encoder, export."""
