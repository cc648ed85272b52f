"""The script's rollout gives the batch that one step of the environment for each token gives."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from equality import assert_same
from gymnasium.vector import VectorWrapper
from gymnasium.wrappers.vector import TransformReward
from torch.distributions import Categorical

import dailydialog_gym  # noqa: F401  (registers DailyDialog-v0)
from dailydialog_gym.models import Decoder, GraphDecoder, MixedPrecision
from dailydialog_gym.rewards import FixedCoefficient
from dailydialog_gym.wrappers.vector import KLPenalty, MeteorReward, ScoreReward, replay
from ppo_dialog import Agent, Args, candidate_logits, rollout

CPU = torch.device("cpu")
CONTEXTS, K, P, T = 5, 3, 24, 12


@torch.no_grad()
def rollout_by_steps(agent, envs, sample_ids, args):
    """What `rollout` does, in the plainest way: whole rows through the model for each token, and then `envs.step`.

    Also returns uniform numbers that draw the same tokens, each from the middle of its share. No share is so small that
    rounding decides.
    """
    B = args.num_envs  # noqa: N806
    obs, _ = envs.reset(options={"sample_id": np.repeat(sample_ids, K)})
    logprobs, values = torch.zeros(2, B, T)
    actions = torch.zeros(B, T, dtype=torch.long)
    candidates = torch.zeros(B, T, args.top_k, dtype=torch.long)
    uniform = torch.rand(B, T, dtype=torch.double)
    for t in range(T):
        ids, mask = (torch.from_numpy(obs[name]) for name in ("input_ids", "attention_mask"))
        outputs = agent.policy(
            ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0), output_hidden_states=True
        )
        last = torch.from_numpy(mask_ends(obs["attention_mask"])) - 1
        logits = outputs.logits[torch.arange(B), last, : agent.vocab_size]
        likeliest = logits.topk(args.top_k).indices if args.top_k else None
        dist = Categorical(logits=candidate_logits(likeliest, logits))
        cumulative = dist.probs.double().cumsum(-1)
        action = (cumulative > uniform[:, t, None] * cumulative[:, -1:]).int().argmax(-1)
        probs = dist.probs.double()
        rare = probs.gather(1, action[:, None])[:, 0] < 1e-4
        action = torch.where(rare, probs.argmax(-1), action)
        ends, shares = (each.gather(1, action[:, None])[:, 0] for each in (cumulative, probs))
        uniform[:, t] = (ends - shares / 2) / cumulative[:, -1]
        token = likeliest.gather(1, action[:, None])[:, 0] if args.top_k else action
        actions[:, t], logprobs[:, t] = action, dist.log_prob(action)
        values[:, t] = agent.critic.value(outputs.hidden_states[-1][torch.arange(B), last])
        if args.top_k:
            candidates[:, t] = likeliest
        full_logprob = Categorical(logits=logits).log_prob(token)
        action = {"token": token.numpy(), "log_prob": full_logprob.double().numpy()}
        obs, _, terminated, truncated, infos = envs.step(action)
        if (terminated | truncated).all():
            break
    return obs, actions, candidates, logprobs, values, infos, uniform


def mask_ends(attention_mask):
    """``(B,)``: one more than the last column of each row that is no padding."""
    return attention_mask.shape[1] - attention_mask[:, ::-1].argmax(1)


def waves(episodes):
    """A reward for every token."""
    return np.sin(episodes.reply_ids)


def surprises(episodes):
    """In the place of the log-ratios: the log-probabilities that the environment was told."""
    return episodes.log_probs


class QuestionShare(VectorWrapper):
    """A wrapper of a user, which has no `replay`: a metric, and a reward for the end of a reply."""

    def step(self, actions):
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        if (terminated | truncated).any():
            infos["metric/question_share"] = np.array([float("?" in text) for text in infos["response"]])
        return observations, rewards + (terminated | truncated), terminated, truncated, infos


def make_envs(num_envs, own_at=None):
    """The environments, with a user's wrapper around so many of the package's."""
    settings = {"max_prompt_length": P, "max_new_tokens": T}
    envs = gym.make_vec("DailyDialog-v0", num_envs=num_envs, lockstep=True, autoreset_mode="Disabled", **settings)
    wrappers = [
        lambda envs: MeteorReward(envs, by_token=True),
        lambda envs: ScoreReward(envs, waves, 0.5, "waves"),
        lambda envs: KLPenalty(envs, surprises, FixedCoefficient(0.1)),
    ]
    if own_at is not None:
        wrappers.insert(own_at, QuestionShare)
    for wrap in wrappers:
        envs = wrap(envs)
    return envs


@pytest.mark.parametrize(("top_k", "cuda_graphs"), [(0, False), (5, False), (5, True)])
def test_it_gives_the_batch_of_one_step_a_token(top_k, cuda_graphs, fake_graphs, monkeypatch):
    args = Args(num_envs=CONTEXTS * K, replies_per_prompt=K, top_k=top_k)
    args.max_prompt_length, args.max_new_tokens = P, T
    envs = make_envs(args.num_envs)
    tokenizer = envs.unwrapped.samples.tokenizer
    agent = Agent(args, tokenizer.vocab_size)
    torch.nn.init.normal_(agent.critic.value_head.weight)
    autocast = MixedPrecision(CPU, None, P + K * T)
    settings = agent.next_token, tokenizer.transitions, T, autocast, CPU, top_k
    decoder = GraphDecoder(*settings) if cuda_graphs else Decoder(*settings, network=agent.policy)
    for seed in range(2):  # the second batch reuses the decoder and the environment
        sample_ids = np.arange(CONTEXTS) + seed
        torch.manual_seed(seed)
        obs, actions, candidates, logprobs, values, infos, uniform = rollout_by_steps(agent, envs, sample_ids, args)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "rand", lambda *_, uniform=uniform, **__: uniform)
            batch = rollout(agent, envs, decoder, sample_ids, args, autocast)
        there = batch.reply_mask.bool()
        assert len(set(there.sum(1).tolist())) > 2  # rows were dropped while others went on
        np.testing.assert_array_equal(batch.input_ids, obs["input_ids"])
        np.testing.assert_array_equal(batch.attention_mask, obs["attention_mask"])
        assert torch.equal(batch.actions[there], actions[there])
        if top_k:
            assert torch.equal(batch.candidates[there], candidates[there])
        torch.testing.assert_close(batch.logprobs[there], logprobs[there], rtol=0, atol=1e-5)
        torch.testing.assert_close(batch.values[there], values[there], rtol=0, atol=1e-4)
        assert batch.infos.keys() == infos.keys()
        for key, value in infos.items():
            if value.dtype == float:
                np.testing.assert_allclose(batch.infos[key], value, atol=1e-4, err_msg=key)
            else:
                np.testing.assert_array_equal(batch.infos[key], value, key)


@pytest.mark.parametrize("own_at", [None, 0, 1, 3])
def test_replies_that_are_replayed_are_those_that_are_stepped(own_at):
    """Exactly, to the last entry of the infos, whatever follows the end of a reply, and through a user's wrapper."""
    envs = make_envs(16, own_at)
    samples, rng = envs.unwrapped.samples, np.random.default_rng(0)
    tokens = rng.integers(samples.tokenizer.vocab_size, size=(16, T))
    tokens[rng.random(tokens.shape) < 0.15] = samples.tokenizer.encode(["<EOU>"])[0][0]
    log_probs = -rng.random(tokens.shape)
    envs.reset(seed=3)
    replayed = replay(envs, {"token": tokens, "log_prob": log_probs})
    envs.reset(seed=3)
    for column in range(T):
        stepped = envs.step({"token": tokens[:, column], "log_prob": log_probs[:, column]})
    assert_same(replayed, stepped)
    assert ("metric/question_share" in replayed[4]) == (own_at is not None)


