"""The processes of a run: their place among the others, how they stop, and who ends one that hangs."""
