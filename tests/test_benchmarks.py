"""The benchmark of PPO: that it counts what it says, and that its contestants run."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import parse
from paths import ROOT
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import dailydialog_gym.runs
from dailydialog_gym.env.envs import DailyDialogVectorEnv
from dailydialog_gym.wrappers.vector import KLPenalty, ScoreReward

BENCHMARKS = ROOT / "benchmarks"


def test_arithmetic_is_that_of_linear_layers_forward_and_where_a_gradient_comes_back(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS / "contestants")
    from meter import Meter

    meter = Meter()
    try:
        used, unused, x = nn.Linear(3, 5), nn.Linear(3, 7), torch.ones(2, 4, 3)
        meter.begin("rollout")
        with torch.no_grad():
            used(x)
        meter.begin("update")
        loss = nn.LayerNorm(5)(used(x)).square().sum()
        unused(x)
        loss.backward()
        meter.end(tokens=8, repeat={"update": 10})
    finally:
        meter.hook.remove()
    forward = 2 * 15 * 8
    assert meter.iterations[0]["flops"] == {
        "rollout": forward,
        "rewards": 0,
        "update": 10 * (3 * forward + 2 * 21 * 8),
    }


@pytest.fixture
def contest(tiny_model, tmp_path, monkeypatch):
    """Runs a contestant on a tiny model, in this process and a folder of its own; returns its iterations."""
    intent = str(tmp_path / "intent")
    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=4).save_pretrained(intent)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(intent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(BENCHMARKS / "contestants")
    for owner, name in (
        (DailyDialogVectorEnv, "reset"),
        (ScoreReward, "_add_score"),
        (KLPenalty, "_add_score"),
        (dailydialog_gym.runs.Run, "log"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # contestants watch these; put back afterwards
    monkeypatch.syspath_prepend(BENCHMARKS)
    benchmark = runpy.run_path(str(BENCHMARKS / "ppo_speed.py"))

    def contest(script, **settings):
        args = benchmark["Args"](num_envs=8, num_minibatches=2, iterations=2, intent_model=intent)
        job = benchmark["describe_job"](args, tiny_model)
        job |= {
            "amp": None,
            "critic": "separate",
            "replies_per_prompt": 1,
            "compile": False,
            "result": "result.json",
            **settings,
        }
        Path("job.json").write_text(json.dumps(job), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", [script, "job.json"])
        runpy.run_path(str(BENCHMARKS / "contestants" / script), run_name="__main__")["meter"].hook.remove()
        result = json.loads(Path("result.json").read_text(encoding="utf-8"))
        assert benchmark["summary"]([result])["fps"] > 0
        return result["iterations"]

    return contest


def test_the_per_token_loop_does_the_forwards_of_openrl(contest):
    last = contest("per_token.py")[-1]
    # 148 columns: three forwards to write a token, five forwards and backwards of policy and critic to learn from it,
    # and the critic once more after the last of 8 steps. The head is most of this model; the critic's gets no gradient.
    layers, head = 2 * 12 * 16**2, 16 * 4096
    forwards = 3 * (layers + head) + 5 * (3 * layers + 3 * head + 3 * layers + head) + (layers + head) / 8
    assert sum(last["flops"].values()) / last["tokens"] == pytest.approx(148 * 2 * forwards, rel=0.01)


def test_fps_is_that_of_the_script(contest):
    iterations = contest("ours.py", replies_per_prompt=4)
    rows = [json.loads(row) for row in Path("runs/speed/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for iteration, row in zip(iterations, rows, strict=True):
        assert iteration["tokens"] == round(8 * row["charts/episodic_length"])
        assert all(iteration["seconds"][phase] > 0 for phase in ("rollout", "rewards", "update"))
        assert iteration["tokens"] / sum(iteration["seconds"].values()) == pytest.approx(row["charts/FPS"], rel=0.1)


PYTHON = """#!/bin/sh
for word in "$@"; do printf '%s\\n' "$word" >> "$CALLS"; done
echo >> "$CALLS"
case "$*" in *--run-name*)
    mkdir -p "runs/$6/checkpoints/1"
    touch "runs/$6/checkpoints/1/state.pt"
    exec sleep 60
