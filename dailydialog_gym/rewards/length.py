"""The length of replies, as a reward."""

from __future__ import annotations

import numpy as np

from dailydialog_gym.env.tokenizer import EOU
from dailydialog_gym.rewards.episodes import Episodes


def token_count(episodes: Episodes) -> np.ndarray:
    """Scorer: 1 for every token of a reply, ``(n, max_new_tokens)``.

    METEOR weighs recall nine times as much as precision, and so pays for longer replies. A negative weight takes that
    away: ``--reward dailydialog_gym.rewards.length:token_count=-0.002``.
    """
    return episodes.reply_mask.astype(np.float64)


def words_beyond_people(episodes: Episodes) -> np.ndarray:
    """Scorer: for every token of every reply, ``(n, max_new_tokens)``, by how many words the batch's replies are longer
    on average than what people say in the same dialogues, their utterances in the prompts and the references.

    With a negative weight it is a `token_count` whose price finds itself: the further the replies are beyond people's,
    the dearer is a token. People's words count up to as many as the batch's replies have in ``max_new_tokens`` tokens.
    Of few episodes it is mostly noise.
    """
    words = np.array([len(response.split()) for response in episodes.responses])
    most = episodes.max_new_tokens * words.sum() / episodes.reply_mask.sum()
    people = [
        min(len(utterance.split()), most)
        for prompt, reference in zip(episodes.prompts, episodes.references, strict=True)
        for utterance in (*prompt.split(EOU)[:-1], reference)
    ]
    return episodes.reply_mask * (words.mean() - np.mean(people))
