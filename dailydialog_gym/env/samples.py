"""How a dialogue becomes samples, (context, response, act), and how contexts become padded token ids."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dailydialog_gym.env.dialogues import load_dialogues
from dailydialog_gym.env.tokenizer import EOU, ReplyTokenizer, load_tokenizer


@dataclass(frozen=True)
class Samples:
    """The replies an environment asks for, ``n`` of them; sample ``i`` is row ``i`` everywhere.

    Attributes:
        prompts: the context texts, see `format_prompt`.
        references: the replies that people gave.
        acts: ``(n,)`` int64, the act of each reference, 1 to 4.
        prompt_ids: ``(n, max_prompt_length)`` int32, the tokenised prompts, left-padded, cut on the left.
        prompt_mask: same shape, bool, where `prompt_ids` is not padding.
        tokenizer: what tokenised them.
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
        # A pickled environment carries the recipe of its samples, not their megabytes.
        return load_samples, self.source


def format_prompt(utterances: tuple[str, ...] | list[str]) -> str:
    """The text a model continues: each utterance followed by `` <EOU>``, as RL4LMs and OpenRL write it.

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
    """Every reply of a split with the utterances before it. Cached: environments with equal arguments share it.

    Args:
        dataset, split, raw_split: see `load_dialogues`.
        tokenizer: see `dailydialog_gym.env.tokenizer.load_tokenizer`.
        context_size: how many utterances before the reply make its context (fewer at the start of a dialogue).
        max_prompt_length: in tokens; a longer prompt loses its beginning.
        full_context: leave out replies with fewer than ``context_size`` utterances before them, as RL4LMs and
            OpenRL do (35,368 of DailyDialog's 75,006 training replies remain; 35,775 of 76,042 with ``raw_split``).

    Raises:
        ValueError: an argument is out of range, or what `load_dialogues` and `load_tokenizer` raise.
    """
    for name, value in (("context_size", context_size), ("max_prompt_length", max_prompt_length)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    codec = load_tokenizer(tokenizer)
    first_reply = context_size if full_context else 1
    prompts, references, acts = [], [], []
    for dialogue in load_dialogues(dataset, split, raw_split):
        for i in range(first_reply, len(dialogue.utterances)):
            prompts.append(format_prompt(dialogue.utterances[max(0, i - context_size) : i]))
            references.append(dialogue.utterances[i])
            acts.append(dialogue.acts[i])
    if not prompts:
        raise ValueError(f"dataset {dataset!r}, split {split!r}: no reply has {first_reply} utterances before it")
    prompt_ids, prompt_mask = left_pad(codec, prompts, max_prompt_length)
    source = (dataset, split, tokenizer, context_size, max_prompt_length, raw_split, full_context)
    return Samples(prompts, references, np.array(acts, np.int64), prompt_ids, prompt_mask, codec, source)


def left_pad(codec: ReplyTokenizer, prompts: list[str], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokenised prompts, ``(n, width)`` int32, left-padded and cut on the left; and where they aren't padding, bool."""
    keep = width - len(codec.bos_ids)
    if keep < 1:
        raise ValueError(f"max_prompt_length {width} has no room beside the tokenizer's BOS token")
    prompt_ids = np.full((len(prompts), width), codec.pad_id, np.int32)
    mask = np.zeros(prompt_ids.shape, np.bool_)
    for start in range(0, len(prompts), 4096):
        for row, ids in enumerate(codec.encode(prompts[start : start + 4096]), start):
            ids = codec.bos_ids + ids[-keep:]
            prompt_ids[row, width - len(ids) :] = ids
            mask[row, width - len(ids) :] = True
    return prompt_ids, mask
