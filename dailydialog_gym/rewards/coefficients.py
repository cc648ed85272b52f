"""What a nat of divergence from the reference costs: fixed, or steered so that the divergence stays near a target."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Coefficient(Protocol):
    """A price that sees how far the policy has gone.

    Attributes:
        value: what is paid now, at least 0.
    """

    value: float

    def observe(self, kl: np.ndarray, tokens: np.ndarray, every: int) -> None:
        """Count finished episodes, ``(n,)`` KL divergences in nats and numbers of tokens; move after each ``every``."""

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps: the value, and what was counted since it last moved."""

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Go on from an earlier `state_dict`."""


class FixedCoefficient:
    """Always the same.

    Args:
        coef: its value.
    """

    def __init__(self, coef: float = 0.1):
        self.value = _checked(coef, "coef")

    def observe(self, kl: np.ndarray, tokens: np.ndarray, every: int) -> None:
        pass

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.value = state_dict["value"]


class AdaptiveCoefficient:
    """OpenRL's rule: ``coef <- coef * (1 + rate * clip((kl - target) / target, -clip, clip))``.

    It moves once for every ``num_envs`` finished episodes, by their mean divergence a token.

    Args:
        coef: its first value.
        target: the KL divergence a token, in nats, at which it stays as it is.
        rate, clip: how fast it moves.
    """

    def __init__(self, coef: float = 0.2, target: float = 0.05, rate: float = 0.1, clip: float = 0.2):
        self.value, self.target = _checked(coef, "coef"), _checked(target, "target")
        self.rate, self.clip = rate, clip
        self._episodes, self._kl, self._tokens = 0, 0.0, 0

    def observe(self, kl: np.ndarray, tokens: np.ndarray, every: int) -> None:
        self._episodes += len(kl)
        self._kl += kl.sum()
        self._tokens += tokens.sum()
        if self._episodes >= every:
            self.value *= 1 + self._change(self._kl, self._tokens, self._episodes)
            self._episodes, self._kl, self._tokens = 0, 0.0, 0

    def state_dict(self) -> dict[str, float]:
        counted = {"episodes": self._episodes, "kl": float(self._kl), "tokens": int(self._tokens)}
        return {"value": self.value, **counted}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        keys = ("value", "episodes", "kl", "tokens")
        self.value, self._episodes, self._kl, self._tokens = (state_dict[key] for key in keys)

    def _change(self, kl: float, tokens: int, episodes: int) -> float:
        return float(self.rate * np.clip((kl / tokens - self.target) / self.target, -self.clip, self.clip))


class ZieglerCoefficient(AdaptiveCoefficient):
    """Ziegler's rule (arXiv:1909.08593, section 2.2), by the mean divergence of a whole reply.

    ``coef <- coef * (1 + clip((kl - target) / target, -0.2, 0.2) * episodes / horizon)``, as in their code
    (https://github.com/openai/lm-human-preferences, ``AdaptiveKLController``).

    Args:
        coef: its first value.
        target: the KL divergence a reply, in nats, at which it stays as it is.
        horizon: episodes in which an error at the clip changes it by a fifth.
    """

    def __init__(self, coef: float = 0.2, target: float = 6.0, horizon: int = 10_000):
        super().__init__(coef, target, rate=1 / _checked(horizon, "horizon"))

    def _change(self, kl: float, tokens: int, episodes: int) -> float:
        return super()._change(kl, episodes, episodes) * episodes


def _checked(number: float, name: str) -> float:
    if not (0 < number < np.inf or (name == "coef" and number == 0)):
        raise ValueError(f"{name} of a KL coefficient is a finite number above 0 (coef: at least 0), got {number}")
    return number
