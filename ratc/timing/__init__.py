"""The time of a training step, by a roofline model of its traced kernels, and the time and cost of a run."""
