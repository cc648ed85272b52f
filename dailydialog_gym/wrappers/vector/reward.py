"""Reward wrappers for `DailyDialogVectorEnv`. They call a scorer once for all episodes that end in the same step."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from dailydialog_gym.env.envs import DailyDialogVectorEnv
from dailydialog_gym.rewards import Episodes, Meteor, Scorer, TokenCredit, add_score
from dailydialog_gym.rewards.coefficients import AdaptiveCoefficient, Coefficient
from dailydialog_gym.rewards.penalty import KLTracker, add_log_prob
from dailydialog_gym.wrappers.reward import check_name


class ScoreReward(VectorWrapper):
    """The vector version of `dailydialog_gym.wrappers.ScoreReward`.

    The values of the infos are arrays with one entry per row. In ``SAME_STEP`` autoreset mode, the new keys are in
    ``final_info``.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], scorer: Scorer, weight: float = 1.0, name: str = "score"):
        super().__init__(env)
        base = env.unwrapped
        if not isinstance(base, DailyDialogVectorEnv):
            raise TypeError(
                f"vector.{type(self).__name__} wraps a DailyDialogVectorEnv, got {env.unwrapped}: wrap the single "
                f"environments of other vector environments in dailydialog_gym.wrappers.{type(self).__name__}"
            )
        check_name(name, env, ScoreReward)
        self._base = base
        self.scorer, self.weight, self.name = scorer, weight, name

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """The environment's `step`, with the weighted scores of the replies that it ends in their rewards and infos.

        Raises:
            ValueError: the scores are no finite numbers, see `dailydialog_gym.rewards.add_score`.
        """
        return self._add_rewards(*self.env.step(actions))

    def replay(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """`step` for whole replies, see `dailydialog_gym.env.DailyDialogVectorEnv.replay`."""
        return self._add_rewards(*replay(self.env, actions))

    def _add_rewards(
        self,
        observations: Any,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        infos: dict[str, Any],
    ) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        # In the text environment a reply need not end the episode.
        ended = terminated | truncated | infos.get("_response", np.False_)
        rows = ended.nonzero()[0]
        if len(rows) == 0:
            return observations, rewards, terminated, truncated, infos
        same_step = self._base.autoreset_mode == AutoresetMode.SAME_STEP
        final_info = infos["final_info"] if same_step else infos
        # The infos of the environment and of the reward wrappers are arrays. Gymnasium's wrappers may also add dicts.
        info = {key: value[rows] for key, value in final_info.items() if isinstance(value, np.ndarray)}
        if not isinstance(observations, dict):  # the observations are texts
            tokens = info
        elif same_step:
            tokens = {key: np.stack([infos["final_obs"][r][key] for r in rows]) for key in observations}
        else:
            tokens = {key: value[rows] for key, value in observations.items()}
        episodes = Episodes.from_info(tokens, info, self._base.max_new_tokens)
        rewards = rewards.copy()
        rewards[rows], new_info = self._add_score(rows, episodes, rewards[rows], info)
        for key, value in new_info.items():
            final_info[key] = np.zeros((self.num_envs, *value.shape[1:]), value.dtype)
            final_info[key][rows] = value
            final_info[f"_{key}"] = ended.copy()
        return observations, rewards, terminated, truncated, infos

    def _add_score(
        self, rows: np.ndarray, episodes: Episodes, rewards: np.ndarray, info: dict[str, Any]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return add_score(self.scorer, self.weight, self.name, episodes, rewards, info)


class MeteorReward(ScoreReward):
    """The vector version of `dailydialog_gym.wrappers.MeteorReward`."""

    def __init__(self, env: VectorEnv[Any, Any, Any], weight: float = 1.0, by_token: bool = False):
        super().__init__(env, Meteor(), weight, "meteor")
        if by_token:
            self.scorer = TokenCredit(self.scorer, self._base.samples.tokenizer)


class IntentReward(ScoreReward):
    """The vector version of `dailydialog_gym.wrappers.IntentReward`."""

    def __init__(self, env: VectorEnv[Any, Any, Any], scorer: Scorer, weight: float = 1.0):
        super().__init__(env, scorer, weight, "intent")


class KLPenalty(ScoreReward):
    """The vector version of `dailydialog_gym.wrappers.KLPenalty`.

    The action is ``{"token": tokens, "log_prob": log_probs}``, two arrays of shape ``(num_envs,)``. The coefficient is
    updated once for every ``num_envs`` finished episodes.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        scorer: Scorer,
        coefficient: Coefficient | None = None,
        estimator: Literal["k1", "k3"] = "k1",
    ):
        coefficient = coefficient or AdaptiveCoefficient()
        super().__init__(env, scorer, -coefficient.value, "kl")
        self.tracker = KLTracker(scorer, coefficient, estimator, env.num_envs, self._base.max_new_tokens)
        self.single_action_space = add_log_prob(env.single_action_space)
        self.action_space = batch_space(self.single_action_space, env.num_envs)

    def step(self, actions: dict[str, Any]) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """The environment's `step` with the tokens; the last step of a reply has the penalty of all of its tokens.

        Args:
            actions: ``{"token": tokens, "log_prob": log_probs}``, two arrays of shape ``(num_envs,)``.

        Raises:
            ValueError: the actions have other keys, or a log-probability is positive, infinite or NaN.
        """
        return super().step(self.tracker.record(self._base.mdp, actions))

    def replay(self, actions: dict[str, Any]) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """`step` for whole replies.

        Args:
            actions: ``{"token": tokens, "log_prob": log_probs}``, two arrays of shape ``(num_envs, max_new_tokens)``.

        Raises:
            ValueError: as `step` and `dailydialog_gym.env.DailyDialogVectorEnv.replay`.
        """
        return super().replay(self.tracker.record_replies(actions))

    def _add_score(
        self, rows: np.ndarray, episodes: Episodes, rewards: np.ndarray, info: dict[str, Any]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return self.tracker.add_penalty(rows, episodes, rewards, info)


def replay(
    envs: VectorEnv[Any, Any, Any], actions: Any
) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Whole replies in one call, in lockstep, through any wrappers. Those that are not of this package get each token.

    Args:
        envs: a `DailyDialogVectorEnv`, or wrappers around one.
        actions: ``(num_envs, max_new_tokens)`` integers, the tokens; with a `KLPenalty` among the wrappers,
            ``{"token": tokens, "log_prob": log_probs}``, two arrays of this shape.

    Returns:
        What `step` returns for the token that ends the last reply, but with the rewards of all tokens.

    Raises:
        gymnasium.error.ResetNeeded, ValueError: see `dailydialog_gym.env.DailyDialogVectorEnv.replay`.
    """
    if isinstance(envs, DailyDialogVectorEnv | ScoreReward):
        return envs.replay(actions)
    base: Any = envs.unwrapped
    base.check_replay(np.shape(actions["token"] if isinstance(actions, dict) else actions))
    total = np.zeros(envs.num_envs)
    for t in range(base.max_new_tokens):
        token = {name: part[:, t] for name, part in actions.items()} if isinstance(actions, dict) else actions[:, t]
        observations, rewards, terminated, truncated, infos = envs.step(token)
        total = total + rewards
        if (terminated | truncated).all():
            break
    return observations, total, terminated, truncated, infos
