"""A model's trace: asked of the runtime in a process with limits, and kept."""
