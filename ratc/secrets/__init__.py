"""Secrets: found by name and by shape, and starred out in all output."""
