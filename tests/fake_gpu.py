"""A GPU that is not there: its tensors lie on a device of their own, and are computed on the CPU.

`install` changes torch for good, so use it in a process of its own.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

CPU = torch.device("cpu")
aten = torch.ops.aten
COPIES = {aten.to, aten._to_copy, aten.copy_}
# What gives the CPU a number, or a tensor whose shape depends on numbers: the CPU waits for the GPU
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero}
BY_BOOL = {aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_}


class OnGpu(torch.Tensor):
    """A tensor on the fake GPU.

    An operation that also gets a tensor of the CPU is an error, unless that is a number. PyTorch uploads an index that
    lies on the CPU, at each use: `uploads` counts that.
    """

    uploads = 0  # tensors copied from the CPU so far, numbers apart
    waits = 0  # how often the CPU waited for something of the GPU, copies to the CPU among that

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, device="fakegpu:0", **layout)

    def __init__(self, held: torch.Tensor):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        inputs, to_cpu = {}, False
        OnGpu.waits += function.overloadpacket in WAITS
        if function.overloadpacket in BY_BOOL:
            OnGpu.waits += sum(index is not None and index.dtype == torch.bool for index in args[1])

        def take(value):
            nonlocal to_cpu
            if isinstance(value, torch.device):
                to_cpu = value == CPU
                return CPU
            if isinstance(value, OnGpu):
                inputs[id(value.held)] = value
                return value.held
            if isinstance(value, torch.Tensor) and value.numel() > 1:
                if function.overloadpacket not in COPIES:
                    raise RuntimeError(f"{function} gets a tensor of the CPU beside those of the GPU")
                OnGpu.uploads += 1
            return value

        arguments = tree_map(take, args), tree_map(take, kwargs or {})
        OnGpu.waits += to_cpu

        def give(value):
            if not isinstance(value, torch.Tensor) or to_cpu:
                return value
            # An operation in place returns what it was given
            return inputs[id(value)] if id(value) in inputs else cls(value)

        return tree_map(give, function(*arguments[0], **arguments[1]))


def install() -> torch.device:
    """Add the fake GPU to this process, for good; returns it."""
    _setup_privateuseone_for_python_backend("fakegpu")
    torch.fakegpu.get_amp_supported_dtype = lambda: [torch.bfloat16]  # autocast asks even where it is off
    sdpa_kernel(SDPBackend.MATH).__enter__()  # attention in single operations

    def make(function):
        return lambda *args, device=None, **kwargs: OnGpu(function(*args, **kwargs))

    for name in ("empty.memory_format", "empty_strided"):  # by which PyTorch makes everything else
        torch.library.impl(f"aten::{name}", "PrivateUse1")(make(getattr(torch, name.partition(".")[0])))

    def copy(source, target, non_blocking=False):
        of = [tensor.held if isinstance(tensor, OnGpu) else tensor for tensor in (source, target)]
        OnGpu.uploads += source.numel() > 1 and not isinstance(source, OnGpu)
        OnGpu.waits += not isinstance(target, OnGpu)
        of[1].copy_(of[0])
        return target

    torch.library.impl("aten::_copy_from", "PrivateUse1")(copy)
    return torch.device("fakegpu:0")


def move(module: nn.Module) -> nn.Module:
    """Move a module to the fake GPU."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(OnGpu(parameter.data), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = OnGpu(buffer)
    return module