esac
"""


def test_the_gpu_script_stops_and_resumes_a_run_and_its_flags_are_read(tmp_path, monkeypatch):
    """Instead of Python, a program runs that writes down its arguments; then each script's own parser reads them."""
    (tmp_path / "benchmarks").mkdir()
    script, calls = tmp_path / "benchmarks/gpu.sh", tmp_path / "calls"
    script.write_text((BENCHMARKS / "gpu.sh").read_text(encoding="utf-8"), encoding="utf-8")
    for program, text in {"python": PYTHON, "git": "#!/bin/sh\n"}.items():
        (tmp_path / program).write_text(text, encoding="utf-8")
        (tmp_path / program).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls)}
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    commands = [command.split("\n") for command in calls.read_text(encoding="utf-8").removesuffix("\n\n").split("\n\n")]
    monkeypatch.chdir(ROOT)
    for command in commands:
        with monkeypatch.context() as patch:
            if "--resume" not in command:
                parse(command, patch)
    names = [command[0].removeprefix("benchmarks/") for command in commands]
    assert names == ["ppo_speed.py"] * 3 + ["ppo_dialog.py"] * 2 + ["deepspeed_speed.py"]
    assert ["--cuda-graphs" in command for command in commands] == [True] * 4 + [
        False
    ] * 2  # a resumed run has its flags
    (started,), (resumed,) = (
        [c[c.index(flag) + 1] for c in commands if flag in c] for flag in ("--run-name", "--resume")
    )
    assert resumed == f"runs/{started}"


