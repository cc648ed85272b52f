"""The adaptive KL penalty, apart from the reference model: who drew which token how probably, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Space

from dailydialog_gym.core import TokenMDP
from dailydialog_gym.rewards.episodes import Episodes, Scorer, pay


def add_log_prob(token_space: Space) -> Dict:
    """The action space of an agent that says with which log-probability it drew its token(s)."""
    return Dict({"token": token_space, "log_prob": Box(-np.inf, 0.0, token_space.shape, np.float32)})


class AdaptiveCoefficient:
    """OpenRL's rule: ``coef <- coef * (1 + rate * clip((kl - target) / target, -clip, clip))``.

    It moves once for every ``num_envs`` finished episodes, by their mean divergence a token.

    Args:
        coef: its first value.
        target: the KL divergence a token, in nats, at which it stays as it is.
        rate, clip: how fast it moves; ``rate=0`` keeps it fixed.
    """

    def __init__(self, coef: float, target: float, rate: float, clip: float):
        if not (coef >= 0 and target > 0):
            raise ValueError(f"expected coef >= 0 and target > 0, got coef {coef} and target {target}")
        self.value, self.target, self.rate, self.clip = coef, target, rate, clip
        self._episodes, self._kl, self._tokens = 0, 0.0, 0

    def observe(self, kl: np.ndarray, tokens: np.ndarray, every: int) -> None:
        """Count finished episodes: their KL divergences and numbers of tokens, ``(n,)``; move after each ``every``."""
        self._episodes += len(kl)
        self._kl += kl.sum()
        self._tokens += tokens.sum()
        if self._episodes >= every:
            error = np.clip((self._kl / self._tokens - self.target) / self.target, -self.clip, self.clip)
            self.value = float(self.value * (1 + self.rate * error))
            self._episodes, self._kl, self._tokens = 0, 0.0, 0

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps: the value, and what was counted since it last moved."""
        return {
            "value": self.value,
            "episodes": self._episodes,
            "kl": float(self._kl),
            "tokens": int(self._tokens),
        }

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Go on from an earlier `state_dict`."""
        self.value, self._episodes, self._kl, self._tokens = (
            state_dict[key] for key in ("value", "episodes", "kl", "tokens")
        )


class KLLedger:
    """Books the log-probabilities of ``num_envs`` rows' tokens, and pays for the divergence when episodes end."""

    def __init__(self, scorer: Scorer, coefficient: AdaptiveCoefficient, num_envs: int, max_new_tokens: int):
        self.scorer = scorer
        self.coefficient = coefficient
        self._log_probs = np.zeros((num_envs, max_new_tokens))

    def record(self, mdp: TokenMDP, action: dict[str, np.ndarray]) -> np.ndarray:
        """Book an action before it is taken, the batch's or a single environment's; idle rows' don't count.

        Returns:
            ``(num_envs,)``, the action's tokens.

        Raises:
            ValueError: the action is not of ``token`` and ``log_prob``, not one a row, or a log-probability is
                positive, infinite or NaN.
        """
        if not isinstance(action, dict) or action.keys() != {"token", "log_prob"}:
            raise ValueError(f"under KLPenalty an action is {{'token': ..., 'log_prob': ...}}, got {action!r}")
        rows = mdp.live.nonzero()[0]
        log_probs = np.atleast_1d(action["log_prob"])
        if log_probs.shape != mdp.live.shape:
            raise ValueError(f"expected {len(mdp.live)} log-probabilities, got an array of shape {log_probs.shape}")
        log_probs = log_probs[rows]
        # Rounding may lift the logarithm of 1 a little; NaN compares false
        wrong = ~((log_probs > -np.inf) & (log_probs <= 1e-4))
        if wrong.any():
            raise ValueError(
                f"row {rows[wrong][0]}: a drawn token's log-probability is a finite number of at most 0, got "
                f"{log_probs[wrong][0]}"
            )
        self._log_probs[rows, mdp.reply_lengths[rows]] = log_probs
        return np.atleast_1d(action["token"])

    def pay(self, rows: np.ndarray, episodes: Episodes, rewards: np.ndarray, info: dict[str, Any]):
        """As `dailydialog_gym.rewards.pay`, for the episodes that ended in ``rows``."""
        log_probs = np.where(episodes.reply_mask, self._log_probs[rows], 0.0)
        episodes = replace(episodes, log_probs=log_probs)
        coef = self.coefficient.value
        rewards, extra = pay(self.scorer, -coef, "kl", episodes, rewards, info)
        kl, tokens = extra["reward/kl"], episodes.reply_mask.sum(1)
        self.coefficient.observe(kl, tokens, every=len(self._log_probs))
        extra["log_probs"] = log_probs
        extra["metric/kl_per_token"] = kl / tokens
        extra["metric/kl_coef"] = np.full(len(rows), coef)
        return rewards, extra
