"""What README shows works as it stands there, and what it lists is what there is."""

import json
import re
import runpy
import sys

import numpy as np
import pytest
from paths import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

README = (ROOT / "README.md").read_text()


def test_python_blocks_run_one_after_the_other():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    names = {}
    for block in blocks:
        exec(block.replace("runs/NAME/agent", "builtin"), names)
    assert names["info"]["response"] is not None
    envs = names["QuestionShare"](names["envs"])
    envs.reset(seed=0)
    done = False
    while not done:
        *_, terminated, truncated, infos = envs.step(np.full(64, envs.single_action_space.n - 1))
        done = (terminated | truncated).all()
    assert infos["reward/brevity"].shape == infos["metric/question_share"].shape == (64,)


def test_a_reward_and_a_metric_of_the_users_own_are_logged(tiny_model, tmp_path, monkeypatch):
    """README's scorer through --reward, and a key that a scorer's module adds, in metrics.jsonl and TensorBoard."""
    block = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "def brevity" in block)
    (tmp_path / "my_rewards.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    flags = ["--model", tiny_model, "--num-envs=4", "--replies-per-prompt=1", "--total-episodes=8", "--eval-samples=4"]
    rewards = ["--reward", "my_rewards:brevity=0.2", "--reward", "dailydialog_gym.rewards:Meteor=0.1"]
    monkeypatch.setattr(sys, "argv", ["ppo_dialog.py", *flags, *rewards])
    script = runpy.run_path(str(ROOT / "ppo_dialog.py"), run_name="__main__")
    rows = [json.loads(row) for row in (script["run"].folder / "metrics.jsonl").read_text().splitlines()]
    infos = script["batch"].infos
    assert rows[-1]["reward/brevity"] == pytest.approx(infos["reward/brevity"].mean())
    assert rows[-1]["reward/Meteor"] == pytest.approx(rows[-1]["reward/meteor"])
    paid = (
        0.6 * infos["reward/meteor"]
        + script["args"].intent_weight * infos["reward/intent"]
        + 0.2 * infos["reward/brevity"]
    )
    paid -= infos["metric/kl_coef"] * infos["reward/kl"]
    np.testing.assert_allclose(infos["token_rewards"].sum(1), paid, atol=1e-9)
    events = EventAccumulator(str(script["run"].folder)).Reload()
    assert [event.step for event in events.Scalars("reward/brevity")] == [4, 8]
    assert events.Scalars("reward/brevity")[-1].value == pytest.approx(rows[-1]["reward/brevity"], rel=1e-6)


def test_every_logged_metric_is_defined_and_every_file_listed(tiny_model, tiny_intent_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--model", tiny_model, "--intent-model", tiny_intent_model]
    flags += ["--num-envs=4", "--replies-per-prompt=1", "--total-episodes=4", "--eval-samples=4"]
    monkeypatch.setattr(sys, "argv", ["ppo_dialog.py", *flags])
    run = runpy.run_path(str(ROOT / "ppo_dialog.py"), run_name="__main__")["run"]
    logged = set(json.loads((run.folder / "metrics.jsonl").read_text())) - {"episodes"}
    defined = set(re.findall(r"`((?:charts|time|reward|metric|losses)/\w+)`", README))
    assert logged == defined - {"reward/brevity", "metric/question_share"}
    rows = README.split("| file | what |")[1].split("\n\n")[0].splitlines()
    listed = {name for row in rows[2:] for name in re.findall(r"`(.*?)`", row.split("|")[1])}
    present = {path.name + "/" * path.is_dir() for path in run.folder.iterdir()}
    assert {re.sub(r"events\..*", "events.*", name) for name in present} == listed


def test_the_layout_has_the_two_commands_on_the_first_screen():
    first_screen = "\n".join(README.splitlines()[:24])
    assert '-e ".[train]" && python ppo_dialog.py' in first_screen
    assert "&& ruff check . && ruff format --check . && pytest" in first_screen
