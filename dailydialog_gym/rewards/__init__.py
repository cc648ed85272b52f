"""Rewards are scorers of finished episodes: plain callables over texts and tokens, a batch at a time."""

from dailydialog_gym.rewards.credit import TokenCredit
from dailydialog_gym.rewards.episodes import Episodes, Scorer, pay
from dailydialog_gym.rewards.meteor import Meteor

__all__ = ["Episodes", "Meteor", "Scorer", "TokenCredit", "pay"]
