"""`Episodes`, the input of every scorer, and `add_score`, which adds a scorer's weighted scores to the rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from dailydialog_gym.env.samples import Samples, left_pad


@dataclass(frozen=True)
class Episodes:
    """A batch of ``n`` finished episodes.

    Attributes:
        prompts: ``n`` texts, the contexts.
        responses: ``n`` texts, the agent's replies.
        references: ``n`` texts, the reference replies, or None where there is none, see `DailyDialogTextEnv`.
        intents: ``(n,)`` int64, the act that each reply should have (1 inform, 2 question, 3 directive, 4 commissive;
            0 where the dialogues have none).
        input_ids, attention_mask: ``(n, max_prompt_length + max_new_tokens)`` int64, the last observations.
        max_new_tokens: the number of columns of the replies, which are the last columns of ``input_ids``.
        log_probs: ``(n, max_new_tokens)`` float, the agent's log-probability of each reply token, and 0 after the end
            of the reply. None if the environment is not wrapped in `KLPenalty`.
    """

    prompts: list[str]
    responses: list[str]
    references: list[str | None]
    intents: np.ndarray
    input_ids: np.ndarray
    attention_mask: np.ndarray
    max_new_tokens: int
    log_probs: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def reply_ids(self) -> np.ndarray:
        """``(n, max_new_tokens)`` int64, the tokens of the replies. Columns where `reply_mask` is False are padding."""
        return self.input_ids[:, -self.max_new_tokens :]

    @property
    def reply_mask(self) -> np.ndarray:
        """``(n, max_new_tokens)`` bool, True for the tokens of the reply, including the token that ends it."""
        return self.attention_mask[:, -self.max_new_tokens :].astype(np.bool_)

    @classmethod
    def from_info(cls, tokens: dict[str, Any], info: dict[str, Any], max_new_tokens: int) -> Episodes:
        """Make a batch from final infos, whose values have one entry per episode.

        Args:
            tokens: ``input_ids`` and ``attention_mask``: the last observations, or the infos of the text environment.
            info: the final infos.
            max_new_tokens: the number of columns of the replies.

        Raises:
            ValueError: another wrapper truncated an episode, so the info has no reply.
        """
        if "response" not in info:
            raise ValueError(
                "a wrapper such as TimeLimit truncated an episode before its reply ended: set max_new_tokens of the "
                "environment to limit replies"
            )
        return cls(
            prompts=list(info["prompt"]),
            responses=list(info["response"]),
            references=list(info["reference"]),
            intents=np.asarray(info["intent"]),
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            max_new_tokens=max_new_tokens,
            log_probs=np.asarray(info["log_probs"]) if "log_probs" in info else None,
        )

    @classmethod
    def from_texts(
        cls,
        samples: Samples,
        prompts: Sequence[str],
        responses: Sequence[str],
        references: Sequence[str | None],
        intents: ArrayLike,
    ) -> Episodes:
        """Make a batch from ``n`` texts each, and the acts, ``(n,)``; the samples' tokenizer makes the tokens."""
        tokenizer = samples.tokenizer
        prompt_ids, prompt_mask = left_pad(tokenizer, prompts, samples.prompt_ids.shape[1])
        encoded = tokenizer.encode_replies(responses)
        lengths = np.array([len(ids) for ids in encoded])
        reply_mask = np.arange(lengths.max()) < lengths[:, None]
        reply_ids = np.full(reply_mask.shape, tokenizer.pad_id)
        reply_ids[reply_mask] = np.concatenate(encoded)
        return cls(
            prompts=list(prompts),
            responses=list(responses),
            references=list(references),
            intents=np.asarray(intents),
            input_ids=np.concatenate([prompt_ids, reply_ids], axis=1).astype(np.int64),
            attention_mask=np.concatenate([prompt_mask, reply_mask], axis=1).astype(np.int64),
            max_new_tokens=reply_mask.shape[1],
        )


