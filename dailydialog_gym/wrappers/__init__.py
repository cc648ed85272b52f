"""Reward wrappers for `DailyDialogEnv`. Those for `DailyDialogVectorEnv` are in `dailydialog_gym.wrappers.vector`.

Both packages have the same class names, like `gymnasium.wrappers` and `gymnasium.wrappers.vector`.
"""

from dailydialog_gym.wrappers.reward import IntentReward, KLPenalty, MeteorReward, ScoreReward

__all__ = ["IntentReward", "KLPenalty", "MeteorReward", "ScoreReward"]
