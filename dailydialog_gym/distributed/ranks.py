"""The processes of a DeepSpeed job: who they are, and what they tell each other."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import torch
from torch import distributed

from dailydialog_gym.rewards.coefficients import Coefficient

try:
    import deepspeed
    from deepspeed.accelerator import get_accelerator
except ModuleNotFoundError as error:
    if error.name != "deepspeed":
        raise
    raise SystemExit(
        "ppo_dialog_deepspeed.py needs DeepSpeed: pip install -c constraints.txt -e '.[deepspeed]' "
        "(ppo_dialog.py trains on one device without it)"
    ) from error


def flags() -> list[str]:
    """The command line without what the `deepspeed` command adds."""
    return [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank=")]


def start() -> tuple[int, int, torch.device]:
    """Join the job. Returns: this process's rank, the number of ranks, and this rank's device.

    Raises:
        SystemExit: the process wasn't started by the `deepspeed` command, or a launcher that sets the same variables.
    """
    if "RANK" not in os.environ:
        raise SystemExit(f"start it with the deepspeed command: deepspeed {' '.join(sys.argv)}")
    # For inference on processors; without this its C++ part is built for minutes first
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed()
    device = torch.device(get_accelerator().current_device_name())
    return distributed.get_rank(), distributed.get_world_size(), device


def mean(tensor: torch.Tensor) -> torch.Tensor:
    """The mean over the ranks of a tensor that all of them have."""
    total = tensor.detach().clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def share(value: Any = None) -> Any:
    """What rank 0 says."""
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]


def gather(value: Any) -> list[Any]:
    """What each rank says, on all of them."""
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


class AgreedCoefficient:
    """A `Coefficient` that sees the episodes of all ranks, and so is the same on all of them."""

    def __init__(self, coefficient: Coefficient):
        self.coefficient = coefficient

    @property
    def value(self) -> float:
        return self.coefficient.value

    def observe(self, kl: np.ndarray, tokens: np.ndarray, every: int) -> None:
        everywhere = gather((kl, tokens))
        kl, tokens = (np.concatenate(arrays) for arrays in zip(*everywhere, strict=True))
        self.coefficient.observe(kl, tokens, every * len(everywhere))

    def state_dict(self) -> dict[str, float]:
        return self.coefficient.state_dict()

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.coefficient.load_state_dict(state_dict)
