"""A model's replies to some samples, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.env.samples import Samples
from dailydialog_gym.env.tokenizer import EOU
from dailydialog_gym.evaluate.metrics import bleu, judge_replies, judge_with_marker, summary, variety
from dailydialog_gym.reports.intervals import bootstrap_means
from dailydialog_gym.rewards.intent import IntentMatch

PLAIN = (
    "SacreBLEU in [0, 100], Length in words, a run's Reward in its own units, the others in [0, 1]; METEOR is "
    "NLTK's (exact, stem and synonym matches)."
)
PUBLISHED = (
    f"Replies and references are scored with their {EOU}, as RL4LMs and OpenRL do: METEOR by exact and stem matches, "
    "SacreBLEU of the intl tokenizer divided by 100."
)


def evenly_spread(samples: Samples, count: int) -> np.ndarray:
    """``count`` sample ids spread evenly over a split, 0 for all of them once.

    A larger count than there are samples answers some of them several times, for less noise where replies are drawn.

    Raises:
        ValueError: the count is negative.
    """
    if count < 0:
        raise ValueError(f"the number of replies to evaluate must be at least 0, got {count}")
    count = count or len(samples)
    return np.arange(count) * len(samples) // count


class FixedReplies:
    """An agent for `Evaluation` whose replies are given."""

    def __init__(self, replies: Sequence[str]):
        self.replies = replies

    def reply(self, prompts: Sequence[str], end: str = "", **decoding: Any) -> list[str]:
        """The given replies, one for each prompt, each with ``end``."""
        return [text + end for text in self.replies]


class Evaluation:
    """A model's replies to some samples and their scores.

    Args:
        agent: the model.
        samples, ids: the samples, and which of them.
        intent: judges whether replies have the acts that the reference replies have. None, or samples without acts,
            leave the score ``"intent"`` out.
        keep_eou: score as RL4LMs and OpenRL do, see `dailydialog_gym.evaluate.metrics.judge_with_marker`.
        decoding: as in `DialogueAgent.reply`.

    Attributes:
        prompts, references, replies: the texts.
        scores: by measure, the score of all replies.
        by_reply: by measure that single replies have, ``n`` numbers, or ``n`` lists of them (``sacrebleu``), see
            `dailydialog_gym.evaluate.metrics.judge_replies`. NaN is the intent of a reply that should have no act.
        bleu_unit: the factor of SacreBLEU in the scores.
        manner: how the replies were made and scored, in words.
    """

    def __init__(
        self,
        agent: DialogueAgent | FixedReplies,
        samples: Samples,
        ids: np.ndarray,
        intent: IntentMatch | None,
        keep_eou: bool = False,
        **decoding: Any,
    ):
        self.prompts, self.references = ([column[i] for i in ids] for column in (samples.prompts, samples.references))
        marked = agent.reply(self.prompts, end=EOU, **decoding)
        self.replies, ended = [text.removesuffix(EOU) for text in marked], [text.endswith(EOU) for text in marked]
        texts = self.replies, self.references
        self.by_reply = judge_with_marker(*texts, ended) if keep_eou else judge_replies(*texts)
        self.scores = summary(self.by_reply) | variety(*texts)
        self.bleu_unit = 0.01 if keep_eou else 1.0
        self.scores["sacrebleu"] *= self.bleu_unit
        self.by_reply["length"] = [len(text.split()) for text in self.replies]
        drawing = f"sampled, top-k {decoding.get('top_k') or 'all'}" if decoding.get("sample") else "greedy"
        if decoding.get("min_new_tokens"):
            drawing += f", at least {decoding['min_new_tokens']} tokens"
        protocol = PUBLISHED if keep_eou else PLAIN
        self.manner = (
            f"{len(ids):,} replies to {len(set(ids.tolist())):,} contexts of {samples.source[0]}, "
            f"{samples.source[1]}; {drawing}. {protocol}"
        )
        acts = samples.acts[ids]
        if intent and acts.any():
            rows = acts.nonzero()[0]
            prompts, replies, references = ([c[i] for i in rows] for c in (self.prompts, self.replies, self.references))
            matches = intent.match(prompts, replies, acts[rows])
            self.scores["intent"] = float(matches.mean())
            by_row = dict(zip(rows.tolist(), matches.tolist(), strict=True))
            self.by_reply["intent"] = [by_row.get(row, float("nan")) for row in range(len(ids))]
            ceiling = intent.match(prompts, references, acts[rows]).mean()
            self.manner += f" The intent model finds the act of {ceiling:.1%} of the reference replies."

    @classmethod
    def restore(cls, attributes: dict[str, Any]) -> Evaluation:
        """An earlier evaluation from its ``vars()``, as a checkpoint holds them; KeyError where one is missing."""
        evaluation = cls.__new__(cls)
        names = ("prompts", "references", "replies", "scores", "by_reply", "bleu_unit", "manner")
        vars(evaluation).update({name: attributes[name] for name in names})
        return evaluation


def change_intervals(before: Evaluation, after: Evaluation) -> dict[str, list[float]]:
    """By measure, the 95% interval of its change between two evaluations of the same contexts.

    By the percentile bootstrap over the contexts, each with all of its replies. Distinct-1, distinct-2 and unique have
    none: a sample with replacement repeats replies, so it has less variety than the replies themselves.
    """
    names = list(before.by_reply)
    columns = [evaluation.by_reply[name] for evaluation in (before, after) for name in names]
    means = bootstrap_means(columns, before.prompts)  # (resamples,) each, (resamples, 10) of SacreBLEU
    changes = {}
    for name, old, new in zip(names, means[: len(names)], means[len(names) :], strict=True):
        if name == "sacrebleu":
            sums = (len(columns[0]) * each for each in (old, new))
            old, new = (after.bleu_unit * np.apply_along_axis(bleu, 1, each) for each in sums)
        changes[name] = np.nanquantile(new - old, [0.025, 0.975]).tolist()
    return changes
