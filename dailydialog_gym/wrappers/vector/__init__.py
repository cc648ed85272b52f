"""Reward wrappers for `DailyDialogVectorEnv`, with the same class names as in `dailydialog_gym.wrappers`."""

from dailydialog_gym.wrappers.vector.reward import IntentReward, KLPenalty, MeteorReward, ScoreReward, replay

__all__ = ["IntentReward", "KLPenalty", "MeteorReward", "ScoreReward", "replay"]
