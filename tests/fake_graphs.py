"""CUDA graphs without a GPU: what would be recorded is replayed, operation by operation, at the same addresses."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import torch
from fake_gpu import OnGpu
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dailydialog_gym.models import graphs


def memory(tensor: torch.Tensor) -> torch.UntypedStorage:
    return (tensor.held if isinstance(tensor, OnGpu) else tensor).untyped_storage()


class FakeGraph(TorchDispatchMode):
    """In the place of `torch.cuda.CUDAGraph`: Python numbers are those of the recording, and so are addresses.

    As on a GPU, recording changes nothing: what operations write to is restored afterwards.
    """

    recorded = replayed = 0  # by all graphs

    def __init__(self):
        super().__init__()
        self.calls: list[tuple] = []
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for argument, value in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info and argument.alias_info.is_write:
                storage = memory(value)
                self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def restore(self):
        for storage, before in self.before.values():
            storage.copy_(before)

    def replay(self):
        FakeGraph.replayed += 1
        for function, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and memory(old).data_ptr() != memory(new).data_ptr():
                    old.copy_(new)


@contextmanager
def record(graph: FakeGraph, pool: object, stream: object):
    FakeGraph.recorded += 1
    with graph:
        yield
    graph.restore()


class Stream:
    def wait_stream(self, other: Stream) -> None:
        pass


REPLACED = {
    "CUDAGraph": FakeGraph,
    "graph": record,
    "graph_pool_handle": object,
    "Stream": Stream,
    "stream": lambda stream: nullcontext(),
    "current_stream": Stream,
}


def install(set_attribute, device_type: str = "cpu") -> None:
    """Have graphs be recorded on devices of a type, by ``set_attribute(module, name, value)``."""
    set_attribute(graphs, "DEVICE", device_type)
    for name, value in REPLACED.items():
        set_attribute(torch.cuda, name, value)
