"""Coefficients of the KL penalty: fixed, or adapted so that the KL divergence stays near a target."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Coefficient(Protocol):
    """The coefficient of the KL penalty, which may adapt to the KL divergence of finished episodes.

    Attributes:
        value: the current coefficient, at least 0.
    """

    value: float

    def update(self, kl: np.ndarray, tokens: np.ndarray, episodes_per_update: int) -> None:
        """Take finished episodes into account.

        Args:
            kl: ``(n,)``, the KL divergence of each episode from the reference, in nats.
            tokens: ``(n,)``, the number of tokens of each episode's reply.
            episodes_per_update: `value` changes when at least this many episodes have ended since its last change.
        """

    def state_dict(self) -> dict[str, float]:
        """The state for a checkpoint: the value, and the sums over the episodes since it last changed."""

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Restore the state of a `state_dict`."""


class FixedCoefficient:
    """A coefficient that `update` does not change. Other code may assign a new `value`, as ``ppo_dialog.py`` does.

    Args:
        coef: the initial coefficient, at least 0.

    Raises:
        ValueError: ``coef`` is negative or not finite.
    """

    def __init__(self, coef: float = 0.1):
        self.value = _checked(coef, "coef")

    def update(self, kl: np.ndarray, tokens: np.ndarray, episodes_per_update: int) -> None:
        pass

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.value = state_dict["value"]


class AdaptiveCoefficient:
    """OpenRL's adaptive coefficient: ``coef <- coef * (1 + rate * clip((kl - target) / target, -clip, clip))``.

    ``kl`` is the mean KL divergence per token. The reward wrappers update it once for every ``num_envs`` finished
    episodes.

    Args:
        coef: the initial coefficient, at least 0.
        target: the target of ``kl``, in nats per token. The coefficient grows above it and shrinks below it.
        rate: the step size.
        clip: the bound of the relative error ``(kl - target) / target``.

    Raises:
        ValueError: ``coef`` is negative, ``target`` is not above 0, or one of them is not finite.
    """

    def __init__(self, coef: float = 0.2, target: float = 0.05, rate: float = 0.1, clip: float = 0.2):
        self.value, self.target = _checked(coef, "coef"), _checked(target, "target")
        self.rate, self.clip = rate, clip
        self._episodes, self._kl, self._tokens = 0, 0.0, 0

    def update(self, kl: np.ndarray, tokens: np.ndarray, episodes_per_update: int) -> None:
        self._episodes += len(kl)
        self._kl += kl.sum()
        self._tokens += tokens.sum()
        if self._episodes >= episodes_per_update:
            mean_kl, rate = self._mean_kl_and_rate()
            self.value *= 1 + float(rate * np.clip((mean_kl - self.target) / self.target, -self.clip, self.clip))
            self._episodes, self._kl, self._tokens = 0, 0.0, 0

    def state_dict(self) -> dict[str, float]:
        sums = {"episodes": self._episodes, "kl": float(self._kl), "tokens": int(self._tokens)}
        return {"value": self.value, **sums}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.value, self._kl = state_dict["value"], state_dict["kl"]
        self._episodes, self._tokens = int(state_dict["episodes"]), int(state_dict["tokens"])

    def _mean_kl_and_rate(self) -> tuple[float, float]:
        return self._kl / self._tokens, self.rate


class ZieglerCoefficient(AdaptiveCoefficient):
    """The adaptive coefficient of Ziegler et al. (2019, arXiv:1909.08593, section 2.2).

    ``coef <- coef * (1 + clip((kl - target) / target, -0.2, 0.2) * episodes / horizon)``, where ``kl`` is the mean KL
    divergence per reply, and ``episodes`` the number of episodes since the last update. This is
    ``AdaptiveKLController`` of https://github.com/openai/lm-human-preferences.

    Args:
        coef: the initial coefficient, at least 0.
        target: the target of ``kl``, in nats per reply. The coefficient grows above it and shrinks below it.
        horizon: the inverse step size, in episodes. A relative error of 0.2 or more during ``horizon`` episodes
            increases the coefficient by about 20%.

    Raises:
        ValueError: ``coef`` is negative, ``target`` or ``horizon`` is not above 0, or one of them is not finite.
    """

    def __init__(self, coef: float = 0.2, target: float = 6.0, horizon: int = 10_000):
        super().__init__(coef, target, rate=1 / _checked(horizon, "horizon"))

    def _mean_kl_and_rate(self) -> tuple[float, float]:
        return self._kl / self._episodes, self.rate * self._episodes


def _checked(number: float, name: str) -> float:
    if not (0 < number < np.inf or (name == "coef" and number == 0)):
        bound = "at least 0" if name == "coef" else "above 0"
        raise ValueError(f"{name} of a KL coefficient must be a finite number {bound}, got {number}")
    return number
