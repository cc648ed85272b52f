"""ppo_dialog_deepspeed.py computes what ppo_dialog.py does, for any number of ranks, ZeRO stage and after a restart.

One launch of the `deepspeed` command with two processes on the CPU (gloo) serves most tests. The other launches are
forks, which run the same command but need not import torch again.
"""

import ast
import difflib
import json
import os
import re
import runpy
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
from forks import Server
from paths import ROOT
from transformers import AutoModelForCausalLM

from dailydialog_gym.agent import DialogueAgent

PLAIN, SCRIPT = ROOT / "ppo_dialog.py", ROOT / "ppo_dialog_deepspeed.py"

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install -e '.[deepspeed]'")

from deepspeed.accelerator import get_accelerator  # noqa: E402

from dailydialog_gym.distributed.engines import DeepSpeedArgs, evaluation_config, training_config  # noqa: E402
from dailydialog_gym.distributed.runs import _make_universal  # noqa: E402

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
# By default, ZeRO stage 3 does not partition tensors as small as those of a tiny model
OFFLOAD = {"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}
PARTITIONED = {"stage": 3, "stage3_param_persistence_threshold": 0}
FLAGS = {"num-envs": 8, "total-episodes": 24, "num-minibatches": 1, "update-epochs": 2, "eval-samples": 4}
FLAGS |= {"replies-per-prompt": 1, "critic": "separate"}
FLAGS |= {"max-prompt-length": 24, "max-new-tokens": 6, "sample-every": 100, "checkpoint-every": 1}
FLAGS |= {
    "learning-rate": 1e-3,
    "kl-target": 0.01,
    "max-grad-norm": 0.01,
}  # below the norm of the gradients, so that clipping matters


# The text of the script


def test_it_is_the_plain_script_but_for_few_lines():
    plain, script = (path.read_text(encoding="utf-8").splitlines() for path in (PLAIN, SCRIPT))
    diff = [line for line in difflib.unified_diff(plain, script, n=0) if not line.startswith(("---", "+++", "@@"))]
    assert sum(line.startswith("-") for line in diff) <= 54
    assert sum(line.startswith("+") for line in diff) <= 73


def test_its_classes_and_rollout_are_the_plain_script_s_to_the_letter():
    """Advantages and loss differ in means over the ranks."""
    blocks = [
        {
            node.name: ast.unparse(node)
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if hasattr(node, "name")
        }
        for path in (PLAIN, SCRIPT)
    ]
    assert blocks[1].keys() == blocks[0].keys()
    assert {name for name in blocks[0] if blocks[0][name] != blocks[1][name]} == {
        "Args",
        "compute_advantages",
        "ppo_loss",
    }


@pytest.mark.parametrize(
    ("flag", "cure"),
    [
        ("--compile", "leave it out"),
        ("--cuda-graphs", "leave it out"),
        ("--low-memory", "leave it out, and use --zero-stage 3"),
    ],
)
def test_what_deepspeed_does_not_allow_is_refused(flag, cure, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), flag])
    with pytest.raises(ValueError, match=f"^{flag} does not work with DeepSpeed: {cure}$"):
        runpy.run_path(str(SCRIPT), run_name="__main__")


# Configurations


def arguments(**changes):
    plain = {"max_grad_norm": 1.0, "use_amp": False, "num_envs": 64, "num_minibatches": 2}
    plain |= {"gradient_accumulation_steps": 1}
    return SimpleNamespace(**(vars(DeepSpeedArgs()) | plain | changes))


def write(folder, config):
    path = folder / "ds_config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("native", "section"), [(True, "bf16"), (False, "fp16")])
def test_amp_on_a_gpu_that_only_emulates_bfloat16_is_float16(native, section, monkeypatch):
    gpu = SimpleNamespace(is_fp16_supported=lambda: True, is_bf16_supported=lambda: True, device_name=lambda: "cuda")
    monkeypatch.setattr("dailydialog_gym.distributed.engines.get_accelerator", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert training_config(arguments(use_amp=True), 1)[section] == {"enabled": True}


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
        (TUTORIAL, {"gradient_accumulation_steps": 3}, "gradient_accumulation_steps 3 * ranks 2 = 96"),
        ({"zero_optimization": {"stage": 2, "offload_param": {}}}, {}, "offload_param is for ZeRO stage 3 or more"),
        ({"scheduler": {"type": "WarmupLR"}}, {}, "take 'scheduler' out"),
        ([], {}, "expected a JSON object"),
    ],
)
def test_a_file_that_contradicts_the_script_is_named(tmp_path, monkeypatch, file, changes, message):
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False)  # some processors support it
    path = write(tmp_path, file)
    with pytest.raises(ValueError, match=path) as error:
        training_config(arguments(deepspeed_config=path, **changes), 2)
    assert message in str(error.value)


