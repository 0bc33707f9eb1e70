"""Segmentation: a map of logits for every image."""
