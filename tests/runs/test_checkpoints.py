"""Real processes are killed, stopped or run out of disk space; resumed, each ends as the uninterrupted run does."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import ROOT
from stub_gpus import StubGpus
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.runs.checkpoints import Checkpoints, RandomState

SCRIPT = ROOT / "ppo_dialog.py"
# pytest itself may run under nohup
LIKE_A_SHELL = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
TERMINAL = """
import fcntl, os, termios
terminal = os.open("OUTPUT", os.O_RDWR)
fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
"""
PIPE = "import os; terminal = os.open('OUTPUT', os.O_WRONLY)\n"


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory) -> str:
    utterances = ["Where were you ?", "At home .", "All day ?", "Yes , it rained .", "I see ."]
    lines = [
        json.dumps({"dialog": [*utterances[i:], f"{split} {i} ."], "act": [1] * (6 - i), "split": split})
        for i in range(4)
        for split in ("train", "test")
    ]
    path = tmp_path_factory.mktemp("data") / "dialogues.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def flags(tiny_model, tiny_intent_model, tiny_reward_model, dialogues) -> list[str]:
    flags = {"model": tiny_model, "dataset": dialogues, "num-envs": 4, "total-episodes": 32, "num-minibatches": 2}
    flags |= {"replies-per-prompt": 2, "critic": "separate"}
    flags |= {"eval-samples": 4, "max-prompt-length": 16, "max-new-tokens": 6, "sample-every": 100}
    flags |= {"checkpoint-every": 2, "update-epochs": 1, "intent-model": tiny_intent_model}
    flags["reward-model"] = tiny_reward_model  # its scores are standardized by running moments
    flags["reward"] = "novelty:Novelty=0.1"  # which remembers all replies
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def uninterrupted(server, flags, tmp_path_factory) -> tuple[dict, float]:
    """The contents of the folder of a run that nothing interrupts, and the seconds that the run takes."""
    cwd = tmp_path_factory.mktemp("uninterrupted")
    server.start(cwd, SCRIPT, *flags, "--run-name", "run")
    start = time.perf_counter()
    assert server.wait() == 0, (cwd / "log.txt").read_text(encoding="utf-8")
    return contents(cwd / "runs/run"), time.perf_counter() - start


def contents(folder: Path) -> dict:
    """All that the folder of a finished run holds, except for timings and the picture of the curves."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    timed = {"charts/FPS", "time/rollout"}
    events = EventAccumulator(str(folder)).Reload()
    state = torch.load(folder / "checkpoints/000008/state.pt", weights_only=True)
    return {
        "files": sorted({re.sub(r"events\..*", "events", str(p.relative_to(folder))) for p in folder.rglob("*")}),
        "rows": [{key: value for key, value in row.items() if key not in timed} for row in rows],
        "steps": {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]},
        "events": {  # as texts, because NaN is not equal to NaN
            tag: [repr(event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
            if tag not in timed
        },
        "parts": plain(state["parts"]),
        "texts": [
            (folder / name).read_text(encoding="utf-8")
            for name in ("evaluation.json", "samples.json", "samples.md", "config.json")
        ],
        "agent": (folder / "agent/model.safetensors").read_bytes(),
    }


def plain(state):
    """The state with bytes instead of tensors, so that == compares bit for bit."""
    if isinstance(state, torch.Tensor):
        return (str(state.dtype), state.numpy().tobytes())
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return [plain(value) for value in state] if isinstance(state, list) else state


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def test_killed_at_random_moments_it_ends_as_if_nothing_had_happened(server, flags, uninterrupted, tmp_path):
    expected, duration = uninterrupted
    moments = random.Random(0)
    kills, finished, code = 0, 0, None
    while kills < 10 or code != 0:
        cwd = tmp_path / str(finished)
        cwd.mkdir(exist_ok=True)
        begun = (cwd / "runs/run").exists()
        pid = server.start(cwd, SCRIPT, *(("--resume", "runs/run") if begun else (*flags, "--run-name", "run")))
        if kills < 10:
            time.sleep(moments.uniform(0, 0.6 * duration))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        code = server.wait()
        if code == 0:
            assert contents(cwd / "runs/run") == expected
            finished += 1
        else:
            assert code == -signal.SIGKILL, (cwd / "log.txt").read_text(encoding="utf-8")
            kills += 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_asked_to_stop_it_saves_a_checkpoint_and_says_how_to_go_on(server, flags, uninterrupted, tmp_path, signum):
    flags = [*flags, "--run-name", "run", "--checkpoint-every", "1000"]
    pid = server.start(tmp_path, SCRIPT, *flags, before=LIKE_A_SHELL)
    server.wait_until(lambda: lines(tmp_path / "runs/run/metrics.jsonl") >= 3, "metrics")
    os.kill(pid, signum)
    if signum == signal.SIGHUP:
        os.kill(pid, signum)  # the shell sends it, and the system when the shell has gone
    assert server.wait() == 128 + signum
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    (checkpoint,) = (tmp_path / "runs/run/checkpoints").iterdir()
    assert lines(tmp_path / "runs/run/metrics.jsonl") == int(checkpoint.name)
    assert f"stopped after {4 * int(checkpoint.name)} of 32 replies" in log
    assert f"the agent so far is runs/run/checkpoints/{checkpoint.name}/agent" in log
    assert isinstance(DialogueAgent.load(str(checkpoint / "agent"), max_new_tokens=2).chat("Hello ."), str)
    (command,) = re.findall(r"python \S*ppo_dialog.py (--resume .*)", log)
    server.start(tmp_path, SCRIPT, *command.split(), "--checkpoint-every", "2")
    assert server.wait() == 0
    result = contents(tmp_path / "runs/run")
    assert result["texts"].pop() != uninterrupted[0]["texts"][-1]  # config.json: checkpoint_every
    assert result == {**uninterrupted[0], "texts": uninterrupted[0]["texts"][:-1]}


@pytest.mark.parametrize(("kind", "codes"), [(TERMINAL, (129, 141)), (PIPE, (141,))], ids=["a terminal", "a pipe"])
def test_a_run_whose_output_nobody_reads_any_more_saves_a_checkpoint(server, flags, tmp_path, kind, codes):
    """As where a terminal is closed, or Ctrl-C ends a `tee` too. Of both, writing fails."""
    if kind == TERMINAL:
        reader, writer = os.openpty()
        output = os.ttyname(writer)
    else:
        output = str(tmp_path / "pipe")
        os.mkfifo(output)
        reader, writer = os.open(output, os.O_RDONLY | os.O_NONBLOCK), os.open(output, os.O_WRONLY)
    before = LIKE_A_SHELL + kind.replace("OUTPUT", output) + "os.dup2(terminal, 1), os.dup2(terminal, 2)"
    flags = [*flags, "--run-name", "run", "--checkpoint-every", "1000", "--total-episodes", "4000"]
    server.start(tmp_path, SCRIPT, *flags, before=before)
    server.wait_until(lambda: lines(tmp_path / "runs/run/metrics.jsonl") >= 2, "metrics")
    os.close(writer)
    os.close(reader)
    assert server.wait() in codes
    (checkpoint,) = (tmp_path / "runs/run/checkpoints").iterdir()
    assert lines(tmp_path / "runs/run/metrics.jsonl") == int(checkpoint.name)


def test_under_nohup_a_closed_terminal_changes_nothing(server, flags, tmp_path):
    ignored = LIKE_A_SHELL.replace("SIG_DFL", "SIG_IGN")
    pid = server.start(tmp_path, SCRIPT, *flags, "--run-name", "run", before=ignored)
    server.wait_until(lambda: lines(tmp_path / "runs/run/metrics.jsonl") >= 2, "metrics")
    os.kill(pid, signal.SIGHUP)
    assert server.wait() == 0
    assert lines(tmp_path / "runs/run/metrics.jsonl") == 8


def test_asked_twice_it_quits_at_once(server, flags, tmp_path):
    pid = server.start(tmp_path, SCRIPT, *flags, "--run-name", "run", "--update-epochs", "1000000")
    log = tmp_path / "log.txt"
    server.wait_until(lambda: log.exists() and "0/32" in log.read_text(encoding="utf-8"), "progress bar")
    os.kill(pid, signal.SIGINT)
    server.wait_until(lambda: "once more to quit at once" in log.read_text(encoding="utf-8"), "message")
    os.kill(pid, signal.SIGINT)
    assert server.wait() == -signal.SIGINT


def test_a_full_disk_leaves_the_last_checkpoint_whole(server, flags, uninterrupted, tmp_path):
    pid = server.start(tmp_path, SCRIPT, *flags, "--run-name", "run")
    server.wait_until(lambda: lines(tmp_path / "runs/run/metrics.jsonl") >= 3, "metrics")
    os.kill(pid, signal.SIGTERM)
    server.wait()
    *_, last = before = sorted((tmp_path / "runs/run/checkpoints").iterdir())
    size = (last / "state.pt").stat().st_size
    server.start(tmp_path, SCRIPT, "--resume", "runs/run", file_size=size // 2)
    assert server.wait() == 1
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "cannot save checkpoint" in log
    assert "File too large" in log
    assert f"the last checkpoint, runs/run/checkpoints/{last.name}, is whole" in log
    assert sorted(last.parent.iterdir()) == before
    server.start(tmp_path, SCRIPT, "--resume", "runs/run")
    assert server.wait() == 0, (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert contents(tmp_path / "runs/run") == uninterrupted[0]


def test_only_the_current_gpu_s_generator_is_saved_and_restored(monkeypatch):
    gpus = StubGpus(monkeypatch, current=1)
    random_state = RandomState(np.random.default_rng(1))
    saved = random_state.state_dict()
    gpus.states = [torch.tensor(20), torch.tensor(21)]
    random_state.load_state_dict(saved)
    assert gpus.states == [20, 11]


def test_random_states_go_on_where_they_were():
    rng = np.random.default_rng(1)
    random_state = RandomState(rng)
    rng.integers(10)  # leaves half of a 64-bit draw in the generator
    torch.randn(1)
    saved = random_state.state_dict()
    first = rng.integers(10, size=3).tolist(), torch.rand(3).tolist()
    random_state.load_state_dict(saved)
    assert (rng.integers(10, size=3).tolist(), torch.rand(3).tolist()) == first


KILLED = "lambda *args, **options: os.kill(os.getpid(), 9)"
PLACES = {
    "before the lock": f"dailydialog_gym.runs.run.lock = {KILLED}",
    "in the lock": f"dailydialog_gym.runs.folder.socket.gethostname = {KILLED}",
    "in the fingerprint": f"dailydialog_gym.runs.run.fingerprint = {KILLED}",
    "before the checksums": f"dailydialog_gym.runs.checkpoints.checksum = {KILLED}",
    "before a folder gets its name": f"Path.rename = {KILLED}",
    "before an old checkpoint is put aside": "rename = Path.rename\n"
    f"Path.rename = lambda path, new: (({KILLED}) if new.name.endswith('.old') else rename)(path, new)",
    "in the removal of an old checkpoint": "remove = shutil.rmtree\n"
    "shutil.rmtree = lambda path, **options: "
    f"[(path / 'state.pt').unlink(missing_ok=True), ({KILLED})()] if str(path).endswith('.old') and path.exists() "
    "else remove(path, **options)",
}


@pytest.mark.parametrize("place", PLACES)
def test_killed_in_a_certain_place_it_ends_as_if_nothing_had_happened(server, flags, uninterrupted, tmp_path, place):
    imports = "import os, shutil\nfrom pathlib import Path\nimport dailydialog_gym.runs.run\n"
    for _ in range(2):  # in the new run, and once it is resumed
        begun = (tmp_path / "runs/run").exists()
        command = ("--resume", "runs/run") if begun else (*flags, "--run-name", "run")
        server.start(tmp_path, SCRIPT, *command, before=imports + PLACES[place])
        assert server.wait() == -signal.SIGKILL, (tmp_path / "log.txt").read_text(encoding="utf-8")
    begun = (tmp_path / "runs/run").exists()
    assert begun == (place != "before a folder gets its name")
    server.start(tmp_path, SCRIPT, *(("--resume", "runs/run") if begun else (*flags, "--run-name", "run")))
    assert server.wait() == 0, (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert contents(tmp_path / "runs/run") == uninterrupted[0]


class Part:
    """A part of a run whose state is one number."""

    def __init__(self):
        self.number = 0

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.number = state["number"]


def checkpoints_in(folder: Path, *iterations: int, keep: int = 2) -> Checkpoints:
    part = Part()
    checkpoints = Checkpoints(folder, lambda agent: agent.mkdir(), {"part": part}, {"a": 1}, keep)
    for part.number in iterations:
        checkpoints.save(part.number, {})
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_checkpoints_are_kept(tmp_path, keep):
    checkpoints = checkpoints_in(tmp_path, 2, 4, 6, 8, keep=keep)
    assert names(tmp_path) == ["000002", "000004", "000006", "000008"][-keep:]
    assert checkpoints.last.name == "000008"


def test_what_a_kill_left_of_an_older_checkpoint_is_removed(tmp_path):
    checkpoints_in(tmp_path, 6)
    for leftover in (".000004.old/agent", ".000008.new/agent", ".000006.universal/engine0"):
        (tmp_path / leftover).mkdir(parents=True)
    assert checkpoints_in(tmp_path).load() == (6, {})
    assert names(tmp_path) == ["000006"]


def test_what_the_user_keeps_there_stays_and_does_not_disturb(tmp_path):
    checkpoints_in(tmp_path, 2, 4)
    shutil.copytree(tmp_path / "000004", tmp_path / "000004-good")
    shutil.copytree(tmp_path / "000004", tmp_path / "999999")  # a copy, with a larger number
    (tmp_path / ".DS_Store").write_bytes(b"macOS")
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    for folder in ("123456", "2024", "mine.old", ".mine.old", "agents"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "notes.txt").write_text("mine", encoding="utf-8")
    users = set(names(tmp_path)) - {"000002", "000004"}
    before = {path: path.read_bytes() for name in users for path in (tmp_path / name).rglob("*") if path.is_file()}
    assert checkpoints_in(tmp_path).load() == (4, {})
    checkpoints_in(tmp_path, 6, 8, 10)
    assert set(names(tmp_path)) == users | {"000008", "000010"}
    assert all(path.read_bytes() == content for path, content in before.items())


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a flipped bit": (flip_a_bit, "state.pt", "is damaged"),
    "truncated": (lambda path: os.truncate(path, path.stat().st_size - 1), "state.pt", "is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "state.pt", "is damaged"),
    "missing": (Path.unlink, "state.pt", "is missing"),
    "foreign": (lambda path: torch.save({"parts": {}}, path), "state.pt", "is damaged"),
    "no list of files": (Path.unlink, "checkpoint.json", "is missing or damaged"),
    "half a list of files": (lambda path: os.truncate(path, 9), "checkpoint.json", "is missing or damaged"),
    "another list": (lambda path: path.write_text("[]", encoding="utf-8"), "checkpoint.json", "is missing or damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_with_the_one_before_it(tmp_path, kind):
    damage, file, fault = DAMAGE[kind]
    checkpoints_in(tmp_path, 2, 4)
    damage(tmp_path / "000004" / file)
    message = f"{tmp_path}/000004/{file} {fault}.*; to go on from {tmp_path}/000002, move {tmp_path}/000004 away$"
    with pytest.raises(ValueError, match=message):
        checkpoints_in(tmp_path).load()
    assert names(tmp_path) == ["000002", "000004"]
    shutil.rmtree(tmp_path / "000004")
    assert checkpoints_in(tmp_path).load() == (2, {})
    damage(tmp_path / "000002" / file)
    with pytest.raises(ValueError, match=f"{fault}.*; there is no earlier checkpoint$"):
        checkpoints_in(tmp_path).load()


def test_a_whole_checkpoint_of_something_else_is_named(tmp_path):
    checkpoints_in(tmp_path, 2)
    checkpoints = Checkpoints(tmp_path, lambda agent: agent.mkdir(), {"other": Part()})
    with pytest.raises(ValueError, match=r"000002/state.pt does not fit this run \('other'\); there is no earlier"):
        checkpoints.load()
