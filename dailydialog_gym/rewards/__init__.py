"""Scorers: callables that score a batch of finished episodes, which the reward wrappers turn into rewards.

`IntentMatch`, `KLDivergence` and `RewardModel` need torch and transformers. Both libraries are imported when one of
these classes, or `load_reward_models`, is first accessed.
"""

from typing import TYPE_CHECKING, Any

from dailydialog_gym.rewards.coefficients import AdaptiveCoefficient, Coefficient, FixedCoefficient, ZieglerCoefficient
from dailydialog_gym.rewards.credit import TokenCredit
from dailydialog_gym.rewards.episodes import Episodes, Scorer, Scores, add_score
from dailydialog_gym.rewards.meteor import Meteor
from dailydialog_gym.rewards.own import load_scorer

if TYPE_CHECKING:
    from dailydialog_gym.rewards.intent import IntentMatch
    from dailydialog_gym.rewards.kl import KLDivergence
    from dailydialog_gym.rewards.model import RewardModel, load_reward_models

__all__ = [
    "AdaptiveCoefficient",
    "Coefficient",
    "Episodes",
    "FixedCoefficient",
    "IntentMatch",
    "KLDivergence",
    "Meteor",
    "RewardModel",
    "Scorer",
    "Scores",
    "TokenCredit",
    "ZieglerCoefficient",
    "add_score",
    "load_reward_models",
    "load_scorer",
]


def __getattr__(name: str) -> Any:
    if name == "IntentMatch":
        from dailydialog_gym.rewards.intent import IntentMatch

        return IntentMatch
    if name == "KLDivergence":
        from dailydialog_gym.rewards.kl import KLDivergence

        return KLDivergence
    if name in ("RewardModel", "load_reward_models"):
        from dailydialog_gym.rewards import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
