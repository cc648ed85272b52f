"""Mixed and full precision: PyTorch's autocast, with the attention that is fastest in it on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dailydialog_gym.models.groups import Grouped, average_of, scores_of
from dailydialog_gym.models.memory import limit_onednn_cache

LONGEST = 512  # columns


def choose_amp_dtype(device: torch.device) -> torch.dtype:
    """The type of mixed precision: bfloat16, or float16 on a GPU that only emulates bfloat16 (older than Ampere)."""
    emulated = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float16 if emulated else torch.bfloat16


def has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16, by instructions of its own."""
    capabilities = {name for name, value in torch.cpu.get_capabilities().items() if value is True}
    return bool(capabilities & {"amx_bf16", "avx512_bf16", "bf16"})


def choose_kernels(device: torch.device) -> None:
    """Choose the kernels of a device. Call it before the first forward.

    On a GPU, matmuls in float32 may use TF32. cuDNN's attention is off: PyTorch 2.13 prefers it on H100, where it gives
    NaN gradients for masked rows in bfloat16 (https://github.com/pytorch/pytorch/issues/196678), and it builds a plan
    for every new shape. On a CPU, the number of kernels that oneDNN keeps is limited, see `limit_onednn_cache`.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cuda.enable_cudnn_sdp(False)
    else:
        limit_onednn_cache()


class MixedPrecision:
    """`torch.autocast`, in which models with PyTorch's attention ("sdpa") attend by other kernels on a CPU.

    Single tokens attend by `masked_attention`, which can read `Grouped` keys. Whole rows do so in mixed precision, if
    they have up to 512 columns. In full precision and beyond 512 columns PyTorch's fused kernel reads them, which needs
    no memory for the scores. Only one thread at a time may be within such a context.

    Args:
        device: where the models run.
        dtype: of matmuls, or None for full precision.
        columns: of the longest context with its replies; a packed row can be wider.

    Attributes:
        masked_steps: whether single tokens attend by `masked_attention`.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype | None, columns: int):
        self._autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)
        self.masked_steps = device.type == "cpu"
        self._masked_rows = dtype is not None and columns <= LONGEST
        self._blocks: list[ExitStack] = []

    def __enter__(self) -> None:
        with ExitStack() as block:
            if self.masked_steps:
                before = ALL_ATTENTION_FUNCTIONS["sdpa"]
                block.callback(ALL_ATTENTION_FUNCTIONS.__setitem__, "sdpa", before)
                ALL_ATTENTION_FUNCTIONS["sdpa"] = masked_attention if self._masked_rows else _masked_steps(before)
            block.enter_context(self._autocast)
            self._blocks.append(block.pop_all())

    def __exit__(self, *error) -> None:
        self._blocks.pop().__exit__(*error)


def _masked_steps(whole_rows: Callable) -> Callable:
    """Attention that reads single tokens by `masked_attention`."""

    def attend(module, query, *args, **kwargs):
        return (masked_attention if query.shape[2] == 1 else whole_rows)(module, query, *args, **kwargs)

    return attend


def masked_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """Attention as two matmuls and a softmax, which reads scores of the queries' type and computes in float32.

    In bfloat16 PyTorch's fused kernel takes longer, forward and backward, on a processor with bfloat16 instructions,
    and so does its unfused one, which looks for queries that see nothing; neither is nearer to float32. For a single
    token a row the fused kernel takes longer in float32 too. Without a boolean mask, or where a model asks for more
    than one, PyTorch's is called.

    Args:
        query: ``(B, heads, L, d)``.
        key, value: ``(B, heads or fewer, S, d)``, or `Grouped`.
        attention_mask: boolean ``(B, 1, L, S)``, true where a query sees a key; what a query that sees none gets means
            nothing, but is finite.

    Returns:
        ``(B, L, heads, d)`` and None, as transformers' attention functions do.
    """
    plain = attention_mask is not None and attention_mask.dtype == torch.bool
    grouped = isinstance(key, Grouped)
    if not plain or dropout or kwargs.keys() & {"softcap", "position_bias"}:
        key, value = (key.whole(), value.whole()) if grouped else (key, value)
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = key.scores(query) if grouped else scores_of(query, key)
    unseen = torch.zeros_like(attention_mask, dtype=scores.dtype)
    unseen.masked_fill_(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.add_(unseen).softmax(-1)
    outputs = value.average(weights) if grouped else average_of(weights, value)
    return outputs.transpose(1, 2).contiguous(), None
