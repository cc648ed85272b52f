"""The replies before and after training, side by side: as data and for people."""

from __future__ import annotations

from typing import Any

from dailydialog_gym.env.tokenizer import split_prompt
from dailydialog_gym.evaluate.evaluation import Evaluation


def side_by_side(before: Evaluation, after: Evaluation) -> list[dict[str, Any]]:
    """The first 20 contexts, as lists of utterances, each with the three replies to it."""
    columns = (before.prompts, before.replies, after.replies, before.references)
    return [
        {
            "context": split_prompt(prompt),
            "before": old,
            "after": new,
            "people": reference,
        }
        for prompt, old, new, reference in list(zip(*columns, strict=True))[:20]
    ]


def markdown_samples(samples: list[dict[str, Any]]) -> str:
    """The samples of `side_by_side` as Markdown: the context is a quote, and each reply is an item of a list."""
    lines = ["# Replies before and after training\n"]
    for sample in samples:
        lines += [f"> {utterance}\n>" for utterance in sample["context"]]
        lines += ["", *(f"- {who}: {sample[who]}" for who in ("before", "after", "people")), ""]
    return "\n".join(lines)
