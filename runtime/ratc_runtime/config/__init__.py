"""What a run is told: the lock, and settings that must be in place before torch is imported."""
