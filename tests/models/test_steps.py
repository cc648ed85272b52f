"""A step is left out on the device if a number is not finite, as if it had not been asked for."""

import math

import pytest
import torch

from dailydialog_gym.models.adamw_8bit import AdamW8bit
from dailydialog_gym.models.steps import step_if_finite


def make(scaled):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5))
    return weight, torch.optim.AdamW([weight], lr=0.1, fused=True), torch.amp.GradScaler("cpu", 8.0, enabled=scaled)


def state(weight, optimizer):
    return [weight.detach().clone(), *(value.clone() for value in optimizer.state[weight].values())]


def test_moments_of_8_bits_are_left_as_they_are_by_a_float16_gradient_that_overflows():
    weight = torch.nn.Parameter(torch.ones(5))
    optimizer, scaler = AdamW8bit([weight], lr=0.1), torch.amp.GradScaler("cpu", 8.0)
    for number, expected in ((math.inf, False), (1.0, True)):
        weight.grad = torch.full_like(weight, number)
        scaler.scale(torch.ones(()))  # a scaler knows its device from the loss
        scaler.unscale_(optimizer)
        step_if_finite(scaler, optimizer, torch.ones(()))
        scaler.update()
        assert (weight != 1).all() == expected and bool(optimizer.state) == expected


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("bad", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_steps_that_are_not_finite_change_nothing_and_the_others_are_plain_ones(scaled, bad, value):
    weight, optimizer, scaler = make(scaled)
    plain_weight, plain, _ = make(False)
    for i in range(4):
        is_bad = i == 2
        loss = (weight * torch.arange(5.0)).square().sum()
        scaler.scale(loss).backward()
        if is_bad and bad == "gradient":
            weight.grad[3] = value
        scaler.unscale_(optimizer)
        norm = weight.grad.norm()
        before = state(weight, optimizer) if i else []
        loss = loss * value if is_bad and bad == "loss" else loss
        numbers = step_if_finite(scaler, optimizer, loss, norm)
        scaler.update()
        optimizer.zero_grad()
        assert numbers.isfinite().all() == (not is_bad) and numbers.shape == (2,)
        assert not hasattr(optimizer, "found_inf")
        if is_bad:
            assert all(map(torch.equal, state(weight, optimizer), before))
            continue
        (plain_weight * torch.arange(5.0)).square().sum().backward()
        plain.step()
        plain.zero_grad()
        torch.testing.assert_close(state(weight, optimizer), state(plain_weight, plain))
