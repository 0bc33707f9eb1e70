"""Compiled folders: found, read, and compared with the output that their inputs give now."""
