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

from dailydialog_gym.models.memory import limit_onednn_cache

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

    Their class becomes `OneDNNLinear` or `OneDNNConv1D`, subclasses of what it was. Their weights, names and results
    stay what they are, beyond rounding, but they have no second derivatives. With autocast or other types, on a GPU,
    and in what `torch.compile` compiles, they call PyTorch's operations.
    """
    if mkl_is_slow():
        limit_onednn_cache()
        for module in model.modules():
            if type(module) in FASTER and _is_plain(module):
                module.__class__ = FASTER[type(module)]


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer computes what its class does, with a weight that is a parameter (weight norm's is computed)."""
    return "forward" not in vars(layer) and type(layer._parameters.get("weight")) is nn.Parameter


class OneDNNLinear(nn.Linear):
    """`torch.nn.Linear`, see `use_onednn`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if _use_onednn_product(self, input):
            return _Product.apply(input, self.weight, self.bias, False)
        return super().forward(input)


class OneDNNConv1D(Conv1D):
    """`transformers.pytorch_utils.Conv1D`, see `use_onednn`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if _use_onednn_product(self, x):
            return _Product.apply(x, self.weight, self.bias, True)
        return super().forward(x)


FASTER: dict[type, type] = {nn.Linear: OneDNNLinear, Conv1D: OneDNNConv1D}


def _use_onednn_product(layer: nn.Module, states: torch.Tensor) -> bool:
    """Whether a layer's product is of float32 on a CPU, and neither autocast nor a compiler replaces it."""
    float32 = states.dtype == layer.weight.dtype == torch.float32 and states.device.type == "cpu"
    eager = not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
    # Without rows, dW = dY^T X would be a product over an empty dimension, which oneDNN refuses
    return float32 and eager and states.dim() > 1 and states.numel() > 0


class _Product(torch.autograd.Function):
    """``Y = X W^T + b``, with ``dX = dY W`` and ``dW = dY^T X``. A transposed weight is ``(in, out)``."""

    @staticmethod
    def forward(states, weight, bias, transposed):
        return _multiply(states, weight.t() if transposed else weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        states, weight, _, ctx.transposed = inputs
        of_states, of_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(states if of_weight else None, weight if of_states else None)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        states, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)  # (rows, out)
        states_gradient = weight_gradient = None
        if weight is not None:
            states_gradient = _multiply(gradient, weight if ctx.transposed else weight.t())
        if states is not None:
            states = states.flatten(0, -2)  # (rows, in)
            left, right = (states, rows) if ctx.transposed else (rows, states)
            weight_gradient = _multiply(left.t(), right.t())
        return states_gradient, weight_gradient, rows.sum(0) if ctx.needs_input_grad[2] else None, None


@contextmanager
def packed_weights(network: nn.Module, rows: int) -> Iterator[None]:
    """Within this context the linear layers of a network multiply faster, but compute no gradients.

    oneDNN multiplies by blocks of a weight. It makes them of a plain weight at every call, which for the few rows of a
    step of decoding takes up to as long as the product. Here it makes them once, so no weight may change before the end
    of the context.

    With bfloat16 autocast on a CPU all layers are packed. The blocks take the place of the copies that autocast keeps
    of trained weights. Without autocast those of `use_onednn` are packed, which takes as much memory as their weights.
    In all other cases, and for weights that are not float32, the context does nothing.

    Args:
        network: its layers of the classes `torch.nn.Linear`, `transformers.pytorch_utils.Conv1D`, and those of this
            module are meant.
        rows: the number of rows of most products, for which the size of the blocks is chosen; others are right too.
    """
    dtype, kinds = torch.float32, set(FASTER.values())
    if torch.is_autocast_enabled("cpu"):
        dtype, kinds = torch.get_autocast_dtype("cpu"), set()
        if dtype == torch.bfloat16 and torch.backends.mkldnn.is_available() and mkldnn._is_mkldnn_bf16_supported():
            kinds = {*FASTER, *FASTER.values()}
    layers = [
        module
        for module in network.modules()
        if type(module) in kinds
        and _is_plain(module)
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
    ]
    try:
        for layer in layers:
            weight = layer.weight.detach().t() if isinstance(layer, Conv1D) else layer.weight.detach()
            blocks = mkldnn._reorder_linear_weight(weight.to(dtype), rows)
            bias = None if layer.bias is None else layer.bias.detach().to(dtype)
            layer.forward = partial(_multiply_packed, layer, dtype, blocks, bias)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _multiply_packed(
    layer: nn.Module, dtype: torch.dtype, weight: torch.Tensor, bias: torch.Tensor | None, states: torch.Tensor
) -> torch.Tensor:
    if torch.is_autocast_enabled("cpu") != (dtype == torch.bfloat16):  # the network changes it around this layer
        return type(layer).forward(layer, states)
    return _multiply(states.to(dtype), weight, bias)


def _multiply(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``(..., in)`` times the transpose of a weight ``(out, in)``, plus a bias."""
    return mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
