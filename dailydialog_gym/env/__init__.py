"""The environment: dialogues, samples, the token MDP, and the single and the vector environment on top of it.

This package imports neither torch nor transformers, with one exception: `load_tokenizer` imports transformers when it
loads a tokenizer other than the embedded one.
"""

from dailydialog_gym.env.dialogues import ACTS, Dialogue, load_dialogues
from dailydialog_gym.env.envs import DailyDialogEnv, DailyDialogVectorEnv
from dailydialog_gym.env.samples import Samples, load_samples
from dailydialog_gym.env.text_envs import DailyDialogTextEnv, DailyDialogTextVectorEnv
from dailydialog_gym.env.tokenizer import EOU, ReplyTokenizer, load_tokenizer, split_prompt

__all__ = [
    "ACTS",
    "EOU",
    "DailyDialogEnv",
    "DailyDialogTextEnv",
    "DailyDialogTextVectorEnv",
    "DailyDialogVectorEnv",
    "Dialogue",
    "ReplyTokenizer",
    "Samples",
    "load_dialogues",
    "load_samples",
    "load_tokenizer",
    "split_prompt",
]
