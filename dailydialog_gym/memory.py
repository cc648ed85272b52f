"""The C library's memory, as a training loop wants it."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Keep what is freed for what is allocated next: every minibatch allocates all gradients anew.

    By itself glibc hands them back to the system, which then maps them, zeroed, a page at a time: allocating GPT-2
    small's gradients took 4 times as long. Other C libraries have other rules, so there this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
