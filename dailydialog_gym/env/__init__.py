"""The environment: dialogues, samples, the token MDP and its two adapters. This room imports neither torch nor
transformers, except that a tokenizer other than the embedded one is read by transformers."""

from dailydialog_gym.env.dialogues import ACTS, Dialogue, load_dialogues
from dailydialog_gym.env.envs import DailyDialogEnv, DailyDialogVectorEnv
from dailydialog_gym.env.samples import Samples, load_samples
from dailydialog_gym.env.tokenizer import EOU, ReplyTokenizer, load_tokenizer

__all__ = [
    "ACTS",
    "EOU",
    "DailyDialogEnv",
    "DailyDialogVectorEnv",
    "Dialogue",
    "ReplyTokenizer",
    "Samples",
    "load_dialogues",
    "load_samples",
    "load_tokenizer",
]