@pytest.mark.parametrize(("offload", "stage", "least"), [("offload_optimizer", 0, 1), ("offload_param", 2, 3)])
def test_an_offload_that_the_stage_does_not_have_is_refused(offload, stage, least):
    training_config(arguments(zero_stage=least, **{offload: True}), 2)
    with pytest.raises(ValueError, match=f"{offload} is for ZeRO stage {least} or more, not {stage}"):
        training_config(arguments(zero_stage=stage, **{offload: True}), 2)


def test_stages_that_are_for_training_are_refused_to_the_reference(tmp_path):
    path = write(tmp_path, {"zero_optimization": {"stage": 2}})
    with pytest.raises(ValueError, match="the reference isn't trained, so its ZeRO stage is 0 or 3"):
        evaluation_config(path, training_config(arguments(), 1), "the reference")


def test_a_missing_installation_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    for name in [name for name in sys.modules if name.startswith("dailydialog_gym.distributed")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ModuleNotFoundError, match=r'deepspeed is not installed: pip install "dailydialog-gym\[deepspeed\]"'
    ):
        runpy.run_path(str(SCRIPT), run_name="__main__")


# Real launches


class Jobs:
    """Launches of the `deepspeed` command in a folder; the ranks run a script with flags."""

    def __init__(self, folder, server):
        self.folder, self.server = folder, server

    def command(self, *options, program):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        deepspeed = str(Path(sys.executable).with_name("deepspeed"))
        return [deepspeed, *options, "--master_port", str(port), *map(str, program)]

    @property
    def environment(self):
        # A killed build leaves a lock file in this folder, and the next build would wait for it forever
        environment = {"TORCH_EXTENSIONS_DIR": str(self.folder / "extensions"), "PYTHONPATH": str(ROOT)}
        # DeepSpeed imports torch's whole compiler for an optimizer that is not used here
        return environment | {"TORCHDYNAMO_DISABLE": "1"}

    def real(self, processes, *program):
        """Run the command. Returns: its exit code and output."""
        process = subprocess.Popen(
            self.command("--num_gpus", str(processes), program=program),
            cwd=self.folder,
            env=os.environ | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output = process.communicate(timeout=600)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the ranks too
            raise
        return process.returncode, output

    def forked(self, processes, *program):
        """Run the command in forks of the server. Returns: its exit code and output."""
        self.server.start(self.folder, *self.command("--num_gpus", str(processes), program=program), **self.environment)
        return self.server.wait(), (self.folder / "log.txt").read_text(encoding="utf-8")

    def write(self, processes, jobs):
        """Write the jobs, with the settings that most of them share, to a file. Returns: the driver and the file."""
        jobs = {
            name: {"script": str(SCRIPT), "same_draws": True, "out": str(self.out(name, processes))} | job
            for name, job in jobs.items()
        }
        for name, job in jobs.items():
            if "copy" in job:
                job["copy"] = [job["copy"], f"runs/{name}-{processes}"]
                job["flags"] = ["--resume", job["copy"][1]]
            else:
                job["flags"] = [*map(str, job["flags"]), "--run-name", f"{name}-{processes}"]
        path = self.folder / f"{next(iter(jobs))}-{processes}.json"
        path.write_text(json.dumps([*jobs.values()]), encoding="utf-8")
        return Path(__file__).with_name("deepspeed_driver.py"), path

    def out(self, name, processes):
        return self.folder / f"{name}-{processes}.pt"

    def outcomes(self, processes, jobs, run):
        """Run the jobs in one launch. Returns: the outcome of each job by its name, and the output of the launch."""
        code, output = run(processes, *self.write(processes, jobs))
        assert (code != 0) == any("fault" in job for job in jobs.values()), output[-10_000:]
        outs = {name: self.out(name, processes) for name in jobs}
        return {
            "output": output,
            **{name: torch.load(out, weights_only=False) for name, out in outs.items() if out.exists()},
        }


def words(flags):
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def flags(tiny_models, tiny_intent_model, tiny_reward_model):
    models = {"model": tiny_models["gpt2"], "intent-model": tiny_intent_model, "reward-model": tiny_reward_model}
    return FLAGS | models


@pytest.fixture(scope="module")
def jobs(tiny_models, tmp_path_factory):
    """Launches in a folder that holds the files which the flags name."""
    folder = tmp_path_factory.mktemp("deepspeed")
    for name, config in {
        "three": {"zero_optimization": PARTITIONED},
        "evaluation": {"zero_optimization": {**PARTITIONED, "offload_param": {"device": "cpu"}}},
        "tutorial": TUTORIAL_EVAL,
        "offload": {"zero_optimization": PARTITIONED | OFFLOAD},
        "untested": {"optimizer": {"type": "SGD", "params": {"lr": 0.1}}},
        "fp16": {"fp16": {"enabled": True, "initial_scale_power": 21, "hysteresis": 1}},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "spoilt.py").write_text(SPOILT, encoding="utf-8")
    (folder / "faulty.py").write_text(FAULTY, encoding="utf-8")
    (folder / "hosts").write_text("machine-1 slots=1\nmachine-2 slots=1\n", encoding="utf-8")
    server = Server(SCRIPT, tiny_models["gpt2"])
    yield Jobs(folder, server)
    server.close()


@pytest.fixture(scope="module")
def one(flags, jobs):
    """Outcomes of runs with one rank."""
    own_draws = {"flags": words(flags | {"num-minibatches": 2}), "same_draws": False}
    runs = {
        "stage0": {"flags": [*words(flags), "--zero-stage", "0"]},
        "stage2": {"flags": words(flags)},
        "drawn": own_draws | {"flags": [*own_draws["flags"], "--zero-stage", "0"]},
        "plain": own_draws | {"script": str(PLAIN)},
    }
    return jobs.outcomes(1, runs, jobs.forked)


@pytest.fixture(scope="module")
def killed(flags, jobs):
    """The output and the seconds of runs in which `kill -9` ends a rank, by the place where it does."""
    outputs = {}
    for where in ("rollout", "save"):
        start = time.monotonic()
        kill = {f"kill-{where}": {"flags": words(flags), "fault": f"kill {where}"}}
        outputs[where] = jobs.outcomes(2, kill, jobs.forked)["output"], time.monotonic() - start
    return outputs


@pytest.fixture(scope="module")
def two(flags, tiny_models, tiny_intent_model, jobs, one, killed):
    """Outcomes of runs with two ranks."""
    judges = ("ref", "intent", "reward")
    evaluation = [word for name in judges for word in (f"--{name}-deepspeed-config", "evaluation.json")]
    three = ["--deepspeed-config", "three.json", *evaluation]
    short = flags | {"total-episodes": 8, "checkpoint-every": 10}
    runs = {f"stage{stage}": {"flags": [*words(flags), "--zero-stage", stage]} for stage in (0, 2)}
    runs["stage1"] = {"flags": [*words(short), "--zero-stage", "1"]}
    runs["stage3"] = {"flags": [*words(flags), *three]}
    runs["resumed2"] = {"copy": "runs/stage2-2-half"}
    runs["resumed3"] = {"copy": "runs/stage3-2-half"}
    runs["grown"] = {"copy": "runs/stage2-1-half"}
    runs |= {f"survived-{where}": {"copy": f"runs/kill-{where}-2"} for where in killed}
    tutorial = ["--ref-deepspeed-config", "tutorial.json", "--intent-deepspeed-config", "tutorial.json"]
    parts = ["--gradient-accumulation-steps", "2", "--offload-optimizer"]
    runs["parts"] = {"flags": [*words(short), *parts, *tutorial]}
    runs["offload"] = {"flags": [*words(short), "--deepspeed-config", "offload.json"]}
    runs["fp16"] = {"flags": [*words(flags), "--deepspeed-config", "fp16.json"], "fp16": True}
    local = {"intent-model": tiny_intent_model, "dataset": "builtin", "eval-samples": 4, "max-prompt-length": 24}
    gpt2 = local | {"model": tiny_models["gpt2"], "num-envs": 16, "total-episodes": 16}
    runs["openrl"] = {"flags": ["--config", ROOT / "configs/openrl.yaml", *words(gpt2)]}
    runs["opt"] = {"flags": ["--config", ROOT / "configs/opt-1.3b.yaml", *words(gpt2 | {"model": tiny_models["opt"]})]}
    runs["opt"]["flags"] += three
    spoilt = ["--policy-class", "spoilt:Policy", "--zero-stage", "0"]
    runs["spoilt"] = {"flags": [*words(short), *spoilt]}
    runs["few"] = {"flags": words(flags | {"num-envs": 1})}
    runs["untested"] = {"flags": [*words(flags), "--deepspeed-config", "untested.json"]}
    runs["stopped"] = {"flags": [*words(flags), "--checkpoint-every", "100"], "fault": "interrupt"}
    return jobs.outcomes(2, runs, jobs.real)


@pytest.fixture(scope="module")
def one_again(jobs, two):
    """Outcomes of runs with two ranks that are resumed on one."""
    runs = {"resumed2": {"copy": "runs/stopped-2"}, "resumed3": {"copy": "runs/stage3-2-half"}}
    return jobs.outcomes(1, runs, jobs.forked)


UNLIKE = {"charts/FPS", "time/rollout", "losses/explained_variance"}  # the last is averaged over ranks


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
    """Tokens, losses and rewards are equal over three iterations of four steps."""
    assert len(one["plain"]["rows"]) == 3
    assert_same_rows(one["drawn"]["rows"], one["plain"]["rows"], 1e-5)
    assert one["drawn"]["rows"][0]["losses/policy_loss"] != 0
    assert_same(one["drawn"]["policy"], one["plain"]["policy"], 1e-5)


def test_two_processes_are_one_with_twice_the_episodes(one, two):
    # Two epochs of the first iteration, policy and critic; later minibatches have other episodes
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
        assert_same(ours["policy"], expected["policy"], 1e-5)


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


def test_ranks_log_the_same_rollouts_at_every_stage_and_after_a_restart(two, jobs):
    def logged(run):
        path = jobs.folder / "runs" / run / "rollouts.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    expected = logged("stage0-2")
    assert [line["iteration"] for line in expected] == sorted([1, 2, 3] * 4)  # all groups of rank 0
    for run in ("stage2-2", "stage3-2", "resumed2-2", "resumed3-2"):
        for line, other in zip(logged(run), expected, strict=True):
            replies, others = line.pop("replies"), other["replies"]
            assert line == {key: value for key, value in other.items() if key != "replies"}
            for reply, like in zip(replies, others, strict=True):
                assert (reply["text"], reply["tokens"]) == (like["text"], like["tokens"])
                for name in reply.keys() - {"text", "tokens"}:
                    assert reply[name] == pytest.approx(like[name], abs=1e-3), (run, name)
                assert reply["ratio"] != pytest.approx(np.ones(len(reply["ratio"])), abs=1e-6)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_of_two_ranks_goes_on_with_one(one_again, two, stage):
    """The third iteration depends on the restored weights and optimizer moments."""
    assert_same_rows(one_again[f"resumed{stage}"]["rows"], two[f"stage{stage}"]["rows"], 1e-4)
    assert_same(one_again[f"resumed{stage}"]["policy"], two[f"stage{stage}"]["policy"], 1e-3)


def test_a_run_of_one_rank_goes_on_with_two(one, two):
    assert_same_rows(two["grown"]["rows"], one["stage2"]["rows"], 1e-4)
    assert_same(two["grown"]["policy"], one["stage2"]["policy"], 1e-3)


def test_what_deepspeed_makes_no_universal_checkpoint_of_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"no universal checkpoint of {tmp_path}.*use as many ranks as before"):
        _make_universal(tmp_path, tmp_path / "universal")


