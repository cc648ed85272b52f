import numpy as np
from random_episodes import make_episodes

from dailydialog_gym.rewards.length import words_beyond_people


def test_words_beyond_people_is_the_mean_excess_over_prompts_and_references():
    prompts = ["one two <EOU> one two three four <EOU>", "one <EOU>"]
    episodes = make_episodes(
        [4, 3], 6, prompts=prompts, references=["one two three", "x " * 40], responses=["a b c", "a b"]
    )
    # The replies have 5 words in 7 tokens, so 6 tokens are 30/7 words. The human utterances have 2, 4, 3, 1 and 40
    # words, and the last one counts as 30/7.
    excess = 2.5 - (2 + 4 + 3 + 1 + 30 / 7) / 5
    np.testing.assert_allclose(words_beyond_people(episodes), np.where(episodes.reply_mask, excess, 0))


def test_words_beyond_people_of_empty_replies():
    episodes = make_episodes([1, 1], 6, responses=["", ""])
    np.testing.assert_array_equal(words_beyond_people(episodes), np.zeros((2, 6)))
