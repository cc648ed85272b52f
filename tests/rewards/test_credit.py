"""`TokenCredit`, in the single and the vector environment."""

import gymnasium as gym
import numpy as np
import pytest

import dailydialog_gym  # noqa: F401  (registers DailyDialog-v0)
from dailydialog_gym import wrappers
from dailydialog_gym.rewards import Meteor, TokenCredit
from dailydialog_gym.rewards.length import token_count
from dailydialog_gym.rewards.meteor import meteor
from dailydialog_gym.wrappers import vector


def play(envs, seed=1):
    """Write replies of random words of the references, whose METEOR is above 0. Returns the last step's values."""
    _, infos = envs.reset(seed=seed)
    samples = envs.unwrapped.samples
    references = samples.tokenizer.encode([samples.references[i] for i in infos["sample_id"]])
    rng, end = np.random.default_rng(seed), samples.tokenizer.encode(["<EOU>"])[0][0]
    while True:
        tokens = np.array([rng.choice([*ids, end]) for ids in references])
        _, rewards, terminated, truncated, infos = envs.step(tokens)
        if (terminated | truncated).all():
            return rewards, infos, tokens


@pytest.fixture(scope="module")
def ended():
    envs = gym.make_vec("DailyDialog-v0", num_envs=24, lockstep=True, autoreset_mode="Disabled")
    return envs, *play(vector.MeteorReward(envs, 0.5, by_token=True))[:2]


def test_a_token_gets_what_it_adds_to_meteor(ended):
    envs, _, infos = ended
    mdp, tokenizer = envs.unwrapped.mdp, envs.unwrapped.samples.tokenizer
    lengths, ids = mdp.reply_lengths, mdp.observation()["input_ids"][:, -20:]
    assert len(set(lengths)) > 3
    num_rewarded_before_the_end = 0
    for row, length in enumerate(lengths):
        for t in range(length):
            prefix = tokenizer.decode([ids[row, : t + 1]])[0]
            credit = infos["token_rewards"][row, : t + 1].sum()
            assert credit == pytest.approx(0.5 * meteor(prefix, infos["reference"][row]), abs=1e-12)
        assert not infos["token_rewards"][row, length:].any()
        num_rewarded_before_the_end += infos["token_rewards"][row, : length - 1].any()
    assert num_rewarded_before_the_end > 12


def test_the_rewards_sum_to_meteor(ended):
    _, rewards, infos = ended
    expected = [meteor(*pair) for pair in zip(infos["response"], infos["reference"], strict=True)]
    np.testing.assert_allclose(infos["reward/meteor"], expected, atol=1e-12)
    np.testing.assert_allclose(rewards, 0.5 * np.array(expected), atol=1e-12)


def test_the_single_environment_gives_the_same_rewards():
    envs = vector.MeteorReward(gym.make_vec("DailyDialog-v0", num_envs=1, lockstep=True), by_token=True)
    _, infos, _ = play(envs)
    env = wrappers.MeteorReward(gym.make("DailyDialog-v0"), by_token=True)
    env.reset(options={"sample_id": int(infos["sample_id"][0])})
    for token in envs.unwrapped.mdp.observation()["input_ids"][0, -20:]:
        _, reward, terminated, truncated, info = env.step(token)
        if terminated or truncated:
            break
    np.testing.assert_array_equal(info["token_rewards"], infos["token_rewards"][0])
    assert reward == infos["token_rewards"][0].sum() > 0


def test_a_scorer_of_tokens_is_refused(ended):
    envs, *_ = ended
    envs = vector.ScoreReward(envs, TokenCredit(token_count, envs.unwrapped.samples.tokenizer))
    with pytest.raises(ValueError, match=r"token_count.* returned shape \(\d+, 20\) .* expected one score per text"):
        play(envs)


def test_prefixes_have_the_attention_mask_of_their_time_step(ended):
    envs, *_ = ended
    seen = []

    def note(episodes):
        seen.append(episodes)
        return Meteor()(episodes)

    play(vector.ScoreReward(envs, TokenCredit(note, envs.unwrapped.samples.tokenizer)))
    lengths = seen[0].reply_mask.sum(1)
    assert len(seen) == 1 and (lengths[1:] - lengths[:-1] <= 1).all() and lengths[0] == 1
    tokenizer = envs.unwrapped.samples.tokenizer
    texts = tokenizer.decode([ids[mask] for ids, mask in zip(seen[0].reply_ids, seen[0].reply_mask, strict=True)])
    assert texts == seen[0].responses


def test_tokens_are_counted():
    envs = gym.make_vec("DailyDialog-v0", num_envs=8, lockstep=True, autoreset_mode="Disabled")
    rewards, infos, _ = play(vector.ScoreReward(envs, token_count, -0.1, "length"))
    lengths = envs.unwrapped.mdp.reply_lengths
    np.testing.assert_array_equal(infos["reward/length"], lengths)
    np.testing.assert_allclose(rewards, -0.1 * lengths)
