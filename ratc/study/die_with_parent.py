"""Becomes a program that gets SIGTERM when the process that started it dies: `python die_with_parent.py PROGRAM …`.

Linux alone has this (prctl(2), PR_SET_PDEATHSIG); elsewhere the program runs without. Nothing of ratc is imported:
it is started by its path.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before it could be asked for
            sys.exit(0)
    os.execv(sys.argv[1], sys.argv[1:])
