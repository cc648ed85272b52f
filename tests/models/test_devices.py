"""On a GPU nothing mixes devices, and what is uploaded does not grow with the layers and the tokens."""

import os
import subprocess
import sys

from paths import ROOT


def test_a_policy_runs_on_a_gpu_that_is_not_there():
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, str(ROOT / "tests/models/gpu_driver.py")]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
