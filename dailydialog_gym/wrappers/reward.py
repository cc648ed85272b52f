"""Reward wrappers for `DailyDialogEnv`. They score the same `Episodes` as the vector wrappers, in batches of one."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np

from dailydialog_gym.env.envs import DailyDialogEnv
from dailydialog_gym.rewards import Episodes, Meteor, Scorer, TokenCredit, add_score
from dailydialog_gym.rewards.coefficients import AdaptiveCoefficient, Coefficient
from dailydialog_gym.rewards.penalty import KLTracker, add_log_prob


class ScoreReward(gym.Wrapper[Any, Any, Any, Any]):
    """Adds ``weight * scorer(episode)`` to the reward of the step that ends a reply.

    Adds three keys to the info of this step:

    - ``reward/<name>``: float, the score without the weight.
    - ``token_rewards/<name>``: ``(max_new_tokens,)``, the distribution of the weighted score over the reply's tokens.
    - ``token_rewards``: ``(max_new_tokens,)``, the distribution of the reward over the reply's tokens, from all reward
      wrappers together. Its sum is the reward.

    Args:
        env: a `DailyDialogEnv`, or wrappers around one.
        scorer: see `dailydialog_gym.rewards.Scorer`.
        weight: the factor of the score.
        name: the name of the score in the info.

    Raises:
        TypeError: ``env`` is not a `DailyDialogEnv`.
        ValueError: a reward wrapper further inside has the same name.

    >>> import gymnasium as gym, dailydialog_gym, numpy as np
    >>> def brevity(episodes):
    ...     return np.array([1 / (1 + len(text.split())) for text in episodes.responses])
    >>> env = ScoreReward(gym.make("DailyDialog-v0"), brevity, weight=0.5, name="brevity")
    """

    def __init__(self, env: gym.Env[Any, Any], scorer: Scorer, weight: float = 1.0, name: str = "score"):
        super().__init__(env)
        base = env.unwrapped
        if not isinstance(base, DailyDialogEnv):
            raise TypeError(f"{type(self).__name__} wraps a DailyDialogEnv, got {env.unwrapped}")
        check_name(name, env, ScoreReward)
        self._base = base
        self.scorer, self.weight, self.name = scorer, weight, name
        self._summary = ""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Start a new episode: the environment's `reset`, with its arguments, observation and info."""
        self._summary = ""
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The environment's `step`; if it ends the reply, the reward and the info also have the weighted score.

        Raises:
            ValueError: the scores are no finite numbers, see `dailydialog_gym.rewards.add_score`.
        """
        observation, earned, terminated, truncated, info = self.env.step(action)
        reward = float(earned)
        if terminated or truncated or "response" in info:
            batched = {key: [value] for key, value in info.items()}
            tokens = observation if isinstance(observation, dict) else info  # the observation may be a text
            batched_tokens = {key: tokens[key][None] for key in ("input_ids", "attention_mask")}
            episode = Episodes.from_info(batched_tokens, batched, self._base.max_new_tokens)
            rewards, new_info = self._add_score(episode, np.array([reward]), batched)
            reward = float(rewards[0])
            info = info | {key: value[0] for key, value in new_info.items()}
            score = info[f"reward/{self.name}"]
            self._summary = f"\n  {self.name} {score:.3f}, weight {self.weight:.3f}, reward so far {reward:.3f}"
            if self.render_mode == "human":
                print(self._summary.lstrip("\n"))
        return observation, reward, terminated, truncated, info

    def render(self) -> str | None:
        """The environment's picture of the episode, and, if the render mode is ``"ansi"``, the score after its end."""
        frame = self.env.render()
        return f"{frame}{self._summary}" if self.render_mode == "ansi" else None

    def _add_score(
        self, episode: Episodes, rewards: np.ndarray, info: dict[str, Any]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return add_score(self.scorer, self.weight, self.name, episode, rewards, info)


def check_name(name: str, env: Any, kind: type[Any]) -> None:
    """Raise ValueError if a reward wrapper of this kind among the wrappers ``env`` has the same name."""
    while env is not env.unwrapped:
        if isinstance(env, kind) and env.name == name:
            raise ValueError(f"two scorers are named {name!r}: give each ScoreReward a different name")
        env = env.env


class MeteorReward(ScoreReward):
    """Rewards the METEOR score of the reply against the reference reply. Adds ``reward/meteor`` to the info.

    Args:
        env: a `DailyDialogEnv`, or wrappers around one.
        weight: the factor of the score, which is in [0, 1].
        by_token: distribute the score over the tokens by how much each of them raises it, see
            `dailydialog_gym.rewards.TokenCredit`. Otherwise the last token gets the whole score.
    """

    def __init__(self, env: gym.Env[Any, Any], weight: float = 1.0, by_token: bool = False):
        super().__init__(env, Meteor(), weight, "meteor")
        if by_token:
            self.scorer = TokenCredit(self.scorer, self._base.samples.tokenizer)


class IntentReward(ScoreReward):
    """Rewards a reply with the same dialogue act as the reference reply. Adds ``reward/intent`` to the info.

    Args:
        env: a `DailyDialogEnv`, or wrappers around one.
        scorer: a `dailydialog_gym.rewards.intent.IntentMatch`.
        weight: the factor of the score, which is in [0, 1].
    """

    def __init__(self, env: gym.Env[Any, Any], scorer: Scorer, weight: float = 1.0):
        super().__init__(env, scorer, weight, "intent")


class KLPenalty(ScoreReward):
    """Adds the KL penalty ``-coef * (log pi(token) - log pi_ref(token))`` of every token of the reply.

    The action becomes ``{"token": token, "log_prob": log_prob}``, where ``log_prob`` is the policy's log-probability of
    the token. An agent that samples from a part of its distribution (top-k) passes the log-probability of the whole
    distribution, because the reference's is of the whole distribution too.

    Adds these keys to the info of the last step:

    - ``reward/kl``: float, the sum of the log-ratios over the reply, in nats.
    - ``log_probs``: ``(max_new_tokens,)``, the log-probabilities of the actions, 0 after the end of the reply.
    - ``ref_log_probs``: ``(max_new_tokens,)``, the reference's log-probabilities of the same tokens.
    - ``metric/kl_per_token``: float, the estimated KL divergence per token, in nats.
    - ``metric/kl_coef``: float, the coefficient of this episode's penalty.

    Args:
        env: a `DailyDialogEnv`, or wrappers around one.
        scorer: a `dailydialog_gym.rewards.kl.KLDivergence` with the reference model.
        coefficient: a `dailydialog_gym.rewards.coefficients.Coefficient`. None is OpenRL's `AdaptiveCoefficient`. This
            wrapper updates it, so wrappers must not share one.
        estimator: the estimator of ``metric/kl_per_token``: ``"k1"``, the log-ratio, which the penalty always uses, or
            ``"k3"``, which has a lower variance.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        scorer: Scorer,
        coefficient: Coefficient | None = None,
        estimator: Literal["k1", "k3"] = "k1",
    ):
        coefficient = coefficient or AdaptiveCoefficient()
        super().__init__(env, scorer, -coefficient.value, "kl")
        self.tracker = KLTracker(scorer, coefficient, estimator, 1, self._base.max_new_tokens)
        self.action_space = add_log_prob(env.action_space)

    def step(self, action: dict[str, Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The environment's `step` with the action's token; the last step has the penalty of the whole reply.

        Args:
            action: ``{"token": token, "log_prob": log_prob}``, an integer and a number of at most 0.

        Raises:
            ValueError: the action has other keys, or the log-probability is positive, infinite or NaN.
        """
        return super().step(self.tracker.record(self._base.mdp, action)[0])

    def _add_score(
        self, episode: Episodes, rewards: np.ndarray, info: dict[str, Any]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        self.weight = -self.tracker.coefficient.value
        return self.tracker.add_penalty(np.array([0]), episode, rewards, info)
