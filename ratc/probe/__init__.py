"""Reading the machine: the only code of the compiler that asks the driver or the operating system what is there."""
