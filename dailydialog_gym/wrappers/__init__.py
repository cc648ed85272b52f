"""Reward wrappers for `DailyDialogEnv`. Those for `DailyDialogVectorEnv` have the same names in ``wrappers.vector``."""

from dailydialog_gym.wrappers.reward import KLPenalty, MeteorReward, ScoreReward

__all__ = ["KLPenalty", "MeteorReward", "ScoreReward"]
