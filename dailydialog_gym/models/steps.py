"""Optimizer steps that are left out if a number is not finite, without waiting for the device to know it."""

from __future__ import annotations

import torch


def step_if_finite(
    scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, *numbers: torch.Tensor
) -> torch.Tensor:
    """Take the optimizer's step if all numbers are finite, and the unscaled gradients too with an enabled scaler.

    The decision is made on the device: a fused optimizer reads ``found_inf``, as it does for a `GradScaler`, and then
    leaves parameters, moments and the count of steps as they are.

    Args:
        scaler: whose `unscale_` was called; disabled without float16.
        optimizer: made with ``fused=True``.
        numbers: the loss and the gradient norms, one number each.

    Returns:
        The numbers, float32 on the device, for `dailydialog_gym.runs.Run.check_step` once the device is waited for.
    """
    stacked = torch.stack([number.detach().float() for number in numbers])
    not_finite = (~stacked.isfinite().all()).float()

    def leave_out(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        optimizer.found_inf = torch.maximum(optimizer.found_inf, not_finite) if scaler.is_enabled() else not_finite

    hook = optimizer.register_step_pre_hook(leave_out)
    scaler.step(optimizer)
    hook.remove()
    if not scaler.is_enabled():  # else the scaler has removed it
        del optimizer.found_inf
    return stacked