class Scores(NamedTuple):
    """What a scorer returns whose rewards have another scale than what is logged, each as `Scorer` describes.

    Attributes:
        raw: the scores that ``reward/<name>`` reports.
        scaled: the scores that the rewards contain, times the weight.
    """

    raw: np.ndarray
    scaled: np.ndarray


class Scorer(Protocol):
    """A callable that returns ``(n,)`` scores, one per episode, or ``(n, max_new_tokens)`` scores, one per token."""

    def __call__(self, episodes: Episodes) -> np.ndarray | Scores: ...


def add_score(
    scorer: Scorer, weight: float, name: str, episodes: Episodes, rewards: np.ndarray, info: dict[str, Any]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Score finished episodes, and add ``weight * score`` to the rewards of their last steps.

    Args:
        scorer: the scorer, which is called once.
        weight: the factor of the scores.
        name: the name of the score in the infos.
        episodes: the ``n`` episodes.
        rewards: ``(n,)``, the rewards of the last steps from the environment and the wrappers further inside.
        info: the final infos of the episodes, each value with one entry per episode.

    Returns:
        rewards: ``(n,)``, the new rewards.
        new_info: the entries to add to the final infos.

            - ``reward/<name>``: ``(n,)``, the scores without the weight; of `Scores` the raw ones. Scores per token are
              summed over the reply.
            - ``token_rewards/<name>``: ``(n, max_new_tokens)``, the weighted scores by token.
            - ``token_rewards``: ``(n, max_new_tokens)``, the distribution of the rewards over the reply's tokens. A
              score of a whole reply belongs to its last token, and so does reward that was not added by this function.
              The sum over a row is the episode's reward.

    Raises:
        ValueError: the scores have a wrong shape, or the score of a reply or of one of its tokens is not a finite
            number. The message names the scorer.
    """
    mask, last_token = episodes.reply_mask, episodes.reply_mask.sum(1) - 1
    scores = scorer(episodes)
    raw, scaled = scores if isinstance(scores, Scores) else (scores, scores)
    weighted = weight * by_token(scaled, weight, name, episodes)
    token_rewards = np.array(info.get("token_rewards", np.zeros(mask.shape)))
    token_rewards[np.arange(len(episodes)), last_token] += rewards - token_rewards.sum(1)
    token_rewards += weighted
    raw = by_token(raw, 1.0, name, episodes).sum(1)
    new_info = {f"reward/{name}": raw, f"token_rewards/{name}": weighted, "token_rewards": token_rewards}
    return token_rewards.sum(1), new_info


def by_token(scores: Any, weight: float, name: str, episodes: Episodes) -> np.ndarray:
    """``(n, max_new_tokens)``: a scorer's scores without the weight; a score of a whole reply is its last token's.

    Args:
        scores: what the scorer returned.
        weight: only for the check that each weighted score is finite.
        name: the scorer's name in error messages.
        episodes: the episodes that were scored.

    Raises:
        ValueError: the scores are no numbers or have a wrong shape, or a weighted score is not finite.
    """
    mask = episodes.reply_mask
    try:
        scores = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"scorer {name!r} did not return an array of numbers: {error}") from error
    if scores.shape not in ((len(episodes),), mask.shape):
        raise ValueError(
            f"scorer {name!r} returned shape {scores.shape}: expected ({len(episodes)},), one score per episode, or "
            f"{mask.shape}, one score per token"
        )
    result = np.zeros(mask.shape)
    if scores.ndim == 1:
        result[np.arange(len(episodes)), mask.sum(1) - 1] = scores
    else:
        result[mask] = scores[mask]
    not_finite = ~np.isfinite(weight * result).all(1)
    if not_finite.any():
        row = not_finite.argmax()
        raise ValueError(
            f"scorer {name!r} with weight {weight} returned {scores[row]} for the reply {episodes.responses[row]!r}: "
            "expected finite numbers"
        )
    return result
