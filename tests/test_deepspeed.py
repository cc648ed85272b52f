"""ppo_dialog_deepspeed.py: that it is ppo_dialog.py, and that ranks, stages and restarts change nothing.

One launch of the `deepspeed` command with two processes and one with one serve most tests; on CPU, by gloo.
"""

import ast
import difflib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dailydialog_gym.agent import DialogueAgent

ROOT = Path(__file__).parents[1]
PLAIN, SCRIPT = ROOT / "ppo_dialog.py", ROOT / "ppo_dialog_deepspeed.py"

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install -e '.[deepspeed]'")

from dailydialog_gym.engines import evaluation_config, training_config  # noqa: E402

# OpenRL's ds_config.json and eval_ds_config.json
TUTORIAL = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 16,
    "steps_per_print": 10,
    "zero_optimization": {"stage": 2},
    "fp16": {"enabled": False, "loss_scale_window": 100},
}
TUTORIAL_EVAL = {
    "train_batch_size": 16,
    "train_micro_batch_size_per_gpu": 4,
    "steps_per_print": 10,
    "zero_optimization": {"stage": 0, "offload_param": {"device": "cpu"}},
    "fp16": {"enabled": False},
}
# A tiny model is whole on every rank where nothing is below the threshold
PARTITIONED = {"stage": 3, "stage3_param_persistence_threshold": 0}
FLAGS = {"num-envs": 8, "total-episodes": 24, "num-minibatches": 1, "update-epochs": 1, "eval-samples": 4}
FLAGS |= {"max-prompt-length": 24, "max-new-tokens": 6, "sample-every": 100, "checkpoint-every": 1}
FLAGS |= {"learning-rate": 1e-3, "kl-target": 0.01}


# The text of the script


def test_it_is_the_plain_script_but_for_few_lines():
    plain, script = (path.read_text().splitlines() for path in (PLAIN, SCRIPT))
    diff = [line for line in difflib.unified_diff(plain, script, n=0) if not line.startswith(("---", "+++", "@@"))]
    assert sum(line.startswith("-") for line in diff) <= 55
    assert sum(line.startswith("+") for line in diff) <= 95


def test_its_models_packing_and_flags_are_the_plain_script_s_to_the_letter():
    blocks = [
        {node.name: ast.unparse(node) for node in ast.parse(path.read_text()).body if hasattr(node, "name")}
        for path in (PLAIN, SCRIPT)
    ]
    added = blocks[1].keys() - blocks[0].keys()
    assert added == {"DeepSpeedArgs"}
    assert {name for name in blocks[0] if blocks[0][name] != blocks[1][name]} == {"Args"}


# Configurations


def arguments(**changes):
    flags = {"deepspeed_config": None, "zero_stage": 2, "offload_optimizer": False, "offload_param": False}
    flags |= {"gradient_accumulation_steps": None, "max_grad_norm": 1.0, "use_amp": False}
    return SimpleNamespace(**(flags | {"num_envs": 64, "num_minibatches": 2} | changes))


def write(folder, config):
    path = folder / "ds_config.json"
    path.write_text(json.dumps(config))
    return str(path)


@pytest.mark.parametrize(("world", "steps"), [(1, 2), (2, 1)])
def test_the_tutorial_s_files_are_accepted_as_they_are(tmp_path, world, steps):
    config = training_config(arguments(deepspeed_config=write(tmp_path, TUTORIAL)), world)
    assert config["zero_optimization"] == {"stage": 2}
    assert config["gradient_accumulation_steps"] == steps
    assert config["train_batch_size"] == 32
    evaluation = evaluation_config(write(tmp_path, TUTORIAL_EVAL), config, "the reference")
    assert evaluation["zero_optimization"] == TUTORIAL_EVAL["zero_optimization"]
    assert "train_batch_size" not in evaluation


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            TUTORIAL,
            {"num_minibatches": 4},
            "train_batch_size 32 = train_micro_batch_size_per_gpu 16 * gradient_accumulation_steps 1 * ranks 2 = 32, and "
            "must be the script's minibatch, num_envs 64 / num_minibatches 4 = 16",
        ),
        ({"train_micro_batch_size_per_gpu": 5}, {}, "10, and must be the script's minibatch, num_envs 64"),
        ({"fp16": {"enabled": True}}, {}, "fp16 doesn't work on cpu"),
        ({"scheduler": {"type": "WarmupLR"}}, {}, "take 'scheduler' out"),
        ([], {}, "expected a JSON object"),
    ],
)
def test_a_file_that_contradicts_the_script_is_named(tmp_path, file, changes, message):
    path = write(tmp_path, file)
    with pytest.raises(SystemExit, match=path) as error:
        training_config(arguments(deepspeed_config=path, **changes), 2)
    assert message in str(error.value)


