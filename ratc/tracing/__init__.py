"""A model's trace: made by the runtime in a process with limits, and cached."""
