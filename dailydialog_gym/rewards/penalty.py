"""The part of `KLPenalty` that the single and the vector wrapper share: log-probabilities, penalty, coefficient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Space

from dailydialog_gym.env.mdp import TokenMDP
from dailydialog_gym.rewards.coefficients import Coefficient
from dailydialog_gym.rewards.episodes import Episodes, Scorer, add_score, by_token


def add_log_prob(token_space: Space[Any]) -> Dict:
    """The action space whose actions are a token (or a batch of tokens) and the agent's log-probability of it.

    Raises:
        TypeError: the actions of ``token_space`` are no tokens.
    """
    if not isinstance(token_space, Discrete | MultiDiscrete):
        raise TypeError("KLPenalty needs an environment whose actions are tokens: wrap DailyDialog-v0 once")
    return Dict({"token": token_space, "log_prob": Box(-np.inf, 0.0, token_space.shape, np.float32)})


class KLTracker:
    """Records the log-probabilities of the actions, and adds the KL penalty to the rewards when episodes end.

    Args:
        scorer: the log-ratios of policy to reference, ``(n, max_new_tokens)``, see `KLDivergence`.
        coefficient: the coefficient of the penalty. It is updated once per ``num_envs`` finished episodes.
        estimator: the estimator of ``metric/kl_per_token``. The penalty itself always uses k1, the log-ratio.
        num_envs: the number of rows.
        max_new_tokens: the maximum number of tokens of a reply.

    Raises:
        ValueError: the estimator is unknown.
    """

    def __init__(
        self,
        scorer: Scorer,
        coefficient: Coefficient,
        estimator: Literal["k1", "k3"],
        num_envs: int,
        max_new_tokens: int,
    ):
        if estimator not in ("k1", "k3"):
            raise ValueError(f"estimator must be 'k1' or 'k3', got {estimator!r}")
        self.scorer = scorer
        self.estimator = estimator
        self.coefficient = coefficient
        self._log_probs = np.zeros((num_envs, max_new_tokens))

    def record(self, mdp: TokenMDP, action: dict[str, np.ndarray]) -> np.ndarray:
        """Record the log-probabilities of an action before the environment takes it.

        Args:
            mdp: the environment's MDP. Only its live rows are recorded.
            action: ``token`` and ``log_prob``, each ``(num_envs,)``, or two scalars in the single environment.

        Returns:
            ``(num_envs,)``, the action's tokens.

        Raises:
            ValueError: the action has other keys, the number of log-probabilities is wrong, or a log-probability is
                positive, infinite or NaN.
        """
        rows = mdp.live.nonzero()[0]
        tokens, log_probs = _parts(action, mdp.live.shape)
        _check(log_probs[rows, None], rows)
        self._log_probs[rows, mdp.reply_lengths[rows]] = log_probs[rows]
        return tokens

    def record_replies(self, actions: dict[str, np.ndarray]) -> np.ndarray:
        """`record` for whole replies.

        Args:
            actions: ``token`` and ``log_prob``, each ``(num_envs, max_new_tokens)``. What follows the end of a reply is
                ignored, but must be finite.

        Returns:
            ``(num_envs, max_new_tokens)``, the tokens.
        """
        tokens, log_probs = _parts(actions, self._log_probs.shape)
        _check(log_probs, np.arange(len(log_probs)))
        self._log_probs[:] = log_probs
        return tokens

    def add_penalty(
        self, rows: np.ndarray, episodes: Episodes, rewards: np.ndarray, info: dict[str, Any]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Like `dailydialog_gym.rewards.add_score`, for the episodes that have just ended in ``rows``.

        The penalty uses the coefficient from before these episodes. They update it afterwards.
        """
        log_probs = np.where(episodes.reply_mask, self._log_probs[rows], 0.0)
        episodes = replace(episodes, log_probs=log_probs)
        coef = self.coefficient.value
        log_ratios = self.scorer(episodes)
        rewards, new_info = add_score(lambda _: log_ratios, -coef, "kl", episodes, rewards, info)
        kl, tokens = new_info["reward/kl"], episodes.reply_mask.sum(1)
        self.coefficient.update(kl, tokens, episodes_per_update=len(self._log_probs))
        new_info["log_probs"] = log_probs
        new_info["ref_log_probs"] = log_probs - by_token(log_ratios, 1.0, "kl", episodes)
        logged_kl = kl if self.estimator == "k1" else _k3(np.asarray(log_ratios), episodes.reply_mask)
        new_info["metric/kl_per_token"] = logged_kl / tokens
        new_info["metric/kl_coef"] = np.full(len(rows), coef)
        return rewards, new_info


def _parts(action: dict[str, np.ndarray], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The tokens and the log-probabilities of an action."""
    if not isinstance(action, dict) or action.keys() != {"token", "log_prob"}:
        raise ValueError(f"KLPenalty expects an action {{'token': ..., 'log_prob': ...}}, got {action!r}")
    tokens, log_probs = (np.atleast_1d(action[name]) for name in ("token", "log_prob"))
    if log_probs.shape != shape:
        raise ValueError(f"expected log-probabilities of shape {shape}, got an array of shape {log_probs.shape}")
    return tokens, log_probs


def _check(log_probs: np.ndarray, rows: np.ndarray) -> None:
    """Refuse what cannot be the log-probability of a sampled token, ``(n, tokens)`` of the given rows."""
    # Rounding errors may make the log-probability of a certain token slightly positive. NaN compares as False.
    invalid = ~((log_probs > -np.inf) & (log_probs <= 1e-4))
    if invalid.any():
        row, column = np.argwhere(invalid)[0]
        raise ValueError(
            f"row {rows[row]}: the log-probability of a sampled token must be a finite number of at most 0, "
            f"got {log_probs[row, column]}"
        )


def _k3(log_ratios: np.ndarray, reply_mask: np.ndarray) -> np.ndarray:
    """``(n,)``, Schulman's k3 estimate of the KL divergence per reply: ``sum_t exp(-r_t) - 1 + r_t``.

    ``r_t`` is the log-ratio of token ``t``. The estimate is never negative (http://joschu.net/blog/kl-approx.html).
    """
    if np.shape(log_ratios) != reply_mask.shape:
        raise ValueError(
            f"k3 needs a score for each token: expected shape {reply_mask.shape}, got {np.shape(log_ratios)}"
        )
    return np.where(reply_mask, np.expm1(-log_ratios) + log_ratios, 0.0).sum(1)
