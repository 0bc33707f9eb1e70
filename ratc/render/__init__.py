"""The rendering of results: one small module per form."""
