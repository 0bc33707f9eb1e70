"""Tasks: model head, losses and metrics."""
