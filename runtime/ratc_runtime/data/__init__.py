"""Data: sources, loaders and sample data. Imports nothing, so that the sample data need no torch."""
