"""Checks of preflight with a subject of their own: the cards of this node, the imports of the user's code."""
