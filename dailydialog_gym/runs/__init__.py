"""A training run's folder: flags, logs, checkpoints, signals, curves and samples. The algorithm is in the scripts."""

from dailydialog_gym.extras import need

need("torch", "transformers", "tyro", "filelock", "matplotlib", "tensorboard", "tqdm", "yaml")

from dailydialog_gym.runs.checkpoints import RandomState
from dailydialog_gym.runs.data import DataArgs, count_contexts, settle
from dailydialog_gym.runs.flags import parse_args
from dailydialog_gym.runs.run import Run, RunArgs

__all__ = ["DataArgs", "RandomState", "Run", "RunArgs", "count_contexts", "parse_args", "settle"]
