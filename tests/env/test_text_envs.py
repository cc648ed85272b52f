"""The text environment gives a reply the reward that the token environment gives the tokens of this reply."""

import pickle
import warnings
from functools import cache

import gymnasium as gym
import numpy as np
import pytest
from equality import assert_same
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import dailydialog_gym  # noqa: F401, registers the environments
from dailydialog_gym import wrappers
from dailydialog_gym.env import EOU, load_samples, split_prompt
from dailydialog_gym.rewards import FixedCoefficient, Meteor
from dailydialog_gym.rewards.length import token_count
from dailydialog_gym.wrappers import vector

SMALL = {"max_prompt_length": 24, "max_new_tokens": 6}
REPLIES = ["I see .", "", "No , thanks . Not today , and not tomorrow .", f"Yes {EOU} no", "caf\u00e9", "Hi\0"]


@cache
def rewarded(kind: str, **kwargs) -> gym.Env:
    """An environment with a reward for the text and one for each token."""
    env = wrappers.MeteorReward(gym.make(f"DailyDialog{kind}-v0", **SMALL, **kwargs), by_token=True)
    return wrappers.ScoreReward(env, token_count, 0.01, "length")


def end_of_tokens(env: gym.Env, tokens: list[int], sample_id: int):
    """The last step of the token environment."""
    env.reset(options={"sample_id": sample_id})
    for token in tokens:
        step = env.step(token)
        if step[2] or step[3]:
            return step
    raise AssertionError("the tokens do not end the reply")


@pytest.fixture(scope="module")
def tokenizers(tiny_instruct_model):
    return {"builtin": {}, "template": {"tokenizer": tiny_instruct_model, "chat_template": True}}


SENTENCES = st.lists(st.sampled_from(load_samples(split="validation").references), max_size=2).map(" ".join)


@pytest.mark.parametrize("name", ["builtin", "template"])
@settings(max_examples=40, deadline=None)
@given(text=SENTENCES | st.text(max_size=12), sample_id=st.integers(0, 200))
@example(text=f"a {EOU} b", sample_id=0)
@example(text="<pad>", sample_id=1)
@example(text="a\0", sample_id=2)
def test_a_text_is_paid_like_its_tokens(tokenizers, name, text, sample_id):
    by_token, by_text = (rewarded(kind, **tokenizers[name]) for kind in ("", "Text"))
    tokens = by_text.unwrapped.samples.tokenizer.encode_replies([text])[0]
    observation, *result, info = end_of_tokens(by_token, tokens, sample_id)
    conversation, _ = by_text.reset(options={"sample_id": sample_id})
    after, *text_result, text_info = by_text.step(text)
    assert text_result == result
    assert_same(text_info, info | observation)
    assert after.startswith(f"{conversation} ")
    assert after.endswith(f" {EOU}")
    assert after in by_text.observation_space


@settings(max_examples=60, deadline=None)
@given(tokens=st.lists(st.integers(0, 4095), min_size=6, max_size=6), sample_id=st.integers(0, 200))
def test_tokens_are_paid_like_their_text(tokens, sample_id):
    """Another tokenisation of the text may have another length, so the reward here is the text's."""
    by_token, by_text = (wrappers.MeteorReward(gym.make(f"DailyDialog{kind}-v0", **SMALL)) for kind in ("", "Text"))
    *_, info = end_of_tokens(by_token, tokens, sample_id)
    assume(len(by_text.unwrapped.samples.tokenizer.encode_replies([info["response"]])[0]) <= 7)  # or it is cut
    by_text.reset(options={"sample_id": sample_id})
    _, reward, _, _, text_info = by_text.step(info["response"])
    assert (text_info["response"], reward) == (info["response"], info["reward/meteor"])


@pytest.mark.parametrize("render_mode", [None, "ansi", "human"])
def test_check_env_has_no_complaint(render_mode, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("DailyDialogText-v0", render_mode=render_mode).unwrapped)


def test_the_spaces_hold_all_prompts_and_references():
    env = gym.make("DailyDialogText-v0").unwrapped
    assert all(prompt in env.observation_space for prompt in env.samples.prompts)
    short = [text for text in env.samples.references if len(env.samples.tokenizer.encode_replies([text])[0]) <= 20]
    assert len(short) > 1000
    assert all(text in env.action_space for text in short)


def test_an_episode_is_a_reply():
    env = gym.make("DailyDialogText-v0", render_mode="ansi")
    conversation, info = env.reset(seed=1)
    assert split_prompt(conversation) == split_prompt(info["prompt"])
    assert env.step("I see .")[0] == f"{conversation} I see . {EOU}"
    assert env.render().endswith(f"\n> I see . {EOU}")
    with pytest.raises(gym.error.ResetNeeded):
        env.step("I see .")


@pytest.mark.parametrize("mode", AutoresetMode)
def test_the_vector_environment_equals_single_ones(mode):
    """Random replies, and rewards; all that is returned is the same."""
    single = SyncVectorEnv([lambda: rewarded.__wrapped__("Text") for _ in range(3)], autoreset_mode=mode)
    native = gym.make_vec("DailyDialogText-v0", num_envs=3, autoreset_mode=mode, **SMALL)
    native = vector.ScoreReward(vector.MeteorReward(native, by_token=True), token_count, 0.01, "length")
    assert native.action_space == single.action_space
    assert native.observation_space == single.observation_space
    assert_same(native.reset(seed=5), single.reset(seed=5))
    rng = np.random.default_rng(0)
    for _ in range(6):
        replies = tuple(rng.choice(REPLIES, 3).tolist())
        one, other = native.step(replies), single.step(replies)
        assert_same(one, other)
        if mode == AutoresetMode.DISABLED:
            options = {"reset_mask": np.array([True] * 3)}
            assert_same(native.reset(options=options), single.reset(options=options))


def test_a_copy_goes_on_as_the_original():
    env = gym.make("DailyDialogText-v0", **SMALL)
    env.reset(seed=3)
    stored = pickle.dumps(env)
    assert len(stored) < 20_000
    assert_same(pickle.loads(stored).step("No ."), env.step("No ."))


def test_what_is_no_reply_is_named():
    env = gym.make("DailyDialogText-v0")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"expected 1 text.*got \[5\]"):
        env.step(5)
    envs = gym.make_vec("DailyDialogText-v0", num_envs=2)
    envs.reset(seed=0)
    for replies in (["a"], ["a", None], "ab"):
        with pytest.raises(ValueError, match="expected 2 text"):
            envs.step(replies)


def test_a_penalty_on_tokens_needs_tokens():
    with pytest.raises(TypeError, match=r"KLPenalty needs .* actions are tokens"):
        wrappers.KLPenalty(gym.make("DailyDialogText-v0"), Meteor(), FixedCoefficient(0.1))
    with pytest.raises(TypeError, match=r"KLPenalty needs .* actions are tokens"):
        vector.KLPenalty(gym.make_vec("DailyDialogText-v0"), Meteor(), FixedCoefficient(0.1))
