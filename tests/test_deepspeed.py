"""ppo_dialog_deepspeed.py: that it is ppo_dialog.py, and that ranks, stages and restarts change nothing.

One launch of the `deepspeed` command with two processes and one with one serve most tests; on CPU, by gloo.
"""

import ast
import difflib
import importlib
import json
import os
import signal
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
OFFLOAD = {"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}
PARTITIONED = {"stage": 3, "stage3_param_persistence_threshold": 0}
FLAGS = {"num-envs": 8, "total-episodes": 24, "num-minibatches": 1, "update-epochs": 2, "eval-samples": 4}
FLAGS["replies-per-prompt"] = 1
FLAGS |= {"max-prompt-length": 24, "max-new-tokens": 6, "sample-every": 100, "checkpoint-every": 1}
FLAGS |= {"learning-rate": 1e-3, "kl-target": 0.01}


# The text of the script


def test_it_is_the_plain_script_but_for_few_lines():
    plain, script = (path.read_text().splitlines() for path in (PLAIN, SCRIPT))
    diff = [line for line in difflib.unified_diff(plain, script, n=0) if not line.startswith(("---", "+++", "@@"))]
    assert sum(line.startswith("-") for line in diff) <= 60
    assert sum(line.startswith("+") for line in diff) <= 100


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
            "train_batch_size 32 = train_micro_batch_size_per_gpu 16 * gradient_accumulation_steps 1 * ranks 2 = 32, "
            "and must be the script's minibatch, num_envs 64 / num_minibatches 4 = 16",
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


def test_a_missing_installation_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.delitem(sys.modules, "dailydialog_gym.ranks", raising=False)
    with pytest.raises(SystemExit, match=r"pip install -c constraints.txt -e '.\[deepspeed\]'"):
        importlib.import_module("dailydialog_gym.ranks")


# Real launches


def launch(folder, processes, *command):
    """The `deepspeed` command with some processes. Returns: its exit code and output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A lock that a killed build left behind would make the next one wait for ever
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(folder / "extensions"), "PYTHONPATH": str(ROOT)}
    environment["TORCHDYNAMO_DISABLE"] = "1"  # DeepSpeed imports torch's whole compiler for an optimizer not used here
    deepspeed = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(processes)]
    process = subprocess.Popen(
        [*deepspeed, "--master_port", str(port), *map(str, command)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=240)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the ranks too
        raise
    return process.returncode, output


def words(flags):
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def drive(folder, processes, jobs):
    """Outcomes by name of the driver's jobs, which may leave out what most have."""
    jobs = {
        name: {"script": str(SCRIPT), "same_draws": True, "out": str(folder / f"{name}-{processes}.pt")} | job
        for name, job in jobs.items()
    }
    for name, job in jobs.items():
        if "copy" in job:
            job["copy"] += [f"runs/{name}-{processes}"]
            job["flags"] = ["--resume", job["copy"][1]]
        else:
            job["flags"] = [*job["flags"], "--run-name", f"{name}-{processes}"]
    (folder / "jobs.json").write_text(json.dumps(list(jobs.values())))
    code, output = launch(folder, processes, Path(__file__).with_name("deepspeed_driver.py"), folder / "jobs.json")
    assert (code != 0) == any("interrupt" in job for job in jobs.values()), output[-10_000:]
    return {name: torch.load(job["out"], weights_only=False) for name, job in jobs.items()}


@pytest.fixture(scope="module")
def flags(tiny_models, tiny_intent_model):
    return FLAGS | {"model": tiny_models["gpt2"], "intent-model": tiny_intent_model}


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
    opt = short | {"model": tiny_models["opt"], "intent-model": "builtin"}  # some reply is worth something
    jobs = {f"stage{stage}": {"flags": [*words(flags), "--zero-stage", str(stage)]} for stage in (0, 2)}
    jobs["stage1"] = {"flags": [*words(short), "--zero-stage", "1"]}
    jobs["stage3"] = {"flags": [*words(flags), *three]}
    jobs["resumed2"] = {"copy": ["runs/stage2-2-half"]}
    jobs["resumed3"] = {"copy": ["runs/stage3-2-half"]}
    jobs["shared"] = {"flags": [*words(opt), *three, "--critic", "shared", "--use-amp"]}
    (folder / "tutorial.json").write_text(json.dumps(TUTORIAL_EVAL))
    evaluation = ["--ref-deepspeed-config", "tutorial.json", "--intent-deepspeed-config", "tutorial.json"]
    parts = ["--gradient-accumulation-steps", "2", "--offload-optimizer"]
    jobs["parts"] = {"flags": [*words(short), *parts, *evaluation]}
    (folder / "offload.json").write_text(json.dumps({"zero_optimization": PARTITIONED | OFFLOAD}))
    jobs["offload"] = {"flags": [*words(short), "--deepspeed-config", "offload.json"]}
    (folder / "spoilt.py").write_text(SPOILT)
    spoilt = ["--policy-class", "spoilt:Policy", "--zero-stage", "0"]
    jobs["spoilt"] = {"flags": [*words(short), *spoilt]}
    jobs["few"] = {"flags": words(flags | {"num-envs": 1})}
    jobs["stopped"] = {"flags": [*words(flags), "--checkpoint-every", "100"], "interrupt": 2}
    return drive(folder, 2, jobs)


@pytest.fixture(scope="module")
def one(flags, folder, two):
    """Runs of one process, which has all the episodes."""
    drawn = {"flags": words(flags | {"num-minibatches": 2}), "same_draws": False}
    jobs = {
        "stage0": {"flags": [*words(flags), "--zero-stage", "0"]},
        "drawn": drawn | {"flags": [*drawn["flags"], "--zero-stage", "0"]},
        "plain": drawn | {"script": str(PLAIN)},
        "resumed2": {"copy": ["runs/stopped-2"]},
        "resumed3": {"copy": ["runs/stage3-2-half"]},
    }
    return drive(folder, 1, jobs)


UNLIKE = {"charts/FPS", "time/rollout", "losses/explained_variance"}  # the last is a mean over ranks


def assert_same_rows(ours, expected, atol):
    assert len(ours) == len(expected)
    for row, other in zip(ours, expected, strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() - UNLIKE:
            assert row[key] == pytest.approx(other[key], abs=atol), key


def assert_same(tensors, expected, atol):
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor.float(), expected[name].float(), rtol=0, atol=atol, msg=name)


def test_one_process_at_stage_0_is_the_plain_script(one):
    """The same tokens, losses and rewards over three iterations of four steps."""
    assert len(one["plain"]["rows"]) == 3
    assert_same_rows(one["drawn"]["rows"], one["plain"]["rows"], 1e-5)
    assert one["drawn"]["rows"][0]["losses/policy_loss"] != 0
    assert_same(one["drawn"]["policy"], one["plain"]["policy"], 1e-5)


def test_two_processes_are_one_with_twice_the_episodes(one, two):
    # Two epochs of the first iteration, policy and critic; after it each rank shuffles its own
    for ours, expected in zip(two["stage0"]["gradients"][:4], one["stage0"]["gradients"][:4], strict=True):
        assert max(gradient.abs().max() for gradient in expected.values()) > 0.01
        assert_same(ours, expected, 1e-4)
    assert_same_rows(two["stage0"]["rows"][:1], one["stage0"]["rows"][:1], 1e-4)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stages_compute_the_same(two, stage):
    ours, expected = two[f"stage{stage}"], two["stage0"]
    assert bool(ours["partitioned"]) == (stage == 3)
    assert len(ours["gradients"]) == (4 if stage == 1 else 12)
    for gradients, others in zip(ours["gradients"], expected["gradients"], strict=False):
        assert_same(gradients, others, 1e-4)
    assert_same_rows(ours["rows"], expected["rows"][: len(ours["rows"])], 1e-4)
    if stage > 1:
        assert_same(ours["policy"], expected["policy"], 1e-3)


def test_ranks_have_contexts_of_their_own_and_one_kl_coefficient(two):
    first, second = two["stage0"]["prompts"]
    assert len(first) == len(second) == 4
    assert not {*first} & {*second}
    coefficients = two["stage0"]["kl_coef"]
    assert coefficients[0] == coefficients[1] != 0.05


@pytest.mark.parametrize("stage", [2, 3])
def test_a_resumed_run_ends_as_if_nothing_had_happened(two, stage):
    assert_same_rows(two[f"resumed{stage}"]["rows"], two[f"stage{stage}"]["rows"], 1e-6)
    assert_same(two[f"resumed{stage}"]["policy"], two[f"stage{stage}"]["policy"], 1e-6)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_of_two_ranks_goes_on_with_one(one, two, stage):
    """Weights and moments: what the third iteration's steps do to the policy."""
    assert_same_rows(one[f"resumed{stage}"]["rows"], two[f"stage{stage}"]["rows"], 1e-4)
    assert_same(one[f"resumed{stage}"]["policy"], two[f"stage{stage}"]["policy"], 1e-3)


def test_a_minibatch_in_parts_with_moments_in_the_processor_s_memory_is_the_minibatch(two):
    """Replies of one length, so that each part weighs the same."""
    assert len(two["parts"]["gradients"]) == 4
    for ours, expected in zip(two["parts"]["gradients"], two["stage0"]["gradients"], strict=False):
        assert_same(ours, expected, 1e-4)
    assert_same_rows(two["parts"]["rows"], two["stage0"]["rows"][:1], 1e-4)


def test_weights_and_moments_in_the_processor_s_memory_change_nothing(two):
    assert two["offload"]["partitioned"]
    for ours, expected in zip(two["offload"]["gradients"], two["stage0"]["gradients"], strict=False):
        assert_same(ours, expected, 1e-4)
    assert_same_rows(two["offload"]["rows"], two["stage0"]["rows"][:1], 1e-4)


def test_a_gradient_of_one_rank_that_is_not_finite_leaves_out_the_step_of_all(two):
    assert two["spoilt"]["rows"][0]["losses/skipped_steps"] == 1
    assert all(tensor.isfinite().all() for tensor in two["spoilt"]["policy"].values())


def test_ctrl_c_saves_a_checkpoint_from_which_the_run_goes_on(one, two, folder):
    """Two ranks stop in the second iteration; `test_a_run_of_two_ranks_goes_on_with_one` goes on."""
    assert two["stopped"]["error"] == str(128 + signal.SIGINT)
    (last,) = (folder / "runs/stopped-2/checkpoints").iterdir()
    assert last.name == "000002"
    assert [row["episodes"] for row in one["resumed2"]["rows"]] == [8, 16, 24]


@pytest.mark.parametrize("name", ["stage0", "stage1", "stage2", "stage3"])
def test_agents_of_all_stages_are_plain_folders(two, folder, name):
    agent = AutoModelForCausalLM.from_pretrained(folder / f"runs/{name}-2/agent")
    assert_same(agent.state_dict(), two[name]["policy"], 0)
    assert {path.suffix for path in (folder / f"runs/{name}-2/agent").iterdir()} == {".json", ".safetensors"}


def test_opt_trains_in_bfloat16_with_a_shared_critic(two, folder):
    assert all(np.isfinite(value) for value in two["shared"]["rows"][0].values())
    assert two["shared"]["partitioned"]
    assert isinstance(DialogueAgent.load(str(folder / "runs/shared-2/agent")).chat("Hello ."), str)


def test_fewer_episodes_than_ranks_are_refused(two):
    assert "num_envs (1) / ranks (2) / replies_per_prompt (1), that is whole" in two["few"]["error"]


def test_a_rank_that_dies_ends_the_job_with_its_own_error(flags, folder):
    (folder / "faulty.py").write_text(FAULTY)
    start = time.monotonic()
    code, output = launch(folder, 2, SCRIPT, *words(flags), "--run-name", "faulty", "--reward", "faulty:dying=1")
    assert time.monotonic() - start < 90  # of which the start takes a third
    assert code != 0
    assert "RuntimeError: a fault of rank 1" in output
    (last,) = (folder / "runs/faulty/checkpoints").iterdir()
    assert last.name == "000002"
    assert isinstance(DialogueAgent.load(str(last / "agent")).chat("Hello ."), str)


SPOILT = """
import os
import torch
from transformers import GPT2LMHeadModel

backwards = []

class Spoilt(torch.autograd.Function):
    forward = staticmethod(lambda context, x: x.clone())

    @staticmethod
    def backward(context, gradient):
        backwards.append(len(backwards) + 1)
        return gradient * float("nan") if backwards[-1] == 1 and os.environ["RANK"] == "1" else gradient

class Policy(GPT2LMHeadModel):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = Spoilt.apply(outputs.logits)
        return outputs
"""

FAULTY = """
import os
import numpy as np
calls = []
def dying(episodes):
    calls.append(len(episodes))
    if os.environ["RANK"] == "1" and len(calls) == 3:
        raise RuntimeError("a fault of rank 1")
    return np.zeros(len(episodes))
"""
