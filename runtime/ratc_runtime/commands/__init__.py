"""The commands for a checkpoint or a lock, apart from training."""
