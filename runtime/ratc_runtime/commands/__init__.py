"""What can be started on a checkpoint or a lock, apart from training."""