def test_a_minibatch_in_parts_with_moments_in_the_processor_s_memory_is_the_minibatch(two):
    """The replies have one length, so that each part has the same weight."""
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


def test_ctrl_c_saves_a_checkpoint_from_which_the_run_goes_on(one_again, two, jobs):
    """Two ranks stop in the second iteration; `test_a_run_of_two_ranks_goes_on_with_one` resumes the run."""
    assert two["stopped"]["error"] == str(128 + signal.SIGINT)
    (last,) = (jobs.folder / "runs/stopped-2/checkpoints").iterdir()
    assert last.name == "000002"
    assert [row["episodes"] for row in one_again["resumed2"]["rows"]] == [8, 16, 24]


@pytest.mark.parametrize("name", ["stage0", "stage1", "stage2", "stage3"])
def test_agents_of_all_stages_are_plain_folders(two, jobs, name):
    folder = jobs.folder / f"runs/{name}-2/agent"
    assert_same(AutoModelForCausalLM.from_pretrained(folder).state_dict(), two[name]["policy"], 0)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}


def test_only_rank_0_writes_and_talks(two, jobs):
    folder = jobs.folder / "runs/stage2-2"
    assert len((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert len([*folder.glob("events.*")]) == 1
    assert two["output"].count("runs/stage2-2/agent\n") == 1
    assert ", 0 parameters" not in two["output"]  # the policy's, where rank 0 has only a partition of it


def test_the_policy_s_weights_are_gathered_once_for_a_rollout(two):
    """A rollout has no all-gather between its first and its last token; the update has one for each layer."""
    counts = np.array(two["stage3"]["gathers"]).reshape(3, -1)
    assert counts.shape[1] > 1
    assert (counts == counts[:, :1]).all()
    assert (np.diff(counts[:, 0]) > 50).all()


def test_float16_trains_and_lowers_its_loss_scale(two):
    """The first steps overflow at a loss scale of 2^21 and are skipped, which doesn't end the run."""
    rows = two["fp16"]["rows"]
    assert rows[0]["losses/skipped_steps"] > 0
    assert rows[-1]["losses/skipped_steps"] == 0
    assert 0 < rows[-1]["losses/approx_kl"] < 1
    assert all(tensor.isfinite().all() for tensor in two["fp16"]["policy"].values())


@pytest.mark.parametrize("preset", ["openrl", "opt"])
def test_presets_train_in_bfloat16(two, jobs, preset):
    """The presets with smaller sizes, and with tiny models and the builtin dialogues instead of those of the hub."""
    (row,) = two[preset]["rows"]
    assert all(np.isfinite(value) for value in row.values())
    assert bool(two[preset]["partitioned"]) == (preset == "opt")
    config = json.loads((jobs.folder / f"runs/{preset}-2/config.json").read_text(encoding="utf-8"))
    assert (config["use_amp"], config["critic"]) == (True, "shared" if preset == "opt" else "separate")
    assert isinstance(DialogueAgent.load(str(jobs.folder / f"runs/{preset}-2/agent")).chat("Hello ."), str)


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("few", ["num_envs (1) / ranks (2) / replies_per_prompt (1) contexts"]),
        ("untested", ["DeepSpeed refuses its configuration", "You are using an untested ZeRO Optimizer"]),
    ],
    ids=["fewer episodes than ranks", "an optimizer that the stage cannot take"],
)
def test_what_only_ranks_can_find_wrong_is_refused(two, name, messages):
    assert all(message in two[name]["error"] for message in messages)


