"""DeepSpeed, for ``ppo_dialog_deepspeed.py``: the ranks of a job, their engines, and runs of several ranks."""

from dailydialog_gym.extras import need

need("torch", "transformers", "deepspeed", extra="deepspeed")

from dailydialog_gym.distributed.engines import CheckedSteps, DeepSpeedArgs
from dailydialog_gym.distributed.runs import DistributedRun

__all__ = ["CheckedSteps", "DeepSpeedArgs", "DistributedRun"]
