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
    """use only replies with at least `context_size` utterances before them, as RL4LMs and OpenRL do"""
    context_size: Count = 5
    """maximum number of utterances in a context"""
    max_prompt_length: Count = 128
    """maximum number of tokens in a context; longer contexts are truncated from the left"""
    max_new_tokens: Count = 20
    """maximum number of tokens in a reply"""
    chat_template: bool = False
    """write contexts in the tokenizer's chat template, for an instruct model; a reply ends with its end of turn"""

    def sample_settings(self) -> dict[str, Any]:
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


def count_contexts(args: Any, num_parts: int, ranks: int = 1) -> int:
    """The number of contexts in a batch of one rank.

    Args:
        args: the script's arguments, for all ranks together.
        num_parts: the number of parts of a minibatch that go through the model one after the other.
        ranks: the number of ranks.

    Raises:
        ValueError: a context would have too few replies, a part of a minibatch no context, or the run no iteration; or
            another flag asks for several replies to a context, or for a critic of its own, where there is none.
    """
    if args.critic_class and args.critic != "separate":
        raise ValueError("--critic-class is a critic of its own: add --critic separate")
    if args.replies_per_prompt == 1 and (args.critic == "none" or args.normalize_groups):
        raise ValueError("--critic none and --normalize-groups need --replies-per-prompt 2 or more")
    copies, parts = args.replies_per_prompt, args.num_minibatches * num_parts
    contexts = args.num_envs // (copies * ranks)
    if contexts * copies * ranks != args.num_envs or parts > contexts:
        each = f" / ranks ({ranks})" if ranks > 1 else ""
        raise ValueError(
            f"expected num_envs ({args.num_envs}){each} / replies_per_prompt ({copies}) contexts: a whole number, and "
            f"at least num_minibatches * gradient_accumulation_steps ({args.num_minibatches} * {num_parts})"
        )
    if args.total_episodes < args.num_envs:
        raise ValueError(f"expected total_episodes ({args.total_episodes}) to be at least num_envs ({args.num_envs})")
    return contexts
