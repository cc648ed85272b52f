import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_episodes import make_episodes

from dailydialog_gym.rewards.surprise import token_surprise


@pytest.mark.filterwarnings("error")  # no logarithm of 0 for tokens that don't occur
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_surprise_is_log_rarity_without_the_ends_and_zero_on_average(lengths, seed):
    episodes = make_episodes(lengths, 6, vocab_size=6, seed=seed)
    scores = token_surprise(episodes)
    said = [list(row[: length - 1]) for row, length in zip(episodes.reply_ids, lengths, strict=True)]
    tokens = [token for reply in said for token in reply]
    surprise = [-np.log(tokens.count(token) / len(tokens)) for token in tokens]
    expected = np.zeros((len(lengths), 6))
    for i, reply in enumerate(said):
        expected[i, : len(reply)] = [-np.log(tokens.count(token) / len(tokens)) - np.mean(surprise) for token in reply]
    np.testing.assert_allclose(scores, expected, atol=1e-12)
    assert scores.sum() == pytest.approx(0, abs=1e-9)
