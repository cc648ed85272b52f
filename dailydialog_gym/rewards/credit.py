"""Which token earned a reply's score: the one that raised it."""

from __future__ import annotations

import numpy as np

from dailydialog_gym.env.tokenizer import ReplyTokenizer
from dailydialog_gym.rewards.episodes import Episodes, Scorer


class TokenCredit:
    """Scorer: by how much each token raises another scorer's score of the reply so far, ``(n, max_new_tokens)``.

    The sum over a reply is the score of the whole reply, so no policy is better or worse than before: this is shaping
    by the potential "score of the reply so far" (Ng, Harada and Russell 1999). But what earlier tokens have earned no
    longer stands in the return of later ones, which halves the variance of METEOR's advantages.

    Args:
        scorer: of whole replies, ``(n,)``; it is called once, with every beginning of every reply.
        tokenizer: the environment's, to read the beginnings as texts.

    Raises:
        ValueError: the scorer doesn't return one score for each text.
    """

    def __init__(self, scorer: Scorer, tokenizer: ReplyTokenizer):
        self.scorer, self.tokenizer = scorer, tokenizer

    def __call__(self, episodes: Episodes) -> np.ndarray:
        mask, width = episodes.reply_mask, episodes.max_new_tokens
        rows, columns = mask.nonzero()
        attention_mask = episodes.attention_mask[rows]
        attention_mask[:, -width:] *= np.arange(width) <= columns[:, None]
        beginnings = Episodes(
            prompts=[episodes.prompts[row] for row in rows],
            responses=self.tokenizer.decode(
                [episodes.reply_ids[row, : column + 1] for row, column in zip(rows, columns, strict=True)]
            ),
            references=[episodes.references[row] for row in rows],
            intents=episodes.intents[rows],
            input_ids=episodes.input_ids[rows],
            attention_mask=attention_mask,
            max_new_tokens=width,
        )
        scores = np.asarray(self.scorer(beginnings), dtype=np.float64)
        if scores.shape != rows.shape:
            raise ValueError(
                f"TokenCredit: {self.scorer} returned shape {scores.shape} for {len(rows)} texts: expected one score "
                "for each"
            )
        potential = np.zeros(mask.shape)
        potential[mask] = scores
        return np.where(mask, np.diff(potential, axis=1, prepend=0.0), 0.0)