def test_overoptimization_trains_each_seed_with_and_without_a_penalty(tmp_path, monkeypatch):
    """Instead of the script, a function writes what a run leaves."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.chdir(tmp_path)
    import quality

    commands = []

    def call(args, name, command):
        commands.append(command)
        slope = 2 if "--kl-coef=0" in command else 1
        rows = [
            {"reward/kl": slope * i, "reward/judge": i, "reward/meteor": 0.1 + i * (9 - i) / 1e3, "reward/intent": 0.4}
            for i in range(12)
        ]
        scores = {"meteor": 0.1, "intent": 0.5, "length": 8.0}
        run = args.out / "runs" / name
        run.mkdir(parents=True)
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        both = {"before": scores, "after": scores | {"meteor": 0.1 + slope / 100}}
        (run / "evaluation.json").write_text(json.dumps(both), encoding="utf-8")

    monkeypatch.setattr(quality, "call", call)
    benchmark = runpy.run_path(str(BENCHMARKS / "overoptimization.py"))
    (tmp_path / "judge").mkdir()
    for _ in range(2):  # the second time all runs are done
        benchmark["main"](benchmark["Args"](reward_model=Path("judge"), out=Path("out"), seeds=(1, 2)))
    assert len(commands) == 4
    with monkeypatch.context() as patch:
        patch.chdir(ROOT)
        parse(["ppo_dialog.py", *commands[0][1:]], patch)
    table = (tmp_path / "out/table.md").read_text(encoding="utf-8")
    assert "| without a penalty | 0.1200 " in table and "| with the penalty  | 0.1100 " in table
    assert "| with-the-penalty-2  | 11.0 | 0.00 to 11.00  | +10.0%" in table
    assert (tmp_path / "out/overoptimization.png").stat().st_size > 10_000


def test_the_cost_of_logged_rollouts_is_a_share_of_an_iteration(
    tiny_model, tiny_intent_model, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rollouts_cost.py"])
    monkeypatch.setattr(dailydialog_gym.runs.Run, "log_rollouts", dailydialog_gym.runs.Run.log_rollouts)
    flags = {"model": tiny_model, "intent-model": tiny_intent_model, "num-envs": 8, "num-minibatches": 1}
    flags |= {"total-episodes": 24, "eval-samples": 2, "replies-per-prompt": 4, "max-prompt-length": 24}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    runpy.run_path(str(BENCHMARKS / "rollouts_cost.py"))["main"](words)
    line = capsys.readouterr().out.splitlines()[-2]
    assert re.fullmatch(
        r"--log-rollouts 16: \d+ ms of an iteration's \d+ ms \(\d+\.\d%\), \d+ kB; medians of 2 iterations", line
    )


def test_the_speedrun_counts_the_seconds_up_to_the_first_checkpoint_that_reaches_the_goal(tmp_path, monkeypatch):
    """Instead of the scripts, a function writes what they leave: METEOR rises by 4% with each checkpoint."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.chdir(tmp_path)
    import quality

    commands = []

    def call(args, name, command):
        commands.append(command)
        if command[0] == "-m":
            steps = 0 if command[2] == "builtin" else int(Path(command[2]).parent.name) / 10
            (file,) = (word.removeprefix("--json=") for word in command if word.startswith("--json="))
            scores = {"agent": {"meteor": 0.1 * (1 + 0.04 * steps)}}
            (args.out / file).write_text(json.dumps(scores), encoding="utf-8")
            return
        run = args.out / "runs" / name
        for iteration in 10, 20, 30, 40:
            (run / "checkpoints" / f"{iteration:06}" / "agent").mkdir(parents=True)
        rows = [{"episodes": 8 * (i + 1), "charts/episodic_length": 5, "charts/FPS": 20} for i in range(40)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    monkeypatch.setattr(quality, "call", call)
    benchmark = runpy.run_path(str(BENCHMARKS / "speedrun.py"))
    benchmark["main"](benchmark["Args"](out=Path("out"), seeds=(1,)))
    assert "| 1 | 240 | 60 | +12.0% |" in (tmp_path / "out/table.md").read_text(encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.chdir(ROOT)
        parse(["ppo_dialog.py", *next(command for command in commands if command[0] != "-m")[1:]], patch)


def test_the_documents_tables_are_those_of_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from speed_tables import filled, scaling_figure

    row = {"model": "builtin", "prompt_tokens": 55, "label": "new", "script": "ours.py", "compile": False, "fps": 30.0}
    row |= {"spread": 1.0, "shares": [0.5, 0.2, 0.3], "gflop_a_token": 1.0, "update_gflops": 100, "of_matmul": 0.5}
    rows = [row | {"peak_gb": 1.0}, row | {"label": "old", "fps": 20.0, "peak_gb": 2.0}]
    rows.append(row | {"label": "graphs", "peak_gb": 1.0, "flags": ["--cuda-graphs"]})
    measured = {
        "kind": "speed",
        "machine": "a machine",
        "versions": "Python",
        "revision": "revision abc",
        "setting": "8 replies",
    }
    measured |= {"command": "python benchmarks/ppo_speed.py", "rows": rows, "rollouts": []}
    (tmp_path / "a.json").write_text(json.dumps(measured), encoding="utf-8")
    text = "before\n<!-- speed: a.json -->\nold\n<!-- end -->\nafter\n"
    document = filled(text, tmp_path)
    assert document.startswith("before\n") and document.endswith("<!-- end -->\nafter\n") and "\nold\n" not in document
    assert "| old | 20.0 ± 1.0 | 0.67 |" in document and "revision abc" in document
    assert "| graphs | 30.0 ± 1.0 | 1.00 |  | 50% | 20% | 30% | 100 | 50% |" in document
    assert filled(document, tmp_path) == document
    assert filled(unmeasured := text.replace("a.json", "later.json"), tmp_path) == unmeasured
    case = {"sweep": "models", "model": "6M", "replies": 16, "prompt": 64, "reply": 20, "flags": ["--low-memory"]}
    done = row | case | {"peak_gb": 1.0, "limit_fps": 60.0}
    rows = [done, case | {"model": "1.3b", "failed": "more than 20 GB"}, done | {"sweep": "replies"}]
    (tmp_path / "a.json").write_text(json.dumps(measured | {"kind": "scaling", "rows": rows}), encoding="utf-8")
    document = filled(text, tmp_path)
    assert "| 6M, --low-memory | 16 | 64 | 20 | 30.0 ± 1.0 | 60 | 50% |" in document and "(a.png)" in document
    assert "| 1.3b, --low-memory | 16 | 64 | 20 | more than 20 GB |" in document
    scaling_figure(measured | {"rows": rows}, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    rows = [{"variant": "stage 3", "devices": 2, "fps": 5.0, "gb": 3.25, "table_gb": None}]
    (tmp_path / "a.json").write_text(json.dumps(measured | {"kind": "deepspeed", "rows": rows}), encoding="utf-8")
    assert "| stage 3 | 2 | 5.0 | 3.25 |  |" in filled(text, tmp_path)
    for path in (ROOT / "docs").glob("*.md"):
        kept = path.read_text(encoding="utf-8")
        assert filled(kept, path.parent) == kept, f"python benchmarks/speed_tables.py docs/{path.name}"
