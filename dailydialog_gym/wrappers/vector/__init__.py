"""Reward wrappers for `DailyDialogVectorEnv`."""

from dailydialog_gym.wrappers.vector.reward import IntentReward, KLPenalty, MeteorReward, ScoreReward

__all__ = ["IntentReward", "KLPenalty", "MeteorReward", "ScoreReward"]
