"""The runtime of ratc: trains exactly what `lock.yaml` says, and refuses where the machine is not the lock's."""

from ratc_runtime.unneeded import leave_out

__version__ = "0.1.0"

leave_out()
