"""The length of a reply, as a reward."""

from __future__ import annotations

import numpy as np

from dailydialog_gym.rewards.episodes import Episodes


def token_count(episodes: Episodes) -> np.ndarray:
    """Scorer: 1 for every token of a reply, ``(n, max_new_tokens)``.

    METEOR weighs recall nine times as much as precision, and so pays for longer replies. A negative weight takes that
    away: ``--reward dailydialog_gym.rewards.length:token_count=-0.002``.
    """
    return episodes.reply_mask.astype(np.float64)
