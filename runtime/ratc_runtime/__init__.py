"""The runtime of ratc: trains exactly what `lock.yaml` says, and refuses where the machine is not the lock's."""

__version__ = "0.1.0"
