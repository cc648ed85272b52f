"""The rewards and the prompts for TRL: reward functions and a dataset for its ``GRPOTrainer`` and ``RLOOTrainer``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dailydialog_gym.env.samples import Samples
from dailydialog_gym.env.tokenizer import EOU, as_messages, format_prompt, split_prompt
from dailydialog_gym.extras import need
from dailydialog_gym.rewards.episodes import Episodes, Scorer, add_score

if TYPE_CHECKING:
    import datasets

# A text, or messages with "role" and "content", see https://huggingface.co/docs/trl/dataset_formats
TextOrMessages = str | list[dict[str, str]]


def to_trl_dataset(samples: Samples, messages: bool = False) -> datasets.Dataset:
    """The samples as a dataset of prompts.

    Args:
        samples: the samples.
        messages: the prompts are messages, as `dailydialog_gym.env.tokenizer.as_messages` makes them, for models with a
            chat template. Otherwise they are texts, see `dailydialog_gym.env.tokenizer.format_prompt`.

    Returns:
        A dataset with a row for each sample and the columns ``prompt``, ``reference`` and ``act``.
    """
    need("datasets")
    from datasets import Dataset

    prompts: list[Any] = samples.prompts
    if messages:
        prompts = [as_messages(split_prompt(prompt)) for prompt in prompts]
    return Dataset.from_dict({"prompt": prompts, "reference": samples.references, "act": samples.acts})


def reward_funcs(samples: Samples, **scorers: Scorer) -> list[Callable[..., list[float]]]:
    """Turn scorers into reward functions of TRL, which read the columns of `to_trl_dataset`.

    TRL logs each under the name of its keyword, and ``GRPOConfig(reward_weights=...)`` weights them in their order. A
    completion ends at its first ``<EOU>``. Scores per token are summed. `KLDivergence` cannot be used, because TRL does
    not pass log-probabilities on; its trainers have a penalty of their own, ``beta``.

    A reward function raises a ValueError where the dataset lacks a column, or a prompt's utterances are not closed by
    ``<EOU>``.

    Args:
        samples: the samples of the dataset. Their tokenizer makes the tokens for scorers that need them.
        scorers: the scorers by name.

    >>> from dailydialog_gym.env import load_samples
    >>> from dailydialog_gym.rewards import Meteor
    >>> (meteor,) = reward_funcs(load_samples(), meteor=Meteor())
    >>> meteor(["Hi , Ann ! <EOU>"], ["Hello . How are you ?"], reference=["Hello . How are you ?"], act=[2])
    [0.9976851851851852]
    """
    return [_reward_func(samples, name, scorer) for name, scorer in scorers.items()]


def _reward_func(samples: Samples, name: str, scorer: Scorer) -> Callable[..., list[float]]:
    def reward(prompts: Sequence[TextOrMessages], completions: Sequence[TextOrMessages], **columns: Any) -> list[float]:
        if missing := {"reference", "act"} - columns.keys():
            raise ValueError(f"the dataset lacks {' and '.join(sorted(missing))}, see to_trl_dataset")
        texts = [text if isinstance(text, str) else format_prompt(_contents(text)) for text in prompts]
        if unclosed := [text for text in texts if not text.rstrip().endswith(EOU)]:
            raise ValueError(f"expected {EOU} after each utterance of a prompt, got {unclosed[0][:80]!r}")
        replies = [text if isinstance(text, str) else "".join(_contents(text)) for text in completions]
        responses = [reply.split(EOU, 1)[0].strip() for reply in replies]
        episodes = Episodes.from_texts(samples, texts, responses, columns["reference"], columns["act"])
        return add_score(scorer, 1.0, name, episodes, np.zeros(len(episodes)), {})[0].tolist()

    reward.__name__ = name
    return reward


def _contents(messages: list[dict[str, str]]) -> list[str]:
    return [message["content"] for message in messages if message["role"] in ("user", "assistant")]
