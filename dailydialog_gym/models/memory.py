"""The C library's memory, as a training loop wants it."""

import ctypes
import os
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


def forget_shapes() -> None:
    """Have oneDNN, which does a CPU's matmuls in bfloat16, keep what it built for the last 32 shapes of matrices only.

    By itself it keeps 1,024, and the rows of a minibatch are of another length each time. It takes effect before the
    first matmul only. What the user has set stays: with both at 1024, `benchmarks/ppo_speed.py` shows what it saves.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's own; PyTorch's of its objects
        os.environ.setdefault(name, "32")
