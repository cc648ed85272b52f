"""What is freed stays with the process, and what is allocated next takes it."""

import os
import platform
import subprocess
import sys

import pytest

from dailydialog_gym.models import memory
from dailydialog_gym.models.memory import limit_onednn_cache

SCRIPT = """
import ctypes, resource
{before}
malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
malloc.restype, free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
for _ in range(2):
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = malloc(200 << 20)
    ctypes.memset(ctypes.c_void_p(block), 1, 200 << 20)
    free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


def faults(before=""):
    command = [sys.executable, "-c", SCRIPT.format(before=before)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other rules")
def test_the_second_of_two_equal_blocks_is_the_first():
    kept = faults(f"import runpy\nrunpy.run_path({memory.__file__!r})['keep_freed_memory']()")  # without torch
    assert 10 * kept < faults()


def test_onednn_keeps_few_shapes_or_as_many_as_the_user_says(monkeypatch):
    monkeypatch.setattr(os, "environ", {"LRU_CACHE_CAPACITY": "7"})
    limit_onednn_cache()
    assert os.environ == {"LRU_CACHE_CAPACITY": "7", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32"}
