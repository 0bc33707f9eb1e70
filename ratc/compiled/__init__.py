"""Compiled folders: found, read, and compared with what would be compiled now."""
