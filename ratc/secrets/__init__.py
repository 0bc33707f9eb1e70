"""Secrets: found by name and by shape, and starred out wherever something is shown."""
