"""Runs Python programs as forks of a process that has imported what they import, which takes 7 seconds in each.

forks.py SCRIPT MODEL serves a `Server`: on a line of JSON that says what to start it answers with the pid, on a pid to
wait for with the exit code. What the programs start in their turn is forked too, the ranks of the `deepspeed` command
for one.
"""

import contextlib
import gc
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from paths import ROOT


def without_curves(set_attribute=setattr) -> None:
    """Runs in this process save an empty figure: curves take a third of a short run's time."""
    from matplotlib.figure import Figure

    import dailydialog_gym.runs.run

    set_attribute(dailydialog_gym.runs.run, "plot_curves", lambda *_, **__: Figure())


class Server:
    """Starts programs that import what a script does."""

    def __init__(self, script: Path, model: str):
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(script), model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            # DeepSpeed imports torch's whole compiler for an optimizer that is not used here
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "TORCHDYNAMO_DISABLE": "1", "PYTHONPATH": str(ROOT)},
        )
        self._pid = None

    def start(
        self, cwd: Path, *command: str, log: str = "log.txt", file_size: int = 0, before: str = "", **environment: str
    ) -> int:
        """Start a program in a folder; its pid.

        No file may become larger than ``file_size`` bytes, if not 0. The Python code ``before`` runs first.
        """
        request = {"command": [*map(str, command)], "cwd": str(cwd), "log": log, "file_size": file_size}
        self._pid = int(self._ask(request | {"before": before, "environment": environment}))
        return self._pid

    def wait_until(self, condition, what: str) -> None:
        """Wait for something that the program started last does."""
        deadline = time.monotonic() + 300
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what}")
            time.sleep(0.01)

    def wait(self, pid: int | None = None) -> int:
        """The exit code of a program, by default the last; minus the signal's number where one ended it."""
        return int(self._ask(pid or self._pid))

    def close(self):
        self._process.stdin.close()  # where a test failed, something may still run; the server ends that
        self._process.wait()

    def _ask(self, request) -> str:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


class Forked:
    """`subprocess.Popen` of a Python program, as DeepSpeed's launcher uses it."""

    def __init__(self, command, env):
        self.pid, self.returncode = os.fork(), None
        if self.pid == 0:
            os.environ.clear()
            os.environ.update(env)
            run(command[1:])

    def poll(self, options=os.WNOHANG):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self):
        return self.poll(0)


def execute(command) -> int:
    """What `python COMMAND` does, in this process; the exit code."""
    command = [str(word) for word in command if word != "-u"]
    sys.argv = command[command[0] == "-m" :]
    sys.excepthook = sys.__excepthook__  # another program that ran in this process may have left its own
    try:
        if sys.argv == command:
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if not isinstance(error.code, str):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def run(command):
    """What `python COMMAND` does, in this process, which then ends."""
    code = execute(command)
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


def start(request):
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    os.chdir(request["cwd"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    if request["file_size"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"],) * 2)
    os.environ.update(request["environment"])
    exec(request["before"], {})
    return run(request["command"])


def exit_code(pid):
    deadline = time.monotonic() + 600
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(ended[1])


def main(script, model):
    from tqdm import tqdm

    from dailydialog_gym.models.loading import load_model
    from dailydialog_gym.rewards.meteor import meteor

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    # tqdm's own lock is one for all forks: a process killed while it holds it would stop all later ones
    tqdm.set_lock(threading.RLock())
    runpy.run_path(script)
    without_curves()
    meteor("a", "a")
    with tempfile.TemporaryDirectory() as folder:
        load_model(model).save_pretrained(folder)  # both import much more
    popen = subprocess.Popen
    subprocess.Popen = lambda command, *args, **options: (
        Forked(command, **options) if command[0] == sys.executable else popen(command, *args, **options)
    )
    gc.freeze()  # else each collection in each fork looks through all that was imported
    running = set()
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, dict):
            answer = start(request)
            running.add(answer)
        else:
            answer = exit_code(request)
            running.remove(request)
        print(answer, file=answers, flush=True)
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
