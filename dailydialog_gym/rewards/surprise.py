"""How rare a token is among all that a batch of replies says."""

from __future__ import annotations

import numpy as np

from dailydialog_gym.rewards.episodes import Episodes


def token_surprise(episodes: Episodes) -> np.ndarray:
    """Scorer: ``(n, max_new_tokens)``, in nats, how much more surprising each token is than the batch's average token.

    The surprise is ``-log p(token)``, p being its share of the batch. Paid as a reward, this raises the entropy of what
    all replies together say (its policy gradient is that entropy's), against METEOR, which lowers it: common words are
    found in many references. Its mean is 0, so it pays nothing for length; the last token of a reply, its end as a
    rule, counts as none.
    """
    said = episodes.reply_mask & (np.arange(episodes.max_new_tokens) < episodes.reply_mask.sum(1, keepdims=True) - 1)
    tokens = episodes.reply_ids[said]
    surprise = np.log(max(len(tokens), 1)) - np.log(np.bincount(tokens)[tokens])
    result = np.zeros(said.shape)
    result[said] = surprise - surprise.mean() if len(tokens) else 0
    return result
