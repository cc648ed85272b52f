"""The replies before and after training, side by side: as data and for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dailydialog_gym.env.samples import Samples
from dailydialog_gym.env.tokenizer import split_prompt
from dailydialog_gym.evaluate import Evaluation
from dailydialog_gym.rewards import Episodes, TokenCredit, add_score
from dailydialog_gym.wrappers.vector import KLPenalty, ScoreReward

WHO = ("before", "after", "people")


def rewards_of(envs: Any, samples: Samples, ids: np.ndarray, evaluations: Sequence[Evaluation]) -> list[np.ndarray]:
    """What a run's rewards, without the KL penalty, give to evaluated replies: ``(n,)`` for each evaluation.

    Each scorer gets all replies in one call, so that a reward model standardizes all of them alike.

    Args:
        envs: the run's environments with their reward wrappers. Other wrappers among them have no scorer to ask.
        samples, ids: the evaluated samples, and which of them.
        evaluations: the evaluations, all of the same samples.
    """
    replies = [reply for evaluation in evaluations for reply in evaluation.replies]
    copies = len(evaluations)
    texts = (evaluations[0].prompts * copies, replies, evaluations[0].references * copies)
    episodes = Episodes.from_texts(samples, *texts, np.tile(samples.acts[ids], copies))
    rewards = np.zeros(len(replies))
    while envs is not envs.unwrapped:
        if isinstance(envs, ScoreReward) and not isinstance(envs, KLPenalty):
            # The credits of a reply's tokens sum to its score
            scorer = envs.scorer.scorer if isinstance(envs.scorer, TokenCredit) else envs.scorer
            rewards = add_score(scorer, envs.weight, envs.name, episodes, rewards, {})[0]
        envs = envs.env
    return np.split(rewards, copies)


def side_by_side(before: Evaluation, after: Evaluation, count: int = 40) -> list[dict[str, Any]]:
    """Some contexts, as lists of utterances, each with a reply before, one after, and that of people.

    They are different contexts, spread evenly over the evaluated dialogues. ``"rewards"`` are those of the replies
    before and after.

    Args:
        before, after: the evaluations, with rewards.
        count: the largest number of contexts.
    """
    first = np.sort(np.unique(before.prompts, return_index=True)[1])
    chosen = first[np.linspace(0, len(first) - 1, min(count, len(first))).round().astype(int)]
    return [
        {
            "context": split_prompt(before.prompts[i]),
            "before": before.replies[i],
            "after": after.replies[i],
            "people": before.references[i],
            "rewards": [round(float(evaluation.by_reply["reward"][i]), 4) for evaluation in (before, after)],
        }
        for i in chosen
    ]


def markdown_samples(samples: list[dict[str, Any]]) -> str:
    """The samples of `side_by_side` as Markdown: the context is a quote, and each reply is an item of a list."""
    lines = ["# Replies before and after training\n"]
    for sample in samples:
        lines += [f"> {utterance}\n>" for utterance in sample["context"]]
        lines += ["", *(f"- {who}: {sample[who]}" for who in WHO), ""]
    return "\n".join(lines)
