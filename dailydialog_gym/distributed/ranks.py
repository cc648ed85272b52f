"""The processes of a DeepSpeed job: how one joins the job, and their collective operations."""

from __future__ import annotations

import os
import sys
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import distributed


def flags() -> list[str]:
    """The command line without the flag that the `deepspeed` command adds."""
    return [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank=")]


def start() -> tuple[int, int, torch.device]:
    """Join the job. Returns: this process's rank, the number of ranks, and this rank's device.

    Raises:
        SystemExit: the process wasn't started by the `deepspeed` command or by another launcher that sets ``RANK``,
            ``LOCAL_RANK`` and ``WORLD_SIZE``.
    """
    if "RANK" not in os.environ:
        raise SystemExit(f"error: start it with the deepspeed command: deepspeed {' '.join(sys.argv)}")
    # Without this, DeepSpeed compiles an extension for inference on CPUs for minutes
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed itself selects the device only when it builds an engine; until then it is cuda:0 on every rank
    get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    device = torch.device(get_accelerator().current_device_name())
    deepspeed.init_distributed()
    return distributed.get_rank(), distributed.get_world_size(), device


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all ranks."""
    total = tensor.detach().clone()
    distributed.all_reduce(total)
    return total


def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all ranks."""
    return all_reduce_sum(tensor) / distributed.get_world_size()


def broadcast(value: Any = None) -> Any:
    """The value of rank 0, on all ranks. The values of the other ranks are ignored."""
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def all_gather(value: Any) -> list[Any]:
    """The values of all ranks, in the order of the ranks, on all ranks."""
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values
