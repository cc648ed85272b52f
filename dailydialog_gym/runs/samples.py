"""The replies before and after training, side by side: as data and for people."""

from __future__ import annotations

from typing import Any

import numpy as np

from dailydialog_gym.env.tokenizer import split_prompt
from dailydialog_gym.evaluate.evaluation import Evaluation
from dailydialog_gym.reports.intervals import bootstrap_difference

WHO = ("before", "after", "people")


def side_by_side(before: Evaluation, after: Evaluation, count: int = 40) -> list[dict[str, Any]]:
    """Some contexts, as lists of utterances, each with a reply before, one after, and that of people.

    They are different contexts, spread evenly over the evaluated dialogues. ``"change"`` is by how much the measures of
    single replies, METEOR and where there are acts intent, rose together.

    Args:
        before, after: the evaluations.
        count: the largest number of contexts.
    """
    first = np.sort(np.unique(before.prompts, return_index=True)[1])
    chosen = first[np.linspace(0, len(first) - 1, min(count, len(first))).round().astype(int)]
    change = np.sum([np.subtract(after.by_reply[name], before.by_reply[name]) for name in before.by_reply], axis=0)
    return [
        {
            "context": split_prompt(before.prompts[i]),
            "before": before.replies[i],
            "after": after.replies[i],
            "people": before.references[i],
            "change": round(float(change[i]), 4),
        }
        for i in chosen
    ]


def intervals(before: Evaluation, after: Evaluation) -> dict[str, list[float]]:
    """The 95% intervals of the changes of the measures that are means over replies, by bootstrap."""
    names = before.by_reply.keys()
    return {name: [*bootstrap_difference(before.by_reply[name], after.by_reply[name])] for name in names}


def markdown_samples(samples: list[dict[str, Any]]) -> str:
    """The samples of `side_by_side` as Markdown: the context is a quote, and each reply is an item of a list."""
    lines = ["# Replies before and after training\n"]
    for sample in samples:
        lines += [f"> {utterance}\n>" for utterance in sample["context"]]
        lines += ["", *(f"- {who}: {sample[who]}" for who in WHO), ""]
    return "\n".join(lines)
