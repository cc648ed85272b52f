"""Real processes are killed, stopped or run out of disk space; resumed, each ends as the uninterrupted run does."""

import contextlib
import json
import os
import random
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import Server
from paths import ROOT
from stub_gpus import StubGpus
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.runs.checkpoints import Checkpoints, RandomState, write_folder, write_text

SCRIPT = ROOT / "ppo_dialog.py"


@pytest.fixture(scope="module")
def server(tiny_model):
    server = Server(SCRIPT, tiny_model)
    yield server
    server.close()


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory) -> str:
    utterances = ["Where were you ?", "At home .", "All day ?", "Yes , it rained .", "I see ."]
    lines = [
        json.dumps({"dialog": [*utterances[i:], f"{split} {i} ."], "act": [1] * (6 - i), "split": split})
        for i in range(4)
        for split in ("train", "test")
    ]
    path = tmp_path_factory.mktemp("data") / "dialogues.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture(scope="module")
def flags(tiny_model, tiny_intent_model, dialogues) -> list[str]:
    flags = {"model": tiny_model, "dataset": dialogues, "num-envs": 4, "total-episodes": 32, "num-minibatches": 2}
    flags |= {"replies-per-prompt": 2, "critic": "separate"}
    flags |= {"eval-samples": 4, "max-prompt-length": 16, "max-new-tokens": 6, "sample-every": 100}
    flags |= {"checkpoint-every": 2, "update-epochs": 1, "intent-model": tiny_intent_model}
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def uninterrupted(server, flags, tmp_path_factory) -> tuple[dict, float]:
    """The contents of the folder of a run that nothing interrupts, and the seconds that the run takes."""
    cwd = tmp_path_factory.mktemp("uninterrupted")
    server.start(cwd, SCRIPT, *flags, "--run-name", "run")
    start = time.perf_counter()
    assert server.wait() == 0, (cwd / "log.txt").read_text()
    return contents(cwd / "runs/run"), time.perf_counter() - start


def contents(folder: Path) -> dict:
    """All that the folder of a finished run holds, except for timings and the picture of the curves."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
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
            (folder / name).read_text() for name in ("evaluation.json", "samples.json", "samples.md", "config.json")
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
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_killed_at_random_moments_it_ends_as_if_nothing_had_happened(server, flags, uninterrupted, tmp_path):
    expected, duration = uninterrupted
    moments = random.Random(0)
    kills, finished, code = 0, 0, None
    while kills < 20 or code != 0:
        cwd = tmp_path / str(finished)
        cwd.mkdir(exist_ok=True)
        begun = (cwd / "runs/run").exists()
        pid = server.start(cwd, SCRIPT, *(("--resume", "runs/run") if begun else (*flags, "--run-name", "run")))
        if kills < 20:
            time.sleep(moments.uniform(0, 0.6 * duration))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        code = server.wait()
        if code == 0:
            assert contents(cwd / "runs/run") == expected
            finished += 1
        else:
            assert code == -signal.SIGKILL, (cwd / "log.txt").read_text()
            kills += 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_a_checkpoint_and_says_how_to_go_on(server, flags, uninterrupted, tmp_path, signum):
    pid = server.start(tmp_path, SCRIPT, *flags, "--run-name", "run", "--checkpoint-every", "1000")
    server.wait_until(lambda: lines(tmp_path / "runs/run/metrics.jsonl") >= 3, "metrics")
    os.kill(pid, signum)
    assert server.wait() == 128 + signum
    log = (tmp_path / "log.txt").read_text()
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


def test_asked_twice_it_quits_at_once(server, flags, tmp_path):
    pid = server.start(tmp_path, SCRIPT, *flags, "--run-name", "run", "--update-epochs", "1000000")
    log = tmp_path / "log.txt"
    server.wait_until(lambda: log.exists() and "0/32" in log.read_text(), "progress bar")
    os.kill(pid, signal.SIGINT)
    server.wait_until(lambda: "once more to quit at once" in log.read_text(), "message")
    os.kill(pid, signal.SIGINT)
    assert server.wait() == -signal.SIGINT


def test_a_full_disk_leaves_the_last_checkpoint_whole(server, flags, uninterrupted, tmp_path):
    pid = server.start(tmp_path, SCRIPT, *flags, "--run-name", "run")
    server.wait_until(lambda: lines(tmp_path / "runs/run/metrics.jsonl") >= 3, "metrics")
    os.kill(pid, signal.SIGTERM)
    server.wait()
    (last,) = (tmp_path / "runs/run/checkpoints").iterdir()
    size = (last / "state.pt").stat().st_size
    server.start(tmp_path, SCRIPT, "--resume", "runs/run", file_size=size // 2)
    assert server.wait() == 1
    log = (tmp_path / "log.txt").read_text()
    assert "cannot save checkpoint" in log
    assert "File too large" in log
    assert f"the last checkpoint, runs/run/checkpoints/{last.name}, is whole" in log
    assert list(last.parent.iterdir()) == [last]
    server.start(tmp_path, SCRIPT, "--resume", "runs/run")
    assert server.wait() == 0, (tmp_path / "log.txt").read_text()
    assert contents(tmp_path / "runs/run") == uninterrupted[0]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "parent/folder"
    write_folder(target, lambda folder: (folder / "a").write_text("old"))

    def fail(folder):
        (folder / "b").write_text("new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(target, fail)
    assert [path.name for path in target.parent.iterdir()] == ["folder"]
    assert [path.name for path in target.iterdir()] == ["a"]
    write_folder(target, lambda folder: (folder / "b").write_text("new"))
    assert [path.name for path in target.iterdir()] == ["b"]
    with pytest.raises(UnicodeEncodeError):
        write_text(target / "b", "half a character: \ud800")
    assert [path.read_text() for path in target.iterdir()] == ["new"]
    write_text(target / "b", "newer")
    assert [path.read_text() for path in target.iterdir()] == ["newer"]


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


def test_what_a_kill_left_of_an_older_checkpoint_is_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path, lambda folder: folder.mkdir(), {})
    checkpoints.save(6, {})
    (tmp_path / "000004/agent").mkdir(parents=True)  # half removed
    (tmp_path / ".000008.new").mkdir()  # half written
    assert checkpoints.load() == (6, {})
    assert [path.name for path in tmp_path.iterdir()] == ["000006"]
