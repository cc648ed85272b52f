"""Settings of the C library's allocator and of oneDNN that make training on a CPU faster and smaller."""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # malloc.h


def keep_freed_memory() -> None:
    """Let the process keep freed memory for its next allocations.

    Every minibatch allocates all gradients anew. By default, glibc returns large freed blocks to the system, which must
    then map and zero them again page by page: allocating GPT-2 small's gradients took 4 times as long. This does
    nothing with other C libraries, whose rules differ.
    """
    _set_malloc_options({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1})


def return_freed_memory() -> None:
    """Have the process return every freed block of 1 MiB or more to the system, for a training of little memory.

    By default, glibc keeps freed blocks of up to 32 MiB as soon as one of that size was freed, and they seldom have the
    size that is asked for next. What it saves is in ``docs/deepspeed.md``. This does nothing with other C libraries.
    """
    _set_malloc_options({M_MMAP_THRESHOLD: 2**20})


def _set_malloc_options(options: dict[int, int]) -> None:
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in options.items():
            mallopt(option, value)


def limit_onednn_cache() -> None:
    """Limit oneDNN's primitive cache to 32 matrix shapes.

    oneDNN computes the bfloat16 matrix multiplications of a CPU, and with `dailydialog_gym.models.linear` those in
    float32. It compiles code (a primitive) for each shape and keeps 1,024 of them by default. The rows of each
    minibatch have another length, so most are never used again. The limit must be set before the first matrix
    multiplication. Environment variables that the user has set keep their values: with both at 1024,
    ``benchmarks/ppo_speed.py`` shows how much memory the limit saves.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # of oneDNN, and of PyTorch's oneDNN objects
        os.environ.setdefault(name, "32")
