"""A model's replies to some samples, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.env.samples import Samples
from dailydialog_gym.env.tokenizer import EOU
from dailydialog_gym.evaluate.metrics import score_replies, score_with_marker
from dailydialog_gym.rewards.intent import IntentMatch
from dailydialog_gym.rewards.meteor import meteor

PLAIN = (
    "SacreBLEU in [0, 100], Length in words, the others in [0, 1]; METEOR is NLTK's (exact, stem and synonym matches)."
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
        keep_eou: score as RL4LMs and OpenRL do, see `dailydialog_gym.evaluate.metrics.score_with_marker`.
        decoding: as in `DialogueAgent.reply`.

    Attributes:
        prompts, references, replies: the texts.
        scores: by measure, the score of all replies.
        by_reply: by measure that judges single replies, ``meteor`` and ``intent``, a list of ``n`` scores.
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
        if keep_eou:
            self.scores = score_with_marker(self.replies, self.references, ended)
        else:
            self.scores = score_replies(self.replies, self.references)
        pairs = zip(self.replies, self.references, strict=True)
        self.by_reply = {"meteor": [meteor(*pair) for pair in pairs]}
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
            self.by_reply["intent"] = [by_row.get(row, 0.0) for row in range(len(ids))]  # 0 in a context without acts
            ceiling = intent.match(prompts, references, acts[rows]).mean()
            self.manner += f" The intent model finds the act of {ceiling:.1%} of the reference replies."

    @classmethod
    def restore(cls, attributes: dict[str, Any]) -> Evaluation:
        """An earlier evaluation from its ``vars()``, as a checkpoint holds them; KeyError where one is missing."""
        evaluation = cls.__new__(cls)
        names = ("prompts", "references", "replies", "scores", "by_reply", "manner")
        vars(evaluation).update({name: attributes[name] for name in names})
        return evaluation