def test_stages_that_are_for_training_are_refused_to_the_reference(tmp_path):
    path = write(tmp_path, {"zero_optimization": {"stage": 2}})
    with pytest.raises(SystemExit, match="the reference isn't trained, so its ZeRO stage is 0 or 3"):
        evaluation_config(path, training_config(arguments(), 1), "the reference")


def test_a_missing_installation_is_named(tmp_path):
    hide = "import runpy, sys; sys.modules['deepspeed'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", hide, str(SCRIPT)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install -c constraints.txt -e '.[deepspeed]'" in done.stderr


# Real launches


def launch(folder, processes, *command):
    """The `deepspeed` command with some processes; its output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A lock that a killed build left behind would make the next one wait for ever
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(folder / "extensions"), "PYTHONPATH": str(ROOT)}
    deepspeed = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(processes)]
    return subprocess.run(
        [*deepspeed, "--master_port", str(port), *map(str, command)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )


def words(flags):
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def drive(folder, processes, jobs):
    """Outcomes by name of the driver's jobs, which may leave out what most have."""
    jobs = {
        name: {"script": str(SCRIPT), "same_draws": True, "out": str(folder / f"{name}-{processes}.pt")} | job
        for name, job in jobs.items()
    }
    for name, job in jobs.items():
        if "--resume" not in job["flags"]:
            job["flags"] = [*job["flags"], "--run-name", name]
    (folder / "jobs.json").write_text(json.dumps(list(jobs.values())))
    done = launch(folder, processes, Path(__file__).with_name("deepspeed_driver.py"), folder / "jobs.json")
    assert done.returncode == 0, done.stdout[-5000:]
    return {name: torch.load(job["out"], weights_only=False) for name, job in jobs.items()}


@pytest.fixture(scope="module")
def flags(tiny_models, request):
    return FLAGS | {"model": tiny_models["gpt2"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("deepspeed")


@pytest.fixture(scope="module")
def two(flags, tiny_models, folder):
    """Runs of two processes."""
    (folder / "three.json").write_text(json.dumps({"zero_optimization": PARTITIONED}))
    (folder / "evaluation.json").write_text(
        json.dumps({"zero_optimization": {**PARTITIONED, "offload_param": {"device": "cpu"}}})
    )
    offload = ["--ref-deepspeed-config", "evaluation.json", "--intent-deepspeed-config", "evaluation.json"]
    three = ["--deepspeed-config", "three.json", *offload]
    short = flags | {"total-episodes": 8, "checkpoint-every": 10}
    opt = short | {"model": tiny_models["opt"]}
    jobs = {f"stage{stage}": {"flags": [*words(flags), "--zero-stage", str(stage)]} for stage in (0, 1, 2)}
    jobs["stage3"] = {"flags": [*words(flags), *three]}
    jobs["resumed2"] = {"flags": ["--resume", "runs/stage2-half"]}
    jobs["resumed3"] = {"flags": ["--resume", "runs/stage3-half"]}
    jobs["shared"] = {"flags": [*words(opt), *three, "--critic", "shared", "--use-amp"]}
    jobs["parts"] = {"flags": [*words(short), "--gradient-accumulation-steps", "2"]}
    jobs["offload"] = {"flags": [*words(short), "--offload-optimizer"]}
    jobs["few"] = {"flags": words(flags | {"num-envs": 1})}
    return drive(folder, 2, jobs)


@pytest.fixture(scope="module")
def one(flags, folder, two):
    """Runs of one process, which has all the episodes."""
    drawn = {"flags": words(flags | {"num-minibatches": 2, "update-epochs": 2}), "same_draws": False}
    jobs = {
        "stage0": {"flags": [*words(flags), "--zero-stage", "0"]},
        "drawn": drawn | {"flags": [*drawn["flags"], "--zero-stage", "0"]},
        "plain": drawn | {"script": str(PLAIN)},
        "resumed2": {"flags": ["--resume", "runs/stage2-half"]},
        "resumed3": {"flags": ["--resume", "runs/stage3-half"]},
    }
    return drive(folder, 1, jobs)
