"""Finished episodes of random tokens, for tests of scorers."""

import numpy as np

from dailydialog_gym.rewards import Episodes


def make_episodes(reply_lengths, max_new_tokens=6, prompt_lengths=None, width=8, vocab_size=50, seed=0, **texts):
    """Episodes of random tokens, with prompts left-padded into `width` columns and replies of these lengths."""
    rng, n = np.random.default_rng(seed), len(reply_lengths)
    prompt_lengths = [width] * n if prompt_lengths is None else prompt_lengths
    columns = np.arange(width + max_new_tokens)
    starts, ends = width - np.array(prompt_lengths), width + np.array(reply_lengths)
    mask = ((columns >= starts[:, None]) & (columns < ends[:, None])).astype(np.int64)
    given = {"prompts": ["How are you ? <EOU>"] * n, "responses": [f"reply {i}" for i in range(n)]}
    given |= {"references": ["Fine ."] * n, "intents": np.ones(n, np.int64)} | texts
    return Episodes(
        **given,
        input_ids=np.where(mask, rng.integers(2, vocab_size, mask.shape), 1),
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
    )
