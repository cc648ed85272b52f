"""AdamW with moments of 8 bits against torch's."""

import pytest
import torch

from dailydialog_gym.models.adamw_8bit import BLOCK, NOISE, AdamW8bit, _decode, _encode, round_at_random


def trained(optimizer_class, dtype, steps=300, **options):
    """A least-squares problem's loss before and after training, and its optimizer."""
    torch.manual_seed(0)
    inputs, wanted = torch.randn(200, 30), torch.randn(30, 20)
    weights = torch.nn.Parameter(torch.zeros(30, 20, dtype=dtype))  # 600 numbers: two whole blocks, and one that isn't
    optimizer, losses = optimizer_class([weights], lr=1e-2, **options), []
    for _ in range(steps):
        loss = (inputs @ (weights.float() - wanted)).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_trains_as_adamw_does(dtype):
    expected, _ = trained(torch.optim.AdamW, torch.float32, weight_decay=0.0)
    found, optimizer = trained(AdamW8bit, dtype)
    for step in (50, 100, 200, 299):
        assert found[step] == pytest.approx(expected[step], rel=0.1, abs=0.02)
    (state,) = optimizer.state.values()
    assert state["moments"].numel() / 600 < 2.7  # bytes a parameter; 2.03 if the last block is full


def test_the_first_step_is_adamw_s():
    """The moments are stored afterwards, so that it is exact."""
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 700)) for _ in range(2)]
    for each, optimizer_class in zip(weights, (torch.optim.AdamW, AdamW8bit), strict=True):
        each.grad = torch.linspace(-2, 3, 700) ** 3
        optimizer_class(
            [each], lr=0.1, eps=1e-5, **({"weight_decay": 0.0} if optimizer_class is not AdamW8bit else {})
        ).step()
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("noise", [0, NOISE - 1])
def test_the_largest_moment_of_a_block_is_stored_exactly_whatever_is_drawn(noise):
    numbers, stored = torch.full((BLOCK,), -0.5), torch.zeros(1, BLOCK + 4, dtype=torch.uint8)
    _encode(numbers, stored, 2, torch.full((BLOCK,), noise, dtype=torch.int32))
    assert torch.equal(_decode(stored, 2), numbers)


def test_rounding_is_right_on_average():
    numbers = torch.tensor([1.001, -1.001, 3e-5, 0.0]).repeat(20_000, 1)
    noise = torch.randint(NOISE, numbers.shape, dtype=torch.int32)
    rounded = round_at_random(numbers, torch.bfloat16, noise)
    assert rounded.dtype == torch.bfloat16 and len(rounded[:, 0].unique()) == 2
    torch.testing.assert_close(rounded.float().mean(0), numbers[0], rtol=1e-4, atol=0)


def test_a_step_is_left_out_where_a_number_is_not_finite_and_a_state_is_loaded_exactly():
    _, optimizer = trained(AdamW8bit, torch.bfloat16, steps=5)
    (weights,) = optimizer.param_groups[0]["params"]
    before = weights.clone()
    weights.grad = torch.ones_like(weights)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(weights, before)
    del optimizer.found_inf
    other = AdamW8bit([torch.nn.Parameter(before.clone())], lr=1e-2)
    other.load_state_dict(optimizer.state_dict())
    other.param_groups[0]["params"][0].grad = weights.grad
    for each in (optimizer, other):
        torch.manual_seed(1)
        each.step()
    assert torch.equal(weights, other.param_groups[0]["params"][0])
    assert not torch.equal(weights, before)
