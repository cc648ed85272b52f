"""Reward wrappers for `DailyDialogVectorEnv`."""

from dailydialog_gym.wrappers.vector.reward import KLPenalty, MeteorReward, ScoreReward

__all__ = ["KLPenalty", "MeteorReward", "ScoreReward"]
