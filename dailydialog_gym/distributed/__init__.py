"""DeepSpeed, for ``ppo_dialog_deepspeed.py``: the ranks of a job, their engines, and runs of several ranks."""
