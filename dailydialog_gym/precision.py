"""Mixed precision: PyTorch's autocast, with the attention that is fastest in it."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

LONGEST = 512  # columns


class MixedPrecision:
    """`torch.autocast`, in which attention on the CPU is two matmuls and a softmax instead of PyTorch's fused kernel.

    In bfloat16 that kernel's forward and backward take three times as long on a processor with bfloat16 instructions,
    and are no nearer to float32. What it saves is the memory of the scores, which grows with the square of the columns:
    where those are more than 512 it stays.

    Args:
        device: where the models run.
        dtype: of matmuls.
        columns: of the longest context with its replies; a packed row can be wider.
        enabled: without, all stays in float32, and ``dtype`` means nothing.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype | None, columns: int, enabled: bool = True):
        self._autocast = torch.autocast(device.type, dtype, enabled=enabled)
        self._unfused = enabled and device.type == "cpu" and columns <= LONGEST
        self._blocks: list[ExitStack] = []

    def __enter__(self) -> None:
        with ExitStack() as block:
            if self._unfused:
                # The softmax reads bfloat16 scores and computes in float32
                block.callback(
                    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp,
                    torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed(),
                )
                torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
                block.enter_context(sdpa_kernel(SDPBackend.MATH))
            block.enter_context(self._autocast)
            self._blocks.append(block.pop_all())

    def __exit__(self, *error) -> None:
        self._blocks.pop().__exit__(*error)
