"""The script: what its networks compute, and real runs of it."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from equality import assert_same
from paths import ROOT
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.rewards import AdaptiveCoefficient, FixedCoefficient, IntentMatch, ZieglerCoefficient
from dailydialog_gym.rewards.penalty import KLTracker

SCRIPT = ROOT / "ppo_dialog.py"


@pytest.fixture
def run(tiny_intent_model, tmp_path, monkeypatch, no_curves):
    """Runs the script with some flags in an empty folder, in this process: torch need not be imported again."""
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        usual = () if "--resume" in flags else ("--run-name", "test", "--intent-model", tiny_intent_model)
        monkeypatch.setattr(sys, "argv", ["ppo_dialog.py", *usual, *flags])
        script = runpy.run_path(str(SCRIPT), run_name="__main__")
        rows = (script["run"].folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(row) for row in rows]

    return run


SMALL = (
    "--num-envs",
    "8",
    "--total-episodes",
    "16",
    "--num-minibatches",
    "2",
    "--eval-samples",
    "8",
    "--replies-per-prompt",
    "4",
)


@pytest.mark.parametrize(
    ("architecture", "critic", "flags"),
    [
        ("gpt2", "separate", ()),
        ("gpt2", "shared", ()),
        ("opt", "separate", ()),
        ("llama", "shared", ()),
        ("gpt2", "shared", ("--cuda-graphs",)),
    ],
)
def test_without_learning_the_ratio_is_one_and_the_divergence_zero(
    run, tiny_models, architecture, critic, flags, fake_graphs
):
    """The cached rollout, the update and the reference agree on every token's log-probability."""
    still = ("--learning-rate", "0", "--critic-learning-rate", "0", "--critic", critic, *flags)
    rows = run("--model", tiny_models[architecture], *SMALL, *still)
    assert len(rows) == 2
    for row in rows:
        assert row["losses/approx_kl"] < 1e-9  # k3 is quadratic in log(ratio): this is 1e-5 on the ratio
        assert row["losses/clipfrac"] == 0
        assert abs(row["reward/kl"]) < 1e-4


DRAWN = (
    "from dailydialog_gym.reports.curves import plot_curves; import dailydialog_gym.runs.run as run\n"
    "run.plot_curves = plot_curves"
)


def test_a_run_leaves_an_agent_that_plain_transformers_loads(server, tiny_model, tmp_path):
    server.start(tmp_path, SCRIPT, "--run-name", "test", "--model", tiny_model, *SMALL, before=DRAWN)
    code, output = server.wait(), (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert code == 0, output
    folder = tmp_path / "runs/test"
    agent = AutoModelForCausalLM.from_pretrained(folder / "agent")
    start = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert any((a != b).any() for a, b in zip(agent.parameters(), start.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(folder / "agent")("I see . <EOU>")["input_ids"][-1] == 0
    assert {path.suffix for path in (folder / "agent").iterdir()} == {".json", ".safetensors"}

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["episodes"] for row in rows] == [8, 16]
    events = EventAccumulator(str(folder)).Reload()
    for key in ("charts/FPS", "reward/meteor", "reward/kl", "metric/kl_coef", "losses/policy_loss"):
        assert events.Scalars(key)[-1].value == pytest.approx(rows[-1][key], rel=1e-5)
    scores = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert re.search(rf"\| before +\| {scores['before']['rouge1']:.4f}", output)
    for name in ("config.json", "samples.md", "curves.png"):
        assert (folder / name).stat().st_size > 0


def test_runs_reproduce(run, tiny_model):
    def untimed(rows):
        return [
            {key: value for key, value in row.items() if not key.startswith(("charts/FPS", "time/"))} for row in rows
        ]

    first = run("--model", tiny_model, *SMALL)
    second = run("--model", tiny_model, *SMALL, "--run-name", "test2")
    assert untimed(first) == untimed(second)


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (("--kl-rule", "openrl"), AdaptiveCoefficient(0.02, 0.1)),
        (("--kl-rule", "openrl", "--kl-target", "0.01"), AdaptiveCoefficient(0.02, 0.01)),
        (("--kl-rule", "ziegler"), ZieglerCoefficient(0.02, 6.0)),
        (("--kl-rule", "fixed"), FixedCoefficient(0.02)),
    ],
)
def test_the_kl_coefficient_adapts_as_the_package_s_does(run, tiny_model, monkeypatch, flags, rule):
    """The rules stand in the script's loop, where they can be read, and in `rewards.coefficients`, for wrappers."""
    expected, add_penalty = [], KLTracker.add_penalty

    def watched(tracker, rows, episodes, rewards, info):
        rewards, new_info = add_penalty(tracker, rows, episodes, rewards, info)
        expected.append(rule.value)
        rule.update(new_info["reward/kl"], episodes.reply_mask.sum(1), episodes_per_update=len(rows))
        return rewards, new_info

    monkeypatch.setattr(KLTracker, "add_penalty", watched)
    rows = run("--model", tiny_model, *SMALL, "--total-episodes", "32", "--learning-rate", "1e-2", *flags)
    assert [row["metric/kl_coef"] for row in rows] == pytest.approx(expected, rel=1e-9)
    assert (len(set(expected)) == 4) == ("fixed" not in flags)
    target = None if "fixed" in flags else rule.target
    assert json.loads(Path("runs/test/config.json").read_text(encoding="utf-8"))["kl_target"] == target


