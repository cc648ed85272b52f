"""Reward wrappers for `DailyDialogEnv`. Those for `DailyDialogVectorEnv` have the same names in ``wrappers.vector``."""

from dailydialog_gym.wrappers.reward import IntentReward, KLPenalty, MeteorReward, ScoreReward

__all__ = ["IntentReward", "KLPenalty", "MeteorReward", "ScoreReward"]
