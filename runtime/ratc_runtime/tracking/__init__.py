"""MLflow, TensorBoard and Weights & Biases, behind one interface: `Tracker`.

A new backend is a file with a subclass of `interface.Backend`, its line in `tracker.BACKENDS`, and a switch of that
name in the lock's section `logging`.
"""

from ratc_runtime.tracking.tracker import Tracker

__all__ = ["Tracker"]
