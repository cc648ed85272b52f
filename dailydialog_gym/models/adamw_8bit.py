"""AdamW for weights in bfloat16, with moments of 8 bits: with the gradient 6 bytes a parameter, instead of 16."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

BLOCK = 256  # numbers that share a scale
# Numbers that are updated at a time, of which a step makes some ten float32 copies. On a CPU these stay in its
# cache, and are so small that the C library keeps their memory. On a GPU each operation on a chunk is a launch.
CHUNKS = {"cpu": 2**17, "cuda": 2**22}
NOISE = 2**16  # rounding at random distinguishes so many numbers, as many as float32 has between two of bfloat16


class AdamW8bit(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) without weight decay, for weights of any floating type.

    As in Dettmers et al. (2022, arXiv:2110.02861), each 256 numbers of a moment are stored in 8 bits relative to the
    largest of them. Weights and moments are rounded at random to one of the two nearest values, so that changes smaller
    than the distance of two values are not lost. The rounding of weights is unbiased. A moment is stored as its square
    or fourth root, whose rounding is unbiased, so the moment itself has a small bias.

    Args:
        params: parameters, or groups of them.
        lr, betas, eps: as of `torch.optim.AdamW`.
    """

    _step_supports_amp_scaling = True  # tells a `GradScaler` to set `found_inf`, and not to wait for its value

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Take a step, unless `found_inf` is set and not 0, as a `torch.amp.GradScaler` and `step_if_finite` set it."""
        assert closure is None
        if bool(getattr(self, "found_inf", 0)):
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state, weights, gradient = self.state[parameter], parameter.view(-1), parameter.grad.reshape(-1)
        if not state:
            blocks = -(-weights.numel() // BLOCK)
            # 256 codes and their scale, four bytes. All bytes are in one tensor because torch's `load_state_dict`
            # converts a state to the parameter's type, which keeps numbers up to 255 exactly, but would round scales.
            stored = torch.zeros(2, blocks, BLOCK + 4, dtype=torch.uint8, device=parameter.device)
            state["step"], state["moments"] = 0, stored
        state["step"] += 1
        state["moments"] = state["moments"].to(torch.uint8)
        step, (beta1, beta2) = state["step"], group["betas"]
        chunk = CHUNKS[weights.device.type]
        for start in range(0, weights.numel(), chunk):
            some, grad = weights[start : start + chunk], gradient[start : start + chunk].float()
            first, second = state["moments"][:, start // BLOCK : (start + chunk) // BLOCK]
            mean = _decode(first, 2)[: len(grad)].lerp_(grad, 1 - beta1)
            square = _decode(second, 4)[: len(grad)].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            # A weight and its moments are rounded by the same number: on a CPU no other operation takes longer
            noise = torch.randint(NOISE, (len(first) * BLOCK,), dtype=torch.int32, device=grad.device)
            _encode(mean, first, 2, noise)
            _encode(square, second, 4, noise)
            denominator = square.div_(1 - beta2**step).sqrt_().add_(group["eps"])
            new = some.float().addcdiv_(mean, denominator, value=-group["lr"] / (1 - beta1**step))
            some.copy_(round_at_random(new, some.dtype, noise[: len(grad)]))


def round_at_random(numbers: torch.Tensor, dtype: torch.dtype, noise: torch.Tensor) -> torch.Tensor:
    """Float32 numbers in bfloat16, rounded up or down at random so that the expectation is the number.

    With another ``dtype`` the numbers are rounded to the nearest.

    Args:
        numbers: ``(n,)``.
        dtype: the type of the result.
        noise: ``(n,)`` int32, uniform from 0 to `NOISE` - 1.
    """
    if dtype != torch.bfloat16:
        return numbers.to(dtype)
    bits = (numbers.view(torch.int32) + noise) & -NOISE  # bfloat16 is the upper half of float32
    return bits.view(torch.float32).to(dtype)


def _encode(numbers: torch.Tensor, stored: torch.Tensor, power: int, noise: torch.Tensor) -> None:
    """Store float32 numbers. Codes are from -127 to 127, and a code ``c`` is the number ``scale * (c / 127) ** power``
    with the sign of the code, so small numbers have a fine grid. The code is rounded up with the probability of its
    fraction, by ``noise``, a whole number of blocks of int32 as for `round_at_random`."""
    blocks = torch.nn.functional.pad(numbers, (0, stored.shape[0] * BLOCK - len(numbers))).view(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True)
    exact = (blocks.abs() / scale.clamp(min=torch.finfo().tiny)).pow_(1 / power).mul_(127)
    codes = exact.add_(noise.view(-1, BLOCK), alpha=1 / NOISE).floor_().copysign_(blocks)  # at most 127
    stored[:, :BLOCK] = codes.add_(127).to(torch.uint8)
    stored[:, BLOCK:] = scale.view(torch.uint8)


def _decode(stored: torch.Tensor, power: int) -> torch.Tensor:
    """What `_encode` stored, float32."""
    codes = stored[:, :BLOCK].float().sub_(127).div_(127)
    return (codes.abs().pow_(power).copysign_(codes) * stored[:, BLOCK:].contiguous().view(torch.float32)).view(-1)
