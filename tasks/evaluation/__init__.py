"""Latents, predictions, metrics and comparisons."""
