"""Linear layers by oneDNN, where it is faster than what PyTorch calls by itself on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

mkldnn = torch.ops.mkldnn  # oneDNN under its former name; torch.compile uses these operations on a CPU


@cache
def mkl_is_slow() -> bool:
    """Whether this is an AMD processor with AVX-512.

    PyTorch multiplies float32 matrices by Intel's MKL, which computes with vectors of half that width on it: oneDNN
    takes half the time (``benchmarks/matmuls.py``).
    """
    file = Path("/proc/cpuinfo")
    amd = file.exists() and "AuthenticAMD" in file.read_text(encoding="utf-8")
    return amd and bool(torch.cpu.get_capabilities().get("avx512_f")) and torch.backends.mkldnn.is_available()


def use_onednn(model: nn.Module) -> None:
    """Have the linear layers of a model multiply float32 matrices by oneDNN, on processors where `mkl_is_slow`.

    Their weights, names and results stay what they are, beyond rounding. With autocast or other types, on a GPU, and in
    what `torch.compile` compiles, they call PyTorch's operations.
    """
    for module in model.modules() if mkl_is_slow() else ():
        if type(module) in FASTER:  # not a subclass, whose forward may be another
            module.__class__ = FASTER[type(module)]


class OneDNNLinear(nn.Linear):
    """`torch.nn.Linear`, see `use_onednn`."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if not _in_float32(states, self.weight):
            return super().forward(states)
        return _Product.apply(states, self.weight, self.bias, False)


class OneDNNConv1D(Conv1D):
    """`transformers.pytorch_utils.Conv1D`, see `use_onednn`."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if not _in_float32(states, self.weight):
            return super().forward(states)
        return _Product.apply(states, self.weight, self.bias, True)


FASTER: dict[type, type] = {nn.Linear: OneDNNLinear, Conv1D: OneDNNConv1D}


def _in_float32(states: torch.Tensor, weight: torch.Tensor) -> bool:
    float32 = states.dtype == weight.dtype == torch.float32 and states.device.type == "cpu"
    eager = not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
    return float32 and eager and states.dim() > 1 and states.numel() > 0  # oneDNN has no product of no rows


class _Product(torch.autograd.Function):
    """``Y = X W^T + b``, with ``dX = dY W`` and ``dW = dY^T X``. A transposed weight is ``(in, out)``."""

    @staticmethod
    def forward(ctx, states, weight, bias, transposed):
        ctx.save_for_backward(states, weight)
        ctx.transposed = transposed
        return _multiply(states, weight.t() if transposed else weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        states, weight = ctx.saved_tensors
        of_states, of_weight, of_bias, _ = ctx.needs_input_grad
        left, right = gradient.flatten(0, -2), states.flatten(0, -2)  # (rows, out), (rows, in)
        bias_gradient = left.sum(0) if of_bias else None
        if ctx.transposed:
            left, right = right, left
        return (
            _multiply(gradient, weight if ctx.transposed else weight.t()) if of_states else None,
            _multiply(left.t(), right.t()) if of_weight else None,
            bias_gradient,
            None,
        )


@contextmanager
def packed_weights(network: nn.Module, rows: int) -> Iterator[None]:
    """Within this context the linear layers of a network multiply faster, but compute no gradients.

    oneDNN multiplies by blocks of a weight. It makes them of a plain weight at every call, which for the few rows of a
    step of decoding takes up to as long as the product. Here it makes them once, so no weight may change before the end
    of the context. With bfloat16 autocast they replace the copies that autocast keeps. In float32, which is for
    the layers of `use_onednn`, they take as much memory as the weights. Nothing changes for weights of other types than
    float32, and where neither is the case.

    Args:
        network: its layers of the classes `torch.nn.Linear`, `transformers.pytorch_utils.Conv1D`, and those of this
            module are meant.
        rows: how many rows they will multiply, for which the blocks are chosen; others give the same.
    """
    dtype, kinds = torch.float32, set(FASTER.values())
    if torch.is_autocast_enabled("cpu"):
        dtype, kinds = torch.get_autocast_dtype("cpu"), set()
        if dtype == torch.bfloat16 and torch.backends.mkldnn.is_available() and mkldnn._is_mkldnn_bf16_supported():
            kinds = {*FASTER, *FASTER.values()}
    layers = [
        module
        for module in network.modules()
        if type(module) in kinds and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu"
    ]
    try:
        for layer in layers:
            weight = layer.weight.detach().t() if isinstance(layer, Conv1D) else layer.weight.detach()
            blocks = mkldnn._reorder_linear_weight(weight.to(dtype), rows)
            bias = None if layer.bias is None else layer.bias.detach().to(dtype)
            layer.forward = partial(_multiply_packed, dtype=dtype, weight=blocks, bias=bias)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _multiply_packed(
    states: torch.Tensor, dtype: torch.dtype, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return _multiply(states.to(dtype), weight, bias)


def _multiply(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``(..., in)`` times the transpose of a weight ``(out, in)``, plus a bias."""
    return mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
