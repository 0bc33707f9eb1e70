"""A language server: the findings, values and keys of a spec in an editor, while it is written."""
