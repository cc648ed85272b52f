"""What a scorer sees, and how what it says is paid: the one mechanism behind every reward wrapper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Episodes:
    """``n`` finished episodes.

    Attributes:
        prompts, responses, references: ``n`` texts each: the context, the agent's reply, what people answered.
        intents: ``(n,)`` int64, the act that the reply should have (1 inform, 2 question, 3 directive, 4 commissive).
        input_ids, attention_mask: ``(n, max_prompt_length + max_new_tokens)`` int64, the last observations.
        max_new_tokens: the reply stands in the last ``max_new_tokens`` columns.
        log_probs: ``(n, max_new_tokens)`` float, the log-probability that the agent gave each token, 0 after
            the reply's end; None where the agent didn't say.
    """

    prompts: list[str]
    responses: list[str]
    references: list[str]
    intents: np.ndarray
    input_ids: np.ndarray
    attention_mask: np.ndarray
    max_new_tokens: int
    log_probs: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def reply_ids(self) -> np.ndarray:
        """``(n, max_new_tokens)``, meaningful where `reply_mask` is True."""
        return self.input_ids[:, -self.max_new_tokens :]

    @property
    def reply_mask(self) -> np.ndarray:
        """``(n, max_new_tokens)`` bool, the tokens that the agent wrote, the end of utterance included."""
        return self.attention_mask[:, -self.max_new_tokens :].astype(np.bool_)

    @classmethod
    def from_info(cls, observation: dict[str, np.ndarray], info: dict[str, Any], max_new_tokens: int) -> Episodes:
        """From batched last observations and final infos, each value with one entry for every episode.

        Raises:
            ValueError: an episode was ended by another wrapper, so that it has no reply.
        """
        if "response" not in info:
            raise ValueError(
                "an episode ended without a reply, cut short by a wrapper such as TimeLimit: set max_new_tokens of the "
                "environment instead"
            )
        return cls(
            prompts=list(info["prompt"]),
            responses=list(info["response"]),
            references=list(info["reference"]),
            intents=np.asarray(info["intent"]),
            input_ids=observation["input_ids"],
            attention_mask=observation["attention_mask"],
            max_new_tokens=max_new_tokens,
            log_probs=np.asarray(info["log_probs"]) if "log_probs" in info else None,
        )


class Scorer(Protocol):
    """Any callable from ``n`` episodes to ``(n,)`` scores, or to ``(n, max_new_tokens)`` scores, one for each token."""

    def __call__(self, episodes: Episodes) -> np.ndarray: ...


def pay(
    scorer: Scorer, weight: float, name: str, episodes: Episodes, rewards: np.ndarray, info: dict[str, Any]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Score finished episodes and add ``weight * score`` to their rewards.

    Args:
        rewards: ``(n,)``, what the episodes earn in their last step so far.
        info: their final infos so far, batched.

    Returns:
        the new ``(n,)`` rewards, and what to add to the final infos: ``reward/<name>``, ``(n,)``, the raw scores (the
        sum of those given by token), and ``token_rewards``, ``(n, max_new_tokens)``, which sums to the reward. A score
        of the whole reply stands on its last token, as does reward from elsewhere.

    Raises:
        ValueError: another scorer of the stack has the same name, or the scores have the wrong shape or, where there
            are tokens, aren't finite numbers; the message names the scorer.
    """
    if f"reward/{name}" in info:
        raise ValueError(f"two scorers are named {name!r}: give each ScoreReward a name of its own")
    mask, rows = episodes.reply_mask, np.arange(len(episodes))
    last_token = mask.sum(1) - 1
    scores = scorer(episodes)
    try:
        scores = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"scorer {name!r} returned no array of numbers: {error}") from error
    if scores.shape not in ((len(episodes),), mask.shape):
        raise ValueError(
            f"scorer {name!r} returned shape {scores.shape}: expected ({len(episodes)},), one score for each episode, "
            f"or {mask.shape}, one for each token"
        )
    by_token = np.zeros(mask.shape)
    if scores.ndim == 1:
        by_token[rows, last_token] = scores
    else:
        by_token[mask] = scores[mask]
    paid = weight * by_token
    wrong = ~np.isfinite(paid).all(1)
    if wrong.any():
        row = wrong.argmax()
        raise ValueError(
            f"scorer {name!r} of weight {weight} returned {scores[row]} for the reply {episodes.responses[row]!r}: "
            "expected finite numbers"
        )
    token_rewards = np.array(info.get("token_rewards", np.zeros(mask.shape)))
    token_rewards[rows, last_token] += rewards - token_rewards.sum(1)
    token_rewards += paid
    return token_rewards.sum(1), {f"reward/{name}": by_token.sum(1), "token_rewards": token_rewards}