def test_a_replay_has_the_rewards_that_a_user_s_wrapper_gives_to_single_tokens():
    envs = gym.make_vec("DailyDialog-v0", num_envs=2, lockstep=True, max_new_tokens=T)
    envs = ScoreReward(TransformReward(envs, lambda rewards: rewards + 0.25), waves, 0.5, "waves")
    envs.reset(seed=0)
    _, rewards, _, _, infos = replay(envs, np.full((2, T), 99))
    np.testing.assert_allclose(rewards, 0.25 * T + 0.5 * infos["reward/waves"])
    np.testing.assert_allclose(infos["token_rewards"].sum(1), rewards)


def test_replays_that_are_impossible_are_refused():
    free = gym.make_vec("DailyDialog-v0", num_envs=2, max_new_tokens=T)
    free.reset()
    with pytest.raises(ValueError, match="lockstep=True"):
        free.replay(np.zeros((2, T), np.int64))
    with pytest.raises(ValueError, match="lockstep=True"):
        replay(QuestionShare(free), np.zeros((2, T), np.int64))
    for wrap in (lambda envs: envs, QuestionShare):
        envs = wrap(gym.make_vec("DailyDialog-v0", num_envs=2, max_new_tokens=T, lockstep=True))
        with pytest.raises(gym.error.ResetNeeded, match="reset"):
            replay(envs, np.zeros((2, T), np.int64))
        envs.reset()
        with pytest.raises(ValueError, match=r"\(2, 12\), got an array of shape \(2, 11\)"):
            replay(envs, np.zeros((2, T - 1), np.int64))
        envs.step(np.zeros(2, np.int64))
        with pytest.raises(gym.error.ResetNeeded, match="not at their beginning"):
            replay(envs, np.zeros((2, T), np.int64))
    penalty = make_envs(2)
    penalty.reset()
    tokens = np.zeros((2, T), np.int64)
    for wrong, message in ((np.full((2, T), np.nan), "row 0: .* finite"), (np.zeros(2), r"shape \(2, 12\)")):
        with pytest.raises(ValueError, match=message):
            penalty.replay({"token": tokens, "log_prob": wrong})
