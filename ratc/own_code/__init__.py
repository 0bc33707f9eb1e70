"""The user's own code: what a spec names of it, its digests, and whether it may run."""