@pytest.mark.parametrize("raw", [False, True])
def test_a_reward_model_is_logged_raw_and_rewards_standardized_unless_asked_not_to(
    run, tiny_model, tiny_reward_model, raw
):
    others = ("--meteor-weight", "0", "--intent-weight", "0", "--kl-coef", "0")
    flags = ("--reward-model", f"{tiny_reward_model}=0.5", *(("--reward-model-raw",) if raw else ()))
    first = run("--model", tiny_model, *SMALL, *others, *flags)[0]
    assert first["reward/judge"] != pytest.approx(0, abs=1e-4)
    # Without the flag, the mean of a batch that is standardized by its own moments
    expected = 0.5 * first["reward/judge"] if raw else 0.0
    assert first["charts/episodic_return"] == pytest.approx(expected, abs=1e-6)


def test_several_reward_models_all_give_rewards(run, tiny_model, tiny_reward_model, tiny_intent_model):
    models = (tiny_reward_model, f"{tiny_intent_model}:question=0.5")
    rows = run("--model", tiny_model, *SMALL, *(word for model in models for word in ("--reward-model", model)))
    assert {"reward/judge", f"reward/{Path(tiny_intent_model).name}-question"} <= rows[0].keys()


@pytest.mark.parametrize("off", [False, True])
def test_flags_that_are_on_unless_they_are_switched_off(run, tiny_model, tiny_intent_model, monkeypatch, off):
    judges = []

    def make_judge(*args, **options):
        judges.append(IntentMatch(*args, **options))
        return judges[0]

    monkeypatch.setattr("dailydialog_gym.rewards.IntentMatch", make_judge)
    rates = ("--learning-rate", "1e-4", "--critic-learning-rate", "1e-3", "--total-episodes", "32")
    acts = ("question", "inform", "directive", "commissive")
    judge = ("--intent-model", tiny_intent_model, "--intent-labels", *acts)
    switched = ("--no-anneal-lr", "--no-meteor-by-token", "--no-intent-probability") if off else ()
    rows = run("--model", tiny_model, *SMALL, *rates, *judge, *switched)

    shares = [1.0, 1.0, 1.0, 1.0] if off else [1.0, 0.75, 0.5, 0.25]
    assert [row["charts/learning_rate"] for row in rows] == pytest.approx([1e-4 * share for share in shares])
    last = torch.load("runs/test/checkpoints/000004/state.pt", weights_only=True)["parts"]["optimizer"]
    assert [group["lr"] for group in last["param_groups"]] == pytest.approx([1e-4 * shares[-1], 1e-3 * shares[-1]])

    assert judges[0].acts.tolist() == [2, 1, 3, 4]
    lines = Path("runs/test/rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    replies = [reply for line in lines for reply in json.loads(line)["replies"]]
    rewarded = {name: [np.flatnonzero(reply[f"reward/{name}"]) for reply in replies] for name in ("meteor", "intent")}
    ends = [len(reply["tokens"]) - 1 for reply in replies]
    assert any(map(len, rewarded["meteor"]))
    assert all(set(found) <= {end} for found, end in zip(rewarded["meteor"], ends, strict=True)) == off
    assert all(set(found) <= {end} for found, end in zip(rewarded["intent"], ends, strict=True))
    assert ({reply["reward/intent"][-1] for reply in replies} <= {0.0, 0.3}) == off


ALGORITHMS = {
    "PPO": ("--critic", "shared"),
    "PPO with a separate critic": ("--critic", "separate"),
    "RLOO": ("--critic", "none"),
    "GRPO": ("--critic", "none", "--normalize-groups"),
    "PPO in mixed precision": ("--critic", "shared", "--use-amp"),
    "PPO in little memory": ("--critic", "shared", "--low-memory", "--use-amp"),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_raises_a_bandit_reward(run, tiny_model, algorithm, tmp_path, monkeypatch):
    """A reward of 1 for each token with an even number, which half of a random model's tokens have."""
    (tmp_path / "evens.py").write_text(
        "def even(episodes):\n    return ((episodes.reply_ids % 2 == 0) & episodes.reply_mask).astype(float)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    reward = ("--reward", "evens:even=1", "--meteor-weight", "0", "--intent-weight", "0", "--kl-coef", "0")
    sizes = ("--num-envs", "32", "--total-episodes", "192", "--max-prompt-length", "32", "--max-new-tokens", "16")
    learning = ("--kl-rule", "fixed", "--learning-rate", "1e-2", "--eval-samples", "2")
    rows = run("--model", tiny_model, *reward, *sizes, *learning, *ALGORITHMS[algorithm])
    assert rows[0]["charts/episodic_return"] < 10 and rows[-1]["charts/episodic_return"] > 13


@pytest.mark.parametrize("critic", ["shared", "separate", "none"])
def test_a_policy_that_forbids_tokens_trains_with_an_entropy_bonus(critic, tiny_model, run, tmp_path, monkeypatch):
    """The gradient of p log p is finite where p is 0, and no value is computed from a logit of -inf."""
    (tmp_path / "forbids.py").write_text(
        "import torch\nfrom transformers import GPT2LMHeadModel\n\n\n"
        "class Policy(GPT2LMHeadModel):\n"
        "    def forward(self, *args, **kwargs):\n"
        "        output = super().forward(*args, **kwargs)\n"
        "        forbidden = torch.arange(output.logits.shape[-1]) % 3 == 0\n"
        "        output.logits = output.logits.masked_fill(forbidden, -torch.inf)\n"
        "        return output\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    flags = ("--policy-class", "forbids:Policy", "--ent-coef", "0.01", "--top-k", "0", "--critic", critic)
    for row in run("--model", tiny_model, *SMALL, *flags):
        assert row["losses/skipped_steps"] == 0 and row["losses/entropy"] > 1
        assert np.isfinite(row["losses/value_loss"]) and np.isfinite(row["losses/policy_loss"])


def test_in_little_memory_it_trains(run, tiny_model, tmp_path):
    flags = ("--model", tiny_model, *SMALL, "--low-memory", "--use-amp", "--learning-rate", "1e-6")
    assert run(*flags)[0]["losses/approx_kl"] == pytest.approx(0, abs=1e-3)
    weights = load_file(tmp_path / "runs/test/agent/model.safetensors")
    before = load_file(Path(tiny_model) / "model.safetensors")
    assert all(tensor.dtype == torch.bfloat16 for tensor in weights.values())
    # Steps far smaller than the distance of two bfloat16 numbers: some weights move by that, and most don't
    moved = torch.cat([(weights[name] != before[name].bfloat16()).flatten() for name in weights])
    assert 0 < moved.float().mean() < 0.2


def test_in_little_memory_a_resumed_run_ends_as_the_uninterrupted_one(run, tiny_model, tmp_path):
    """Bit for bit: weights, 8-bit moments and random states, which also round the weights. The agent loads."""
    flags = ("--model", tiny_model, *SMALL, "--low-memory", "--use-amp", "--checkpoint-every", "1")
    run(*flags)
    folder, whole = tmp_path / "runs/test", tmp_path / "runs/whole"
    shutil.copytree(folder, whole)
    shutil.rmtree(folder / "checkpoints/000002")
    shutil.rmtree(folder / "agent")
    run("--resume", str(folder))

    first, second = (torch.load(path / "checkpoints/000002/state.pt", weights_only=True) for path in (folder, whole))
    for checkpoint in (first, second):
        for row in checkpoint["progress"]["history"]:
            del row["charts/FPS"], row["time/rollout"]
    assert repr(first["progress"]["history"]) == repr(second["progress"]["history"])  # NaN is not equal to NaN
    assert_same(first["parts"], second["parts"])
    moments = [each["moments"] for each in first["parts"]["optimizer"]["state"].values()]
    assert moments and all(each.dtype == torch.uint8 for each in moments)
    agents = [(path / "agent/model.safetensors").read_bytes() for path in (folder, whole)]
    assert agents[0] == agents[1]
    assert isinstance(DialogueAgent.load(str(folder), max_new_tokens=2).chat("Hello ."), str)


def test_cuda_graphs_are_refused_without_a_gpu(run):
    with pytest.raises(ValueError, match=r"--cuda-graphs needs a CUDA GPU, and PyTorch finds none here \(cpu\)"):
        run("--cuda-graphs", *SMALL)


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a processor needs a C++ compiler")
@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_a_compiled_run_is_the_run(run, tiny_model, critic):
    flags = ("--model", tiny_model, *SMALL, "--critic", critic)
    plain, compiled = run(*flags), run(*flags, "--compile", "--run-name", "compiled")
    for ours, expected in zip(compiled, plain, strict=True):
        for key in ("losses/policy_loss", "losses/value_loss", "losses/entropy", "reward/kl", "charts/episodic_return"):
            assert ours[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataset", "nothing.jsonl"), "no such file or folder: 'nothing.jsonl'"),
        (("--eval-split", "tset"), "unknown split 'tset'"),
        (("--num-minibatches", "9", "--num-envs", "8"), "num_minibatches * gradient_accumulation_steps (9 * 1)"),
        (("--gradient-accumulation-steps", "0"), "--gradient-accumulation-steps 0: expected a number of at least 1"),
        (("--num-envs", "8", "--replies-per-prompt", "3"), "num_envs (8) / replies_per_prompt (3) contexts: a whole"),
        (("--replies-per-prompt", "0"), "--replies-per-prompt 0: expected a number of at least 1"),
        (("--total-episodes", "3"), "expected total_episodes (3) to be at least num_envs"),
        (("--max-prompt-length", "300"), "reads 256 tokens, but max_prompt_length 300 + max_new_tokens 20 = 320"),
        (("--model", "{weightless}"), "a folder with config.json and model.safetensors"),
        (("--intent-model", "{weightless}"), "cannot load intent classifier"),
        (("--top-k", "5000"), "--top-k 5000: expected at most 4096"),
        (("--critic", "none", "--replies-per-prompt", "1"), "need --replies-per-prompt 2 or more"),
        (("--normalize-groups", "--replies-per-prompt", "1"), "need --replies-per-prompt 2 or more"),
        (("--reward", "brevity=1"), "--reward 'brevity': expected module:name"),
    ],
)
def test_bad_flags_are_named_before_anything_is_written(run, tiny_model, tmp_path, flags, message):
    weightless = tmp_path / "weightless"
    shutil.copytree(tiny_model, weightless, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises((ValueError, SystemExit), match=re.escape(message)):
        run(*(flag.format(weightless=weightless) for flag in flags))
    assert not (tmp_path / "runs").exists()


def test_a_run_is_never_overwritten(run, tiny_model, tmp_path):
    (tmp_path / "runs/test").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="choose another --run-name"):
        run("--model", tiny_model, *SMALL)
