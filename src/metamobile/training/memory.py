"""Memory of a training on a CPU is kept by the process and not given back to the system between steps."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed; True where it does so, for the whole process and for good.

    By default each large tensor of a step is mapped anew, and the system clears every page of it at its first
    touch: a fifth to a third of a step's time. Nothing is changed under another C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    never = -1
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, never))
