"""The time of a training step, by a roofline of its traced kernels, and what a run of such steps takes and costs."""
