"""What is freed stays with the process, and what is allocated next takes it; or it is returned to the system."""

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
for _ in range(3):
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = malloc({mebibytes} << 20)
    ctypes.memset(ctypes.c_void_p(block), 1, {mebibytes} << 20)
    free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


def faults(mebibytes, function=""):
    """The pages that the third of three equal blocks maps, each of which is freed before the next."""
    before = f"import runpy\nrunpy.run_path({memory.__file__!r})[{function!r}]()" if function else ""  # without torch
    command = [sys.executable, "-c", SCRIPT.format(before=before, mebibytes=mebibytes)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other rules")
def test_freed_memory_is_kept_or_returned():
    assert 10 * faults(200, "keep_freed_memory") < faults(200)
    assert faults(20, "return_freed_memory") > 10 * faults(20)


def test_onednn_keeps_few_shapes_or_as_many_as_the_user_says(monkeypatch):
    monkeypatch.setattr(os, "environ", {"LRU_CACHE_CAPACITY": "7"})
    limit_onednn_cache()
    assert os.environ == {"LRU_CACHE_CAPACITY": "7", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32"}
