"""Probes the machine: the only code of the compiler that reads hardware from the driver or the operating system."""
