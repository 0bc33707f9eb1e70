"""A program of the spec's own (`entrypoint`): its lock, how a node starts it, and what it can ask for."""
