"""The configuration of a run: the lock, and settings that are needed before torch is imported."""
