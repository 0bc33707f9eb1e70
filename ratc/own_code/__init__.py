"""The user's own code: its names in a spec, its digests, and whether it may run."""
