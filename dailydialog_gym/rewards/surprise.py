"""A scorer of how rare each token is in a batch of replies."""

from __future__ import annotations

import numpy as np

from dailydialog_gym.rewards.episodes import Episodes


def token_surprise(episodes: Episodes) -> np.ndarray:
    """Scorer: the surprisal of each token minus the batch's mean surprisal, in nats, ``(n, max_new_tokens)``.

    The surprisal of a token is ``-log p(token)``, where ``p(token)`` is its relative frequency in the batch. The policy
    gradient of this reward is the gradient of the entropy of the tokens of all replies, so the reward increases the
    variety of the replies. METEOR decreases it, because common words occur in many references. The scores of a batch
    sum to 0, so the reward does not favour long or short replies. The last token of a reply, which is usually
    ``<EOU>``, is not counted and scores 0.
    """
    last_token = episodes.reply_mask.sum(1, keepdims=True) - 1
    counted = episodes.reply_mask & (np.arange(episodes.max_new_tokens) < last_token)
    tokens = episodes.reply_ids[counted]
    surprisal = np.log(max(len(tokens), 1)) - np.log(np.bincount(tokens)[tokens])
    scores = np.zeros(counted.shape)
    scores[counted] = surprisal - surprisal.mean() if len(tokens) else 0
    return scores
