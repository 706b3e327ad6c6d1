"""Allocator settings for CPU training."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from malloc.h
NEVER = 2**31 - 1


def keep_memory() -> bool:
    """Tell glibc's allocator to keep freed memory instead of returning it to the system.

    A training step frees and takes the same large buffers again and again; by default each goes back to the system
    and every one of its pages is fetched anew, zeroed, at the next step. Costs nothing but that the peak stays
    reserved. Returns whether it could be set (glibc on Linux only).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False  # another C library
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
