"""Models that are not ours: architectures of transformers, and classes of the user's own."""

import json
import re
import runpy
import sys

import pytest
import torch
from code_blocks import write_files
from paths import ROOT
from transformers import AutoModelForCausalLM

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.evaluate import __main__ as evaluate
from dailydialog_gym.models.loading import load_model

YOUR_OWN = ROOT / "docs/your_own.md"


@pytest.fixture
def train(tmp_path, tiny_intent_model, monkeypatch, no_curves):
    """Runs the script with some flags in an empty folder; gives the run's folder."""
    monkeypatch.chdir(tmp_path)

    def train(*flags):
        small = (
            "--num-envs=4",
            "--replies-per-prompt=1",
            "--total-episodes=8",
            "--num-minibatches=2",
            "--eval-samples=4",
        )
        rewards = ("--intent-model", tiny_intent_model)
        monkeypatch.setattr(sys, "argv", ["ppo_dialog.py", "--run-name", "run", *small, *rewards, *flags])
        runpy.run_path(str(ROOT / "ppo_dialog.py"), run_name="__main__")
        return tmp_path / "runs/run"

    return train


def read_metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "llama"])
def test_any_causal_language_model_trains_and_talks(train, tiny_models, architecture):
    folder = train("--model", tiny_models[architecture], "--learning-rate", "1e-2", "--ent-coef", "0.1")
    start, end = load_model(tiny_models[architecture]), load_model(str(folder / "agent"))
    assert end.config.model_type == architecture
    assert all((a != b).any() for a, b in zip(start.parameters(), end.parameters(), strict=True) if a.dim() == 2)
    assert isinstance(DialogueAgent.load(str(folder / "agent"), max_new_tokens=3).chat("Hello!"), str)


@pytest.fixture
def my_models(tmp_path, monkeypatch):
    """The documentation's example as a module in the current folder."""
    write_files(YOUR_OWN, tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("my_models", None)


def test_the_documented_classes_train_and_are_evaluated(train, my_models, tiny_model, tiny_intent_model, capsys):
    commands = re.findall(
        r"(--policy-class \S+)(?: (--critic-class \S+ --critic separate))?", YOUR_OWN.read_text(encoding="utf-8")
    )
    (training,) = [" ".join(command) for command in commands if command[1]]
    folder = train("--model", tiny_model, *training.split(), "--learning-rate", "0", "--critic-learning-rate", "1e-2")
    my_models = sys.modules["my_models"]
    for row in read_metrics(folder):
        assert row["losses/approx_kl"] < 1e-9  # rollout, update and reference are of the same class
        assert abs(row["reward/kl"]) < 1e-4
    state = torch.load(folder / "checkpoints/000002/state.pt", weights_only=True)["parts"]["agent"]
    assert any(key.startswith("critic.body.mlp.") for key in state)

    policy = load_model(str(folder / "agent"), my_models.MyPolicy)
    ids = torch.tensor([[5, 6, 7]])
    plain = AutoModelForCausalLM.from_pretrained(folder / "agent")(ids).logits
    assert not torch.allclose(policy(ids).logits, plain)
    mine = {"agent": str(folder / "agent"), "policy_class": "my_models:MyPolicy", "intent_model": tiny_intent_model}
    evaluate.main(evaluate.Args(**mine, baseline=str(folder), samples=2))
    assert "METEOR" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--policy-class", "no_such_module:Policy"), "--policy-class 'no_such_module:Policy': expected module:name"),
        (
            ("--critic-class", "json:Critic", "--critic", "separate"),
            "--critic-class 'json:Critic': expected module:name",
        ),
        (("--critic-class", "json:loads"), "--critic-class is a critic of its own: add --critic separate"),
    ],
)
def test_bad_classes_are_named(train, tiny_model, flags, message):
    with pytest.raises((ValueError, SystemExit), match=message):
        train("--model", tiny_model, *flags)


NARROW = """
from transformers import GPT2Model

class Critic(GPT2Model):
    def forward(self, *args, **kwargs):
        return (super().forward(*args, **kwargs)[0][..., :12],)
"""


def test_a_critic_of_another_width_than_the_policy_trains(train, tiny_model, tmp_path, monkeypatch):
    (tmp_path / "narrow.py").write_text(NARROW, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    folder = train("--model", tiny_model, "--critic", "separate", "--critic-class", "narrow:Critic")
    state = torch.load(folder / "checkpoints/000002/state.pt", weights_only=True)["parts"]["agent"]
    assert state["critic.value_head.weight"].shape == (1, 12) and state["critic.value_head.weight"].any()


NAN = """
import torch
from transformers import GPT2LMHeadModel

steps = []

class Spoilt(torch.autograd.Function):
    forward = staticmethod(lambda context, x: x.clone())

    @staticmethod
    def backward(context, gradient):
        steps.append(len(steps) + 1)
        return gradient * float("nan") if BAD(steps[-1]) else gradient

class Policy(GPT2LMHeadModel):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = Spoilt.apply(outputs.logits)
        return outputs
"""


@pytest.fixture
def spoilt(tmp_path, monkeypatch):
    """A policy in the current folder whose gradient isn't finite in some of the steps, which are counted from 1."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def spoilt(bad: str):
        (tmp_path / "spoilt.py").write_text(NAN.replace("BAD", f"(lambda step: {bad})"), encoding="utf-8")
        return "--policy-class", "spoilt:Policy"

    yield spoilt
    sys.modules.pop("spoilt", None)


def test_a_step_with_a_gradient_that_is_not_finite_is_left_out_and_counted(train, tiny_model, spoilt):
    folder = train("--model", tiny_model, *spoilt("step in (2, 3, 5)"), "--update-epochs", "2")
    assert [row["losses/skipped_steps"] for row in read_metrics(folder)] == [2, 1]
    assert all(parameter.isfinite().all() for parameter in load_model(str(folder / "agent")).parameters())


def test_three_in_a_row_stop_the_run_and_name_the_last_checkpoint(train, tiny_model, spoilt, tmp_path):
    with pytest.raises(SystemExit) as error:
        train("--model", tiny_model, *spoilt("step > 3"), "--update-epochs", "2", "--checkpoint-every", "1")
    assert "not finite 3 times in a row" in str(error.value)
    assert "last good checkpoint is runs/run/checkpoints/000001" in str(error.value)
    (last,) = (tmp_path / "runs/run/checkpoints").iterdir()
    assert all(parameter.isfinite().all() for parameter in load_model(str(last / "agent")).parameters())
