"""Scorers: callables that score a batch of finished episodes, which the reward wrappers turn into rewards.

`IntentMatch` and `KLDivergence` need torch and transformers. Both libraries are imported when one of these two classes
is first accessed.
"""

from typing import TYPE_CHECKING, Any

from dailydialog_gym.rewards.coefficients import AdaptiveCoefficient, Coefficient, FixedCoefficient, ZieglerCoefficient
from dailydialog_gym.rewards.credit import TokenCredit
from dailydialog_gym.rewards.episodes import Episodes, Scorer, add_score
from dailydialog_gym.rewards.meteor import Meteor
from dailydialog_gym.rewards.own import load_scorer

if TYPE_CHECKING:
    from dailydialog_gym.rewards.intent import IntentMatch
    from dailydialog_gym.rewards.kl import KLDivergence

__all__ = [
    "AdaptiveCoefficient",
    "Coefficient",
    "Episodes",
    "FixedCoefficient",
    "IntentMatch",
    "KLDivergence",
    "Meteor",
    "Scorer",
    "TokenCredit",
    "ZieglerCoefficient",
    "add_score",
    "load_scorer",
]


def __getattr__(name: str) -> Any:
    if name == "IntentMatch":
        from dailydialog_gym.rewards.intent import IntentMatch

        return IntentMatch
    if name == "KLDivergence":
        from dailydialog_gym.rewards.kl import KLDivergence

        return KLDivergence
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
