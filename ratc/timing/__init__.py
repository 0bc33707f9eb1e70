"""The time of a training step, by a roofline of its traced kernels, and the time and cost of a run of such steps."""
