"""The replies before and after training, side by side."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorWrapper

import dailydialog_gym  # noqa: F401
from dailydialog_gym.env.tokenizer import split_prompt
from dailydialog_gym.rewards import RewardModel
from dailydialog_gym.rewards.length import token_count
from dailydialog_gym.rewards.meteor import meteor
from dailydialog_gym.runs.samples import markdown_samples, rewards_of, side_by_side
from dailydialog_gym.wrappers.vector import KLPenalty, MeteorReward, ScoreReward


def evaluation(name, meteor):
    numbers = [i // 3 for i in range(30)]  # each of 10 contexts is answered three times
    return SimpleNamespace(
        prompts=[f"A{n} . <EOU> B . <EOU>" for n in numbers],
        replies=[f"{name} {i}" for i in range(30)],
        references=[f"people {n}" for n in numbers],
        by_reply={"reward": np.linspace(meteor, 1, 30)},
    )


def test_samples_are_different_contexts_spread_over_all():
    samples = side_by_side(evaluation("old", 0.25), evaluation("new", 0.5), 4)
    assert [sample["context"][0] for sample in samples] == ["A0 .", "A3 .", "A6 .", "A9 ."]
    replies = {"before": "old 9", "after": "new 9", "people": "people 3"}
    rewards = [round(0.25 + 0.75 * 9 / 29, 4), round(0.5 + 0.5 * 9 / 29, 4)]
    assert samples[1] == {"context": ["A3 .", "B ."], **replies, "rewards": rewards}
    assert len(side_by_side(evaluation("old", 0.25), evaluation("new", 0.5))) == 10
    assert "- before: old 9\n- after: new 9\n- people: people 3\n" in markdown_samples(samples)


def test_evaluated_replies_get_the_run_s_rewards_but_for_the_kl_penalty(tiny_reward_model):
    """Those of the wrappers: METEOR by token, an own scorer, a reward model that is standardized over all replies.

    Wrappers of the user's own are among them.
    """
    envs = gym.make_vec("DailyDialog-v0", num_envs=2, lockstep=True, split="validation")
    samples = envs.unwrapped.samples
    judge = RewardModel(tiny_reward_model)
    envs = ScoreReward(VectorWrapper(MeteorReward(envs, 0.5, by_token=True)), token_count, -0.01, "length")
    envs = VectorWrapper(KLPenalty(ScoreReward(envs, judge, 2.0, "judge"), lambda episodes: 1 / 0))
    ids, replies = np.array([1, 4, 7]), ["Yes , of course .", "", "I see ."]
    texts = {"prompts": [samples.prompts[i] for i in ids], "references": [samples.references[i] for i in ids]}
    evaluations = [SimpleNamespace(**texts, replies=each) for each in (replies, replies[::-1])]
    before, after = rewards_of(envs, samples, ids, evaluations)
    contexts = [split_prompt(prompt) for prompt in texts["prompts"]]
    raw = np.array([judge.scores(contexts, each.replies) for each in evaluations])
    standardized = (raw - raw.mean()) / (judge.moments.std + 1e-8)
    for found, each, learned in zip((before, after), evaluations, standardized, strict=True):
        meteors = [meteor(*pair) for pair in zip(each.replies, texts["references"], strict=True)]
        lengths = [len(tokens) for tokens in samples.tokenizer.encode_replies(each.replies)]
        expected = 0.5 * np.array(meteors) - 0.01 * np.array(lengths) + 2 * learned
        np.testing.assert_allclose(found, expected, atol=1e-6)