def test_two_machines_of_one_rank_each_are_one_of_two(flags, jobs, two):
    options = ["--hostfile", "hosts", "--no_ssh", "--master_addr", "127.0.0.1"]
    machine = {"machine": {"flags": words(flags | {"total-episodes": 8})}}
    command = jobs.command(*options, "--node_rank", "0", program=jobs.write(2, machine))
    pids = []
    for rank in "01":
        command[command.index("--node_rank") + 1] = rank
        pids.append(jobs.server.start(jobs.folder, *command, log=f"machine{rank}.txt", **jobs.environment))
    assert [jobs.server.wait(pid) for pid in pids] == [0, 0], (jobs.folder / "machine0.txt").read_text(encoding="utf-8")
    assert_same_rows(torch.load(jobs.out("machine", 2))["rows"], two["stage2"]["rows"][:1], 1e-6)


def test_a_mistake_that_all_ranks_find_is_reported_once(flags, jobs):
    code, output = jobs.forked(2, SCRIPT, *words(flags | {"dataset": "no-such-data"}))
    assert code != 0
    assert output.count("error: no such file or folder: 'no-such-data'") == 1
    assert "Traceback" not in output


def test_a_rank_that_fails_ends_the_job_with_its_own_error(flags, jobs):
    start = time.monotonic()
    rewards = ["--reward", "faulty:dying=1"]
    code, output = jobs.forked(2, SCRIPT, *words(flags), "--run-name", "faulty", *rewards)
    assert time.monotonic() - start < 60
    assert code != 0
    assert "RuntimeError: a fault of rank 1" in output
    first, last = sorted((jobs.folder / "runs/faulty/checkpoints").iterdir())
    assert (first.name, last.name) == ("000001", "000002")
    assert isinstance(DialogueAgent.load(str(last / "agent")).chat("Hello ."), str)


@pytest.mark.parametrize("where", ["rollout", "save"])
def test_a_rank_that_is_killed_ends_the_job_from_whose_checkpoint_the_run_goes_on(killed, two, where):
    output, seconds = killed[where]
    assert seconds < 60
    # Either the killed rank's exit code or the other rank's connection error, whichever the launcher sees first
    assert re.search(f"return code = {-signal.SIGKILL}|closed by peer|reset by peer", output, re.IGNORECASE)
    assert_same_rows(two[f"survived-{where}"]["rows"], two["stage2"]["rows"], 1e-6)
    assert_same(two[f"survived-{where}"]["policy"], two["stage2"]["policy"], 1e-6)


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
    if os.environ["RANK"] == "1" and len(calls) == 4:  # the first is a trial
        raise RuntimeError("a fault of rank 1")
    return np.zeros(len(episodes))
"""
