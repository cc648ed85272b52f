"""What a run logs, and where: its folder, TensorBoard, Weights and Biases, the console."""

import json
import runpy
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from paths import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dailydialog_gym.runs.data import DataArgs
from dailydialog_gym.runs.run import Run, RunArgs

MINE = """
import numpy as np

def brevity(episodes):
    return np.array([1 / (1 + len(response)) for response in episodes.responses])
"""


@pytest.fixture
def script(tmp_path, tiny_model, tiny_intent_model, monkeypatch, no_curves):
    """Runs the script in an empty folder, with the flags of a small run before the given ones unless it is resumed."""
    monkeypatch.chdir(tmp_path)
    small = {"model": tiny_model, "intent-model": tiny_intent_model, "num-envs": 4, "total-episodes": 8}
    small["replies-per-prompt"] = 1
    small |= {"num-minibatches": 2, "eval-samples": 4, "run-name": "run"}
    small = [word for name, value in small.items() for word in (f"--{name}", str(value))]

    def script(*flags):
        monkeypatch.setattr(sys, "argv", ["ppo_dialog.py", *(() if "--resume" in flags else small), *flags])
        runpy.run_path(str(ROOT / "ppo_dialog.py"), run_name="__main__")

    return script


@pytest.fixture
def no_login(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-login"))


def read_metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_what_a_users_own_reward_says_reaches_every_log(script, no_login, tmp_path, capsys):
    (tmp_path / "run_rewards.py").write_text(MINE, encoding="utf-8")
    script("--reward", "run_rewards:brevity=0.5", "--track", "--wandb-project-name", "talk")
    folder = tmp_path / "runs/run"
    rows = read_metrics(folder)
    assert [row["episodes"] for row in rows] == [4, 8]
    assert all(0 < row["reward/brevity"] < 1 for row in rows)
    events = EventAccumulator(str(folder)).Reload()
    (offline,) = (tmp_path / "runs/wandb").glob("offline-run-*/*.wandb")
    deadline = time.time() + 30  # wandb writes it from another process
    while "losses/explained_variance" not in (tracked := offline.read_bytes().decode(errors="replace")):
        assert time.time() < deadline
        time.sleep(0.1)
    for key in set(rows[0]) - {"episodes"}:
        values = [row[key] for row in rows]
        assert [(event.step, event.value) for event in events.Scalars(key)] == [
            (4 * i, pytest.approx(value, rel=1e-5)) for i, value in enumerate(values, 1)
        ]
        assert key in tracked
    assert all(json.dumps(row["reward/brevity"]) in tracked for row in rows)
    output = capsys.readouterr()
    assert "not logged in, so this run is logged offline" in output.out
    assert "run_rewards:brevity=0.5" in output.out


def test_a_resumed_run_goes_on_in_weights_and_biases_under_its_id(script, no_login, tmp_path):
    script("--track", "--total-episodes", "4")
    script("--resume", "runs/run")
    first, second = (tmp_path / "runs/wandb").glob("offline-run-*/*.wandb")
    assert first.name == second.name


@dataclass
class Args(RunArgs, DataArgs):
    model: str = "builtin"
    policy_class: str = "transformers:AutoModelForCausalLM"
    intent_model: str = "builtin"
    reward_model: list[str] = field(default_factory=list)
    seed: int = 1


@pytest.fixture
def run(tmp_path, monkeypatch, request):
    """A run of 8 replies that has begun; with a parameter, the run that is resumed after so many replies."""
    monkeypatch.chdir(tmp_path)
    run = Run(Args(run_name="run", checkpoint_every=1), 8)
    run.restore(torch.nn.Linear(1, 1))
    run.history = [{"episodes": request.param}] if hasattr(request, "param") else []
    run.start(SimpleNamespace())
    yield run
    run._close()


@pytest.mark.parametrize("run", [8], indirect=True)
def test_ctrl_c_ends_a_complete_run_that_is_resumed_at_once(run):
    assert run._bar.disable
    with pytest.raises(SystemExit):
        run._on_signal(signal.SIGINT, None)


def check(run, number: float, loss_scale: float, part: str = "the policy") -> bool:
    return run.check_step(part, torch.tensor(1.0), torch.tensor(number), loss_scale=loss_scale)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_only_three_bad_steps_in_a_row_stop_a_run(run, number):
    assert [check(run, n, 1.0) for n in (number, number, 0.5, number, number)] == [False, False, True, False, False]
    with pytest.raises(SystemExit, match=r"not finite 3 times in a row.*No checkpoint was saved"):
        check(run, number, 1.0)


def test_bad_steps_are_counted_for_each_part(run):
    for _ in range(2):
        assert not check(run, float("nan"), 1.0, "the critic")
        assert check(run, 0.5, 1.0)
    with pytest.raises(SystemExit, match="the critic's loss or gradient was not finite 3 times"):
        check(run, float("nan"), 1.0, "the critic")


def test_overflow_under_a_large_loss_scale_is_the_scales_fault(run):
    scales = [2.0**i for i in range(16, 0, -1)]
    assert not any(check(run, float("inf"), scale) for scale in scales)
    assert [check(run, float("inf"), scale) for scale in (1.0, 0.5)] == [False, False]
    with pytest.raises(SystemExit, match="not finite 3 times in a row"):
        check(run, float("inf"), 0.25)


def test_a_number_that_is_not_finite_is_null_in_json(run):
    usual = {"charts/episodic_return": 0.0, "metric/kl_per_token": 0.0, "charts/FPS": 1.0}
    check(run, float("nan"), 1.0)
    for i in (1, 2):
        run.log({**usual, "losses/policy_loss": float("nan")}, episodes=4 * i)
    rows = read_metrics(run.folder)
    assert [row["losses/policy_loss"] for row in rows] == [None, None]
    assert [row["losses/skipped_steps"] for row in rows] == [1, 0]


def test_a_new_run_begins_with_its_folder_and_flags_whole(run):
    assert json.loads((run.folder / "config.json").read_text(encoding="utf-8")) == vars(run.args)
    assert [path.name for path in run.folder.parent.iterdir()] == ["run"]


def test_a_checkpoint_of_another_version_is_named(run, monkeypatch):
    monkeypatch.setattr("dailydialog_gym.runs.run.Checkpoints.load", lambda self, check: (1, {"before": {}}))
    with pytest.raises(ValueError, match="is of another version: it lacks 'prompts'"):
        run.restore(torch.nn.Linear(1, 1))


class OtherRank(Run):
    """A run of a process that gets the folder from the main one."""

    def _broadcast(self, value):
        return {None: Path("runs/run"), (None, None): (EVALUATION, EVALUATION)}.get(value, value)


EVALUATION = SimpleNamespace(prompts=["Hi . <EOU>"], references=["Yes ."], replies=["No ."])


def test_a_process_other_than_the_main_one_writes_and_prints_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    run = OtherRank(Args(run_name="run", eval_samples=1), 8, is_main=False)
    run.restore(torch.nn.Linear(1, 1))
    run.start(None)
    run.log({"charts/episodic_return": 0.5}, episodes=4)
    run.print_samples(10, ["Hello . <EOU>"], ["Hi ."], np.ones(1))
    run.checkpoint(1)
    assert run.evaluate(None, None, None) is None
    assert [check(run, float("nan"), 1.0) for _ in range(2)] == [False, False]
    with pytest.raises(SystemExit, match=r"^1$"):  # together with the main process, which prints the message
        check(run, float("nan"), 1.0)
    envs = gym.make_vec("DailyDialog-v0", num_envs=2, split="validation")
    run.finish(None, envs.unwrapped.samples, envs)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "capabilities", "warned"),
    [
        ("cpu", {"avx2": True, "avx512_bf16": False, "architecture": "x86_64"}, True),
        ("cpu", {"avx2": True, "avx512_bf16": True}, False),
        ("cpu", {"amx_bf16": True}, False),
        ("cpu", {"bf16": True}, False),  # ARM's
        ("cuda", {}, False),
    ],
)
def test_a_processor_that_only_emulates_bfloat16_is_warned_of(run, monkeypatch, capsys, kind, capabilities, warned):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    args = {"intent_weight": None, "meteor_weight": 0.5, "reward": (), "critic": "shared", "spacing": "spaced"}
    args |= {"kl_rule": "fixed", "kl_coef": 0.1}
    run.args = SimpleNamespace(**vars(run.args) | args)
    run.print_setup(torch.nn.Linear(1, 1), [], [], torch.device(kind), torch.bfloat16)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("device")]
    assert "torch.bfloat16 mixed precision" in line
    assert ("slower than float32 here: this processor has no bfloat16 instructions" in line) == warned
