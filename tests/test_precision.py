"""Mixed precision's attention: which one, where, and that its results are autocast's."""

import pytest
import torch
from shapes import SHAPES
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from dailydialog_gym.precision import MixedPrecision

CPU = torch.device("cpu")


class Operations(TorchDispatchMode):
    """The names of all operations within."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))


def attends(block) -> list[str]:
    query = torch.randn(1, 2, 3, 8, dtype=torch.bfloat16)
    with block, Operations() as operations:
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    return operations.names


@pytest.mark.parametrize(("columns", "enabled", "fused"), [(512, True, False), (513, True, True), (512, False, True)])
def test_attention_is_unfused_in_bfloat16_up_to_512_columns(columns, enabled, fused):
    block = MixedPrecision(CPU, torch.bfloat16, columns, enabled)
    flash = "_scaled_dot_product_flash_attention_for_cpu.default"
    names = attends(block)
    assert (flash in names) == fused
    if not fused:
        assert not {"_to_copy.default"} & set(names)  # its matmuls are in bfloat16
    with block:
        attends(block)
        assert (flash in attends(torch.no_grad())) == fused  # the inner block's end isn't the outer one's
    assert flash in attends(torch.no_grad())


@pytest.mark.parametrize("kind", SHAPES)
@torch.no_grad()
def test_it_is_as_near_to_float32_as_autocast(kind):
    config, sizes = SHAPES[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(vocab_size=50, **sizes)).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    ids, mask = torch.randint(50, (16, 20)), torch.ones(20, 20, dtype=bool).tril()
    mask[10:, 5:9] = False  # as in packed rows
    inputs = {"attention_mask": mask.expand(16, 1, 20, 20), "position_ids": torch.arange(20).expand(16, 20)}

    def logits():
        return model(ids, **inputs, use_cache=False).logits.float()

    exact = logits()
    with torch.autocast("cpu", torch.bfloat16):
        error = (logits() - exact).square().mean().sqrt()
    with MixedPrecision(CPU, torch.bfloat16, 20):
        ours = (logits() - exact).square().mean().sqrt()
    assert 0 < ours < 1.5 * error < 0.1 * exact.std()
