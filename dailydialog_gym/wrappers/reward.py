"""Reward wrappers for the single environment: the vector wrappers' mechanism, on batches of one."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np

from dailydialog_gym.env.envs import DailyDialogEnv
from dailydialog_gym.rewards import Episodes, Meteor, Scorer, TokenCredit, pay
from dailydialog_gym.rewards.coefficients import AdaptiveCoefficient, Coefficient
from dailydialog_gym.rewards.penalty import KLLedger, add_log_prob


class ScoreReward(gym.Wrapper):
    """Pays ``weight * scorer(episode)`` in an episode's last step.

    The last info gains ``reward/<name>``, the raw score, and ``token_rewards``, ``(max_new_tokens,)``: which token
    earned what, over all wrappers of the stack; it sums to the reward.

    Args:
        env: a `DailyDialogEnv`, wrapped or not.
        scorer: see `dailydialog_gym.rewards.Scorer`.
        weight: what a score of 1 is worth.
        name: of the score in the info.

    >>> import gymnasium as gym, dailydialog_gym, numpy as np
    >>> def brevity(episodes):
    ...     return np.array([1 / (1 + len(text.split())) for text in episodes.responses])
    >>> env = ScoreReward(gym.make("DailyDialog-v0"), brevity, weight=0.5, name="brevity")
    """

    def __init__(self, env: gym.Env, scorer: Scorer, weight: float = 1.0, name: str = "score"):
        super().__init__(env)
        if not isinstance(env.unwrapped, DailyDialogEnv):
            raise TypeError(f"{type(self).__name__} wraps a DailyDialogEnv, got {env.unwrapped}")
        self.scorer, self.weight, self.name = scorer, weight, name
        self._summary = ""

    def reset(self, **kwargs: Any):
        self._summary = ""
        return self.env.reset(**kwargs)

    def step(self, action: Any):
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            batched = {key: [value] for key, value in info.items()}
            batched_observation = {key: value[None] for key, value in observation.items()}
            episode = Episodes.from_info(batched_observation, batched, self.unwrapped.max_new_tokens)
            rewards, extra = self._pay(episode, np.array([reward]), batched)
            reward = float(rewards[0])
            info = info | {key: value[0] for key, value in extra.items()}
            score = info[f"reward/{self.name}"]
            self._summary = f"\n  {self.name} {score:.3f}, weight {self.weight:.3f}, reward so far {reward:.3f}"
            if self.render_mode == "human":
                print(self._summary.lstrip("\n"))
        return observation, reward, terminated, truncated, info

    def render(self) -> str | None:
        frame = self.env.render()
        return frame + self._summary if self.render_mode == "ansi" else frame

    def _pay(self, episode: Episodes, rewards: np.ndarray, info: dict[str, Any]):
        return pay(self.scorer, self.weight, self.name, episode, rewards, info)


class MeteorReward(ScoreReward):
    """Pays METEOR against the reference reply, see `dailydialog_gym.rewards.Meteor`. Adds ``reward/meteor``.

    With ``by_token`` every token is credited with what it adds, see `dailydialog_gym.rewards.TokenCredit`.
    """

    def __init__(self, env: gym.Env, weight: float = 1.0, by_token: bool = False):
        scorer = TokenCredit(Meteor(), env.unwrapped.samples.tokenizer) if by_token else Meteor()
        super().__init__(env, scorer, weight, "meteor")


class IntentReward(ScoreReward):
    """Pays for a reply that does what the reference reply does: inform, ask, direct or commit. Adds ``reward/intent``.

    Args:
        env: a `DailyDialogEnv`, wrapped or not.
        scorer: `dailydialog_gym.rewards.intent.IntentMatch` with the classifier.
        weight: what the right act is worth.
    """

    def __init__(self, env: gym.Env, scorer: Scorer, weight: float = 1.0):
        super().__init__(env, scorer, weight, "intent")


class KLPenalty(ScoreReward):
    """Pays ``-coef * KL(policy || reference)``, by default with a coefficient that keeps the divergence near a target.

    The action becomes ``{"token": token, "log_prob": log_prob}``: the agent says which log-probability it gives the
    token. One that draws from a part of its distribution (top-k) gives that of the whole, as the reference does. The
    last info gains ``reward/kl`` (nats), ``log_probs``, ``metric/kl_per_token`` and ``metric/kl_coef``.

    Args:
        env: a `DailyDialogEnv`, wrapped or not.
        scorer: `dailydialog_gym.rewards.kl.KLDivergence` with the reference model.
        coefficient: a `dailydialog_gym.rewards.coefficients.Coefficient`; None is OpenRL's adaptive one. It moves with
            every episode that ends here: one object for each wrapper.
        estimator: of ``metric/kl_per_token``: "k1", as it is paid, or "k3", of less variance.
    """

    def __init__(
        self,
        env: gym.Env,
        scorer: Scorer,
        coefficient: Coefficient | None = None,
        estimator: Literal["k1", "k3"] = "k1",
    ):
        coefficient = coefficient or AdaptiveCoefficient()
        super().__init__(env, scorer, -coefficient.value, "kl")
        self.ledger = KLLedger(scorer, coefficient, estimator, 1, env.unwrapped.max_new_tokens)
        self.action_space = add_log_prob(env.action_space)

    def step(self, action: dict[str, Any]):
        return super().step(self.ledger.record(self.unwrapped.mdp, action)[0])

    def _pay(self, episode: Episodes, rewards: np.ndarray, info: dict[str, Any]):
        self.weight = -self.ledger.coefficient.value
        return self.ledger.pay(np.array([0]), episode, rewards, info)
