"""The flags of a training script that say what the agent reads, and those that depend on the dialogues."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from dailydialog_gym.env.dialogues import TEST_SHARE
from dailydialog_gym.env.samples import Samples
from dailydialog_gym.ranges import Count
from dailydialog_gym.text import Spacing

INTENT_WEIGHT = 0.3


@dataclass
class DataArgs:
    dataset: str = "builtin"
    """the dialogues: "builtin", a file, a folder or a hub id such as daily_dialog"""
    test_share: float = TEST_SHARE
    """where the dataset has no validation or no test split: the share of its dialogues that is held out for it"""
    spacing: Spacing | None = None
    """convert the dialogues' punctuation: spaced as in DailyDialog ("Hi , Ann !") or ordinary; by default as it is"""
    full_context: bool = False
    """train only on replies with at least `context_size` utterances before them, as RL4LMs and OpenRL do"""
    context_size: Count = 5
    """maximum number of utterances in a context"""
    max_prompt_length: Count = 128
    """maximum number of tokens in a context; longer contexts are truncated from the left"""
    max_new_tokens: Count = 20
    """maximum number of tokens in a reply"""
    chat_template: bool = False
    """write contexts in the tokenizer's chat template, for an instruct model; a reply ends with its end of turn"""

    def prompts(self) -> dict[str, Any]:
        """The arguments of `load_samples` that are flags."""
        names = {field.name for field in fields(DataArgs)} - {"max_new_tokens"}
        return {name: getattr(self, name) for name in sorted(names)}


def settle(args: Any, samples: Samples) -> None:
    """Set the flags that depend on the dialogues: ``spacing``, and ``intent_weight``, which is None without acts.

    Args:
        args: the script's arguments, which inherit `DataArgs` and have an ``intent_weight``.
        samples: the samples for training.

    Raises:
        ValueError: there is an intent reward but no act.
    """
    args.spacing = samples.spacing
    if samples.acts.any():
        args.intent_weight = INTENT_WEIGHT if args.intent_weight is None else args.intent_weight
        return
    if args.intent_weight:
        raise ValueError(
            f"--intent-weight {args.intent_weight}: the dialogues of {args.dataset} have no acts, which the intent "
            "reward needs: leave the flag out, or add acts (a column 'act')"
        )
    args.intent_weight = None
