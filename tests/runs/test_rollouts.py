"""What a run writes to rollouts.jsonl: against the script's own numbers."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dailydialog_gym.runs.run as run_module
import ppo_dialog
from dailydialog_gym.runs.rollouts import action_ratios, describe_rollouts, forget_after
from dailydialog_gym.runs.run import Run


@pytest.fixture(params=[0, 5], ids=["all tokens", "top-k"])
def trained(request, tiny_model):
    """An agent, and a batch of random replies with the log-probabilities of their actions under another agent."""
    torch.manual_seed(0)
    args = SimpleNamespace(model=tiny_model, critic="shared", critic_class=None, max_prompt_length=6, max_new_tokens=4)
    args.policy_class, args.top_k, args.replies_per_prompt = "transformers:AutoModelForCausalLM", request.param, 2
    agent = ppo_dialog.Agent(args, 50)
    ids = np.random.default_rng(0).integers(1, 50, (4, 10))
    ids[1::2, :6] = ids[::2, :6]
    mask = np.ones_like(ids)
    mask[[0, 3], -1] = 0
    reply_mask = torch.from_numpy(mask[:, 6:]).float()
    actions = torch.from_numpy(ids[:, 6:])
    candidates = None
    if args.top_k:
        candidates = torch.stack([actions, *[(actions + shift) % 50 for shift in range(1, 5)]], -1)
        actions = torch.zeros_like(actions)
    numbers = {name: np.random.default_rng(1).normal(size=(4, 4)) for name in ("log_probs", "ref_log_probs")}
    numbers["token_rewards/meteor"] = numbers["log_probs"] + 1
    infos = {"prompt": np.array(["Hi . <EOU>"] * 4, object), "reference": np.array(["Yes ."] * 4, object), **numbers}
    infos["response"] = np.array([f"Reply {row}" for row in range(4)], object)
    some = torch.rand(3, 4, 4)
    batch = ppo_dialog.Batch(
        ids, mask, reply_mask, actions, candidates, -some[0], some[1], some[2], infos, some[2], some[1], some[0]
    )
    return agent, batch, args


def test_the_ratios_are_those_of_the_loss(trained):
    agent, batch, args = trained
    rows = np.arange(4)
    ratios = action_ratios(agent, batch, rows, 2, nullcontext())
    args.clip_coef, args.ent_coef, args.vf_coef = 1e9, 0.0, 0.0
    packed = ppo_dialog.pack(batch.input_ids, batch.attention_mask, 6, rows // 2, "cpu", rows)
    *_, stats = ppo_dialog.ppo_loss(agent, batch, packed, args, nullcontext())
    there = batch.reply_mask.bool().numpy()
    assert (ratios[~there] == 0).all()
    r = ratios[there]
    np.testing.assert_allclose(stats["approx_kl"], (r - 1 - np.log(r)).mean(), rtol=1e-4)
    expected = -(batch.advantages.numpy()[there] * r).mean()
    np.testing.assert_allclose(stats["policy_loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(action_ratios(agent, batch, rows[2:], 2, nullcontext()), ratios[2:], rtol=1e-4)


class OfNumbers:
    backend = SimpleNamespace(decode_batch=lambda ids, skip_special_tokens: [f"t{i}" for (i,) in ids])


def test_a_line_has_the_replies_to_a_context_with_their_numbers(trained):
    _, batch, _ = trained
    lines = describe_rollouts(7, batch, np.arange(4), 2, np.full((4, 4), 1.5), OfNumbers)
    assert [line["iteration"] for line in lines] == [7, 7] and lines[0]["context"] == ["Hi ."]
    reply = lines[1]["replies"][1]  # row 3, of three tokens
    assert reply["text"] == "Reply 3" and reply["tokens"] == [f"t{i}" for i in batch.input_ids[3, 6:9]]
    expected = {
        "log_prob": batch.infos["log_probs"],
        "ref_log_prob": batch.infos["ref_log_probs"],
        "reward/meteor": batch.infos["token_rewards/meteor"],
        "value": batch.values.numpy() + batch.baselines.numpy(),
        "advantage": batch.advantages.numpy(),
        "ratio": np.full((4, 4), 1.5),
    }
    assert reply.keys() == {"text", "tokens", *expected}
    for name, values in expected.items():
        np.testing.assert_allclose(reply[name], values[3, :3], atol=1e-4, err_msg=name)


def test_the_file_is_capped_and_forgets_what_a_killed_run_wrote_after_its_checkpoint(trained, tmp_path, monkeypatch):
    agent, batch, _ = trained
    run = Run.__new__(Run)
    run.folder, run.is_main, run.args = tmp_path, True, SimpleNamespace(log_rollouts=3, replies_per_prompt=2)
    path = tmp_path / "rollouts.jsonl"
    for iteration in (1, 2):
        run.log_rollouts(iteration, agent, batch, OfNumbers, nullcontext())
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["iteration"] for line in lines] == [1, 1, 2, 2]  # two groups, because one has fewer than 3 replies
    monkeypatch.setattr(run_module, "MAX_BYTES", 100)
    run.log_rollouts(3, agent, batch, OfNumbers, nullcontext())
    run.args.log_rollouts = 0
    monkeypatch.undo()
    run.log_rollouts(4, agent, batch, OfNumbers, nullcontext())
    assert len(path.read_text(encoding="utf-8").splitlines()) == 4
    with path.open("a", encoding="utf-8") as file:
        file.write('{"iteration": 1, "con')
    with open(path, "ab") as file:
        file.write(b"\0\0\n[]\n\xff\n" + b'{"iteration": 1, "half')  # as after a power cut
    forget_after(path, 1)
    assert [json.loads(line)["iteration"] for line in path.read_text(encoding="utf-8").splitlines()] == [1, 1]
    forget_after(tmp_path / "none.jsonl", 1)  # a run that logged none
    assert not (tmp_path / "none.jsonl").exists()
