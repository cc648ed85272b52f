"""DailyDialog-v0: train dialogue models with reinforcement learning, one token an action, one reply an episode."""

from gymnasium.envs.registration import register

from dailydialog_gym.env import (
    DailyDialogEnv,
    DailyDialogTextEnv,
    DailyDialogTextVectorEnv,
    DailyDialogVectorEnv,
)

__version__ = "0.2.0"
__all__ = ["DailyDialogEnv", "DailyDialogTextEnv", "DailyDialogTextVectorEnv", "DailyDialogVectorEnv"]

register(
    id="DailyDialog-v0",
    entry_point="dailydialog_gym.env:DailyDialogEnv",
    vector_entry_point="dailydialog_gym.env:DailyDialogVectorEnv",
)
register(
    id="DailyDialogText-v0",
    entry_point="dailydialog_gym.env:DailyDialogTextEnv",
    vector_entry_point="dailydialog_gym.env:DailyDialogTextVectorEnv",
)
