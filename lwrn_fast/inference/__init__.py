"""Inference: images, folders and videos to label maps."""
