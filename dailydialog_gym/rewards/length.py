"""Scorers of the length of replies."""

from __future__ import annotations

import numpy as np

from dailydialog_gym.env.tokenizer import split_prompt
from dailydialog_gym.rewards.episodes import Episodes


def token_count(episodes: Episodes) -> np.ndarray:
    """Scorer: 1 for every token of a reply, ``(n, max_new_tokens)``.

    METEOR weights recall nine times as much as precision, so it favours long replies. A negative weight of this scorer
    counteracts that: ``--reward dailydialog_gym.rewards.length:token_count=-0.002``.
    """
    return episodes.reply_mask.astype(np.float64)


def words_beyond_people(episodes: Episodes) -> np.ndarray:
    """Scorer: the mean excess length of the batch's replies, in words, for every token, ``(n, max_new_tokens)``.

    The excess length is the mean number of words of the replies minus that of the human utterances in the same
    dialogues, which are the utterances of the prompts and the references. All tokens of the batch get the same score.

    With a negative weight, this is a penalty per token that adapts to the excess: it is zero while replies are as long
    as human utterances, and grows with the excess. A human utterance counts with at most as many words as
    ``max_new_tokens`` tokens of the batch's replies have, because no reply can be longer. The estimate is noisy for
    small batches.
    """
    words = np.array([len(response.split()) for response in episodes.responses])
    max_words = episodes.max_new_tokens * words.sum() / episodes.reply_mask.sum()
    human_words = [
        min(len(utterance.split()), max_words)
        for prompt, reference in zip(episodes.prompts, episodes.references, strict=True)
        for utterance in (*split_prompt(prompt), reference)
        if utterance is not None
    ]
    return episodes.reply_mask * (words.mean() - np.mean(human_words))
