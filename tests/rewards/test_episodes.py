import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_episodes import make_episodes

from dailydialog_gym.rewards import add_score


def test_the_score_of_a_reply_belongs_to_its_last_token():
    rewards, extra = add_score(lambda _: np.array([3.0, -1.0]), 0.5, "x", make_episodes([2, 4], 4), np.zeros(2), {})
    assert rewards.tolist() == [1.5, -0.5]
    assert extra["reward/x"].tolist() == [3.0, -1.0]
    assert extra["token_rewards"].tolist() == [[0, 1.5, 0, 0], [0, 0, 0, -0.5]]


def test_token_scores_are_summed():
    rewards, extra = add_score(
        lambda _: np.array([[1.0, 2, 4], [8, 16, 32]]), 2, "x", make_episodes([3, 3], 3), [0, 0], {}
    )
    assert rewards.tolist() == [14, 112]
    assert extra["reward/x"].tolist() == [7, 56]
    assert extra["token_rewards"].tolist() == [[2, 4, 8], [16, 32, 64]]


@pytest.mark.parametrize("padding", [100.0, np.nan, -np.inf])
def test_token_scores_after_the_end_of_the_reply_do_not_count(padding):
    scores = np.array([[1.0, padding, padding], [1, 2, padding]])
    rewards, extra = add_score(lambda _: scores, 1, "x", make_episodes([1, 2], 3), np.zeros(2), {})
    assert rewards.tolist() == extra["reward/x"].tolist() == [1, 3]
    assert extra["token_rewards"].tolist() == [[1, 0, 0], [1, 2, 0]]


def test_other_reward_belongs_to_the_last_token():
    episodes = make_episodes([1, 3], 3)
    rewards, extra = add_score(lambda _: np.ones((2, 3)), 1, "x", episodes, np.array([5.0, -5.0]), {})
    assert rewards.tolist() == [6, -2]
    assert extra["token_rewards"].tolist() == [[6, 0, 0], [1, 1, -4]]
    rewards, extra = add_score(lambda _: np.zeros(2), 1, "y", episodes, rewards * 2, extra)
    assert extra["token_rewards"].tolist() == [[12, 0, 0], [1, 1, -6]]


def test_add_score_does_not_change_its_arguments():
    before = {"token_rewards": np.array([[1.0, 2.0]])}
    rewards = np.array([3.0])
    add_score(lambda _: np.array([1.0]), 1, "x", make_episodes([2], 2), rewards, before)
    assert rewards.tolist() == [3] and before["token_rewards"].tolist() == [[1, 2]]


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_token_rewards_sum_exactly_to_the_reward(data):
    finite = st.floats(-1e3, 1e3)
    width = data.draw(st.integers(1, 24))
    lengths = data.draw(st.lists(st.integers(1, width), min_size=1, max_size=4))
    n = len(lengths)
    episodes = make_episodes(lengths, width)
    rewards, info = np.array(data.draw(st.lists(finite, min_size=n, max_size=n))), {}
    expected = rewards.copy()
    for number in range(data.draw(st.integers(1, 4))):
        shape = data.draw(st.sampled_from([(n,), (n, width)]))
        seed, weight = data.draw(st.integers(0, 2**32 - 1)), data.draw(finite)
        scores = np.random.default_rng(seed).normal(size=shape)
        rewards, extra = add_score(lambda _, scores=scores: scores, weight, str(number), episodes, rewards, info)
        info |= extra
        raw = scores if scores.ndim == 1 else np.where(episodes.reply_mask, scores, 0).sum(1)
        np.testing.assert_allclose(info[f"reward/{number}"], raw, rtol=1e-12, atol=1e-12)
        expected += weight * raw
        assert all(row.sum() == reward for row, reward in zip(info["token_rewards"], rewards, strict=True))
        assert (info["token_rewards"][~episodes.reply_mask] == 0).all()
    np.testing.assert_allclose(rewards, expected, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize(
    ("scores", "weight", "message"),
    [
        ([1.0, np.nan], 1.0, "scorer 'politeness' .* nan for the reply 'No !'"),
        ([np.inf, 1.0], 1.0, "scorer 'politeness'"),
        ([[0, 0, 0], [0, np.nan, 0]], 1.0, "scorer 'politeness'"),
        ([1.0, 1.0], math.nan, "scorer 'politeness' with weight nan"),
        ([1.0], 1.0, "scorer 'politeness'"),
        ([[1.0, 2.0]], 1.0, "scorer 'politeness'"),
        (1.0, 1.0, "scorer 'politeness'"),
        (None, 1.0, "scorer 'politeness'"),
        (["good", "bad"], 1.0, "scorer 'politeness'"),
        ([[1.0], [1.0, 2.0]], 1.0, "scorer 'politeness'"),
        ([[1.0], [1.0]], 1.0, "scorer 'politeness'"),
    ],
    ids=str,
)
def test_unusable_scores_are_an_error_that_names_the_scorer(scores, weight, message):
    episodes = make_episodes([3, 3], 3, responses=["Yes .", "No !"])
    with pytest.raises(ValueError, match=message):
        add_score(lambda _: scores, weight, "politeness", episodes, np.zeros(2), {})
