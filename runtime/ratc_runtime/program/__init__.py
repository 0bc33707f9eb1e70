"""A program of the spec's own (`entrypoint`): its lock, its start on a node, and its interface to ratc."""
