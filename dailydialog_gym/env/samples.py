"""Turn dialogues into samples of (context, reference reply, act), and contexts into left-padded token ids."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dailydialog_gym.env.dialogues import load_dialogues
from dailydialog_gym.env.tokenizer import EOU, ReplyTokenizer, load_tokenizer


@dataclass(frozen=True)
class Samples:
    """``n`` samples. Entry ``i`` of every attribute belongs to sample ``i``.

    Attributes:
        prompts: ``n`` texts, the contexts in the format of `format_prompt`.
        references: ``n`` texts, the utterance that follows each context in the dataset.
        acts: ``(n,)`` int64, the dialogue act of each reference, 1 to 4.
        prompt_ids: ``(n, max_prompt_length)`` int32, the tokenised prompts, left-padded and truncated on the left.
        prompt_mask: ``(n, max_prompt_length)`` bool, True for tokens and False for padding.
        tokenizer: the tokenizer of `prompt_ids`.
        source: the arguments of `load_samples` that produced these samples.
    """

    prompts: list[str]
    references: list[str]
    acts: np.ndarray
    prompt_ids: np.ndarray
    prompt_mask: np.ndarray
    tokenizer: ReplyTokenizer
    source: tuple

    def __len__(self) -> int:
        return len(self.prompts)

    def __reduce__(self):
        # A pickled environment stores the arguments that reload its samples instead of megabytes of data.
        return load_samples, self.source


def format_prompt(utterances: tuple[str, ...] | list[str]) -> str:
    """Format a context as the text that the model continues: every utterance is followed by `` <EOU>``.

    RL4LMs and OpenRL use the same format.

    >>> format_prompt(["Good morning .", "Hi , Ann !"])
    'Good morning . <EOU> Hi , Ann ! <EOU>'
    """
    return " ".join(f"{utterance} {EOU}" for utterance in utterances)


@lru_cache(maxsize=8)
def load_samples(
    dataset: str = "builtin",
    split: str = "train",
    tokenizer: str = "builtin",
    context_size: int = 5,
    max_prompt_length: int = 128,
    raw_split: bool = False,
    full_context: bool = False,
) -> Samples:
    """Make a sample of every utterance that has at least one utterance before it.

    The result is cached, so environments with equal arguments share one copy.

    Args:
        dataset, split, raw_split: see `load_dialogues`.
        tokenizer: see `dailydialog_gym.env.tokenizer.load_tokenizer`.
        context_size: the number of preceding utterances in a context. Contexts at the start of a dialogue have fewer.
        max_prompt_length: the maximum number of tokens of a prompt. A longer prompt is truncated on the left.
        full_context: use only replies that have ``context_size`` utterances before them, as RL4LMs and OpenRL do.
            This keeps 35,368 of DailyDialog's 75,006 training replies, and 35,775 of 76,042 with ``raw_split``.

    Raises:
        ValueError: an argument is out of range, no sample is left, or `load_dialogues` or `load_tokenizer` fails.
    """
    for name, value in (("context_size", context_size), ("max_prompt_length", max_prompt_length)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    reply_tokenizer = load_tokenizer(tokenizer)
    first_reply = context_size if full_context else 1
    prompts, references, acts = [], [], []
    for dialogue in load_dialogues(dataset, split, raw_split):
        for i in range(first_reply, len(dialogue.utterances)):
            prompts.append(format_prompt(dialogue.utterances[max(0, i - context_size) : i]))
            references.append(dialogue.utterances[i])
            acts.append(dialogue.acts[i])
    if not prompts:
        raise ValueError(f"dataset {dataset!r}, split {split!r}: no reply has {first_reply} utterances before it")
    prompt_ids, prompt_mask = left_pad(reply_tokenizer, prompts, max_prompt_length)
    source = (dataset, split, tokenizer, context_size, max_prompt_length, raw_split, full_context)
    return Samples(prompts, references, np.array(acts, np.int64), prompt_ids, prompt_mask, reply_tokenizer, source)


def left_pad(tokenizer: ReplyTokenizer, prompts: list[str], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokenise prompts into ``width`` columns, padded and truncated on the left.

    If the tokenizer has a BOS token, every prompt begins with it, even a truncated one.

    Returns:
        prompt_ids: ``(n, width)`` int32.
        mask: ``(n, width)`` bool, True for tokens and False for padding.

    Raises:
        ValueError: ``width`` leaves no column for text.
    """
    max_text_tokens = width - len(tokenizer.bos_ids)
    if max_text_tokens < 1:
        raise ValueError(f"max_prompt_length {width} leaves no room for text after the tokenizer's BOS token")
    prompt_ids = np.full((len(prompts), width), tokenizer.pad_id, np.int32)
    mask = np.zeros(prompt_ids.shape, np.bool_)
    for start in range(0, len(prompts), 4096):
        for row, ids in enumerate(tokenizer.encode(prompts[start : start + 4096]), start):
            ids = tokenizer.bos_ids + ids[-max_text_tokens:]
            prompt_ids[row, width - len(ids) :] = ids
            mask[row, width - len(ids) :] = True
    return prompt_ids, mask
