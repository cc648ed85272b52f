"""Turn dialogues into samples of (context, reference reply, act), and contexts into left-padded token ids."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dailydialog_gym.caching import cached_until_changed
from dailydialog_gym.env.dialogues import TEST_SHARE, load_dialogues
from dailydialog_gym.env.tokenizer import ReplyTokenizer, format_prompt, load_tokenizer
from dailydialog_gym.ranges import check_count
from dailydialog_gym.text import Spacing, convert_spacing, spacing_of


@dataclass(frozen=True)
class Samples:
    """``n`` samples. Entry ``i`` of every attribute belongs to sample ``i``.

    Attributes:
        prompts: ``n`` texts, the contexts in the format of `format_prompt`.
        references: ``n`` texts, the utterance that follows each context in the dataset.
        acts: ``(n,)`` int64, the dialogue act of each reference, 1 to 4, or 0 where the dataset has none.
        prompt_ids: ``(n, max_prompt_length)`` int32, the tokenised prompts, left-padded and truncated on the left.
        prompt_mask: ``(n, max_prompt_length)`` bool, True for tokens and False for padding.
        following: ``(n,)`` int64, the sample of the dialogue's next utterance, or -1 if there is none.
        context_size: the number of utterances in a context.
        tokenizer: the tokenizer of `prompt_ids`.
        spacing: whether the dialogues have DailyDialog's spacing of punctuation, or are ordinary text.
        source: the arguments of `load_samples` that produced these samples.
    """

    prompts: list[str]
    references: list[str]
    acts: np.ndarray
    prompt_ids: np.ndarray
    prompt_mask: np.ndarray
    following: np.ndarray
    context_size: int
    tokenizer: ReplyTokenizer
    spacing: Spacing
    source: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def characters(self) -> frozenset[str]:
        """The characters of all prompts and references."""
        return frozenset().union(*self.prompts, *self.references)

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled environment stores the arguments that reload its samples instead of megabytes of data.
        return load_samples, self.source


@cached_until_changed("dataset", "tokenizer")
def load_samples(
    dataset: str = "builtin",
    split: str = "train",
    tokenizer: str = "builtin",
    context_size: int = 5,
    max_prompt_length: int = 128,
    raw_split: bool = False,
    full_context: bool = False,
    test_share: float = TEST_SHARE,
    spacing: Spacing | None = None,
    chat_template: bool = False,
) -> Samples:
    """Make a sample of every utterance that has at least one utterance before it.

    By default the texts are the dataset's own, but for blanks at their ends and ``<EOU>`` inside an utterance of a
    context, see `format_prompt`. The result is cached until the files change, and equal environments share it.

    Args:
        dataset, split, raw_split, test_share: see `load_dialogues`.
        tokenizer: see `dailydialog_gym.env.tokenizer.load_tokenizer`.
        context_size: the number of preceding utterances in a context. Contexts at the start of a dialogue have fewer.
        max_prompt_length: the maximum number of tokens of a prompt. A longer prompt is truncated on the left.
        full_context: use only replies that have ``context_size`` utterances before them, as RL4LMs and OpenRL do.
            This keeps 35,368 of DailyDialog's 75,006 training replies, and 35,775 of 76,042 with ``raw_split``.
        spacing: the spacing that the dialogues' punctuation is converted to if they have the other, ``"spaced"`` or
            ``"ordinary"``, see `dailydialog_gym.text`. None: they stay as they are.
        chat_template: write the prompts in the tokenizer's chat template: the context's last utterance is the user's,
            and the reply the assistant's. A sample whose last utterance alone is longer than ``max_prompt_length`` is
            left out, and their number is printed to stderr.

    Raises:
        ValueError: an argument is out of range, no sample is left, or `load_dialogues` or `load_tokenizer` fails.
    """
    for name, value in (("context_size", context_size), ("max_prompt_length", max_prompt_length)):
        check_count(name, value)
    if spacing not in (None, "spaced", "ordinary"):
        raise ValueError(f"unknown spacing {spacing!r}: expected 'spaced', 'ordinary' or None")
    reply_tokenizer = load_tokenizer(tokenizer, chat_template=chat_template)
    dialogues = load_dialogues(dataset, split, raw_split, test_share)
    found = spacing_of(utterance for dialogue in dialogues for utterance in dialogue.utterances)
    first_reply = context_size if full_context else 1
    prompts, references, acts, is_last = [], [], [], []
    for dialogue in dialogues:
        utterances = [convert_spacing(utterance, found, spacing or found) for utterance in dialogue.utterances]
        for i in range(first_reply, len(utterances)):
            prompts.append(format_prompt(utterances[max(0, i - context_size) : i]))
            references.append(utterances[i])
            acts.append(dialogue.acts[i])
            is_last.append(i == len(utterances) - 1)
    if not prompts:
        raise ValueError(f"dataset {dataset!r}, split {split!r}: no reply has {first_reply} utterances before it")
    encoded = _encode(reply_tokenizer, prompts, max_prompt_length)
    fits = [i for i, ids in enumerate(encoded) if ids is not None]
    if len(fits) < len(prompts):
        print(
            f"{dataset}, {split}: {len(prompts) - len(fits):,} of {len(prompts):,} replies left out, because the "
            f"utterance before them has more than max_prompt_length {max_prompt_length} tokens, template included",
            file=sys.stderr,
        )
        if not fits:
            raise ValueError(f"no utterance of {dataset!r} fits into max_prompt_length {max_prompt_length}")
        prompts, references, acts = [prompts[i] for i in fits], [references[i] for i in fits], [acts[i] for i in fits]
    # The next sample is of the next utterance, unless this one was the dialogue's last or the next was left out.
    goes_on = np.array([not is_last[i] and i + 1 == j for i, j in zip(fits, [*fits[1:], -1], strict=True)])
    following = np.where(goes_on, np.arange(1, len(fits) + 1), -1)
    prompt_ids, prompt_mask = _pad(reply_tokenizer, [ids for ids in encoded if ids is not None], max_prompt_length)
    source: tuple[Any, ...] = (dataset, split, tokenizer, context_size, max_prompt_length, raw_split, full_context)
    source += (test_share, spacing, chat_template)
    columns = (prompts, references, np.array(acts, np.int64), prompt_ids, prompt_mask, following)
    return Samples(*columns, context_size, reply_tokenizer, spacing or found, source)


def left_pad(tokenizer: ReplyTokenizer, prompts: Sequence[str], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokenise prompts into ``width`` columns, padded and truncated on the left, see `ReplyTokenizer.encode_prompts`.

    If the tokenizer has a BOS token, every prompt begins with it, even a truncated one.

    Returns:
        prompt_ids: ``(n, width)`` int32.
        mask: ``(n, width)`` bool, True for tokens and False for padding.

    Raises:
        ValueError: ``width`` leaves no column for text, or, with a chat template, is too short for an utterance.
    """
    encoded = []
    for prompt, ids in zip(prompts, _encode(tokenizer, prompts, width), strict=True):
        if ids is None:
            raise ValueError(
                f"the message has too many tokens, template included: expected at most {width}, got {prompt[-60:]!r}"
            )
        encoded.append(ids)
    return _pad(tokenizer, encoded, width)


def _encode(tokenizer: ReplyTokenizer, prompts: Sequence[str], width: int) -> list[list[int] | None]:
    if width <= len(tokenizer.bos_ids):
        raise ValueError(f"max_prompt_length {width} leaves no room for text after the tokenizer's BOS token")
    parts = (prompts[start : start + 4096] for start in range(0, len(prompts), 4096))  # bounds the memory
    return [ids for part in parts for ids in tokenizer.encode_prompts(part, width)]


def _pad(tokenizer: ReplyTokenizer, encoded: Sequence[list[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    prompt_ids = np.full((len(encoded), width), tokenizer.pad_id, np.int32)
    mask = np.zeros(prompt_ids.shape, np.bool_)
    for row, ids in enumerate(encoded):
        prompt_ids[row, width - len(ids) :] = ids
        mask[row, width - len(ids) :] = True
    return prompt_ids, mask
