"""The adaptive KL penalty, apart from the reference model: who drew which token how probably, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from gymnasium.spaces import Box, Dict, Space

from dailydialog_gym.env.mdp import TokenMDP
from dailydialog_gym.rewards.coefficients import Coefficient
from dailydialog_gym.rewards.episodes import Episodes, Scorer, pay


def add_log_prob(token_space: Space) -> Dict:
    """The action space of an agent that says which log-probability it gives its token(s)."""
    return Dict({"token": token_space, "log_prob": Box(-np.inf, 0.0, token_space.shape, np.float32)})


class KLLedger:
    """Books the log-probabilities of ``num_envs`` rows' tokens, and pays for the divergence when episodes end."""

    def __init__(
        self,
        scorer: Scorer,
        coefficient: Coefficient,
        estimator: Literal["k1", "k3"],
        num_envs: int,
        max_new_tokens: int,
    ):
        if estimator not in ("k1", "k3"):
            raise ValueError(f"the estimator of the logged KL is 'k1' or 'k3', got {estimator!r}")
        self.scorer = scorer
        self.estimator = estimator
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
        log_ratios = self.scorer(episodes)
        rewards, extra = pay(lambda _: log_ratios, -coef, "kl", episodes, rewards, info)
        kl, tokens = extra["reward/kl"], episodes.reply_mask.sum(1)
        self.coefficient.observe(kl, tokens, every=len(self._log_probs))
        extra["log_probs"] = log_probs
        logged = kl if self.estimator == "k1" else _k3(log_ratios, episodes.reply_mask)
        extra["metric/kl_per_token"] = logged / tokens
        extra["metric/kl_coef"] = np.full(len(rows), coef)
        return rewards, extra


def _k3(log_ratios: np.ndarray, reply_mask: np.ndarray) -> np.ndarray:
    """``(n,)``, Schulman's estimate of the KL divergence, which is never negative (joschu.net/blog/kl-approx.html)."""
    if np.shape(log_ratios) != reply_mask.shape:
        raise ValueError(f"k3 needs a score for each token, {reply_mask.shape}, got {np.shape(log_ratios)}")
    return np.where(reply_mask, np.expm1(-log_ratios) + log_ratios, 0.0).sum(1)
