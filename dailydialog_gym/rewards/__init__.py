"""Rewards are scorers of finished episodes: plain callables over texts and tokens, a batch at a time.

`IntentMatch` and `KLDivergence` need torch and transformers, which are imported when one of the two is first used.
"""

from typing import TYPE_CHECKING, Any

from dailydialog_gym.rewards.coefficients import AdaptiveCoefficient, Coefficient, FixedCoefficient, ZieglerCoefficient
from dailydialog_gym.rewards.credit import TokenCredit
from dailydialog_gym.rewards.episodes import Episodes, Scorer, pay
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
    "load_scorer",
    "pay",
]


def __getattr__(name: str) -> Any:
    if name == "IntentMatch":
        from dailydialog_gym.rewards.intent import IntentMatch

        return IntentMatch
    if name == "KLDivergence":
        from dailydialog_gym.rewards.kl import KLDivergence

        return KLDivergence
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
