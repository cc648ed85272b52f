"""Mixed precision's attention: which one, where, and that its results are autocast's."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from shapes import SHAPES, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dailydialog_gym.models.precision import MixedPrecision, choose_amp_dtype, choose_kernels, masked_attention

CPU = torch.device("cpu")


class Operations(TorchDispatchMode):
    """The names of all operations within."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def attends(block, model) -> list[str]:
    mask = torch.tensor([[0, 1, 1]])  # of one without padding PyTorch makes none
    with block, Operations() as operations:
        model(torch.ones_like(mask), attention_mask=mask)
    return operations.names


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(("columns", "enabled", "fused"), [(512, True, False), (513, True, True), (512, False, True)])
def test_attention_is_unfused_in_bfloat16_up_to_512_columns(columns, enabled, fused, kind):
    block, model = MixedPrecision(CPU, torch.bfloat16 if enabled else None, columns), tiny_model(kind)
    flash = "_scaled_dot_product_flash_attention_for_cpu.default"
    assert (flash in attends(block, model)) == fused
    with block:
        attends(block, model)
        assert (flash in attends(nullcontext(), model)) == fused  # the inner block's end isn't the outer one's
    assert flash in attends(nullcontext(), model)


@pytest.mark.parametrize(("columns", "enabled"), [(513, True), (512, False)])
@torch.no_grad()
def test_single_tokens_are_always_read_unfused(columns, enabled):
    model, mask = tiny_model("gpt2"), torch.ones(2, 1, 1, 4, dtype=torch.bool)
    cache = DynamicCache()
    model(torch.ones(2, 3, dtype=torch.long), past_key_values=cache)
    for block, fused in (
        (MixedPrecision(CPU, torch.bfloat16 if enabled else None, columns), False),
        (nullcontext(), True),
    ):
        with block, Operations() as operations:
            model(torch.ones(2, 1, dtype=torch.long), attention_mask=mask, past_key_values=copy.deepcopy(cache))
        assert ("_scaled_dot_product_flash_attention_for_cpu.default" in operations.names) == fused


def test_whole_rows_keep_the_attention_that_was_there(monkeypatch):
    calls = []

    def own(*args, **kwargs):
        calls.append(args)
        return sdpa_attention_forward(*args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", own)
    attends(MixedPrecision(CPU, None, 20), tiny_model("gpt2"))
    assert len(calls) == 2  # layers
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is own


def some_attention(heads, key_heads, queries, keys, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(3, n, length, 8, dtype=dtype, generator=generator, requires_grad=True)
        for n, length in ((heads, queries), (key_heads, keys), (key_heads, keys))
    )
    mask = torch.rand(3, 1, queries, keys, generator=generator) < 0.5
    mask[..., -1] = True
    module = SimpleNamespace(num_key_value_groups=heads // key_heads, is_causal=True)
    return module, query, key, value, mask


@pytest.mark.parametrize("scaling", [None, 0.1])
@pytest.mark.parametrize(("heads", "key_heads", "queries", "keys"), [(4, 4, 9, 9), (4, 2, 9, 9), (4, 1, 1, 7)])
def test_it_is_pytorchs_attention(heads, key_heads, queries, keys, scaling):
    inputs = some_attention(heads, key_heads, queries, keys)
    results = []
    for attention in (masked_attention, sdpa_attention_forward):
        output, _ = attention(*inputs, scaling=scaling)
        gradients = torch.autograd.grad(output.square().sum(), inputs[1:4])
        results.append((output, *gradients))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_that_sees_nothing_spoils_no_gradient(dtype):
    module, query, key, value, mask = some_attention(2, 2, 4, 4, dtype)
    mask[0, :, 2] = False
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = masked_attention(module, query, key, value, mask)
    assert output.isfinite().all()
    for gradient in torch.autograd.grad(output.float().sum(), (query, key, value)):
        assert gradient.isfinite().all()


def test_its_matmuls_are_in_bfloat16():
    module, query, key, value, mask = some_attention(2, 2, 4, 4, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16), Operations() as operations:
        masked_attention(module, query, key, value, mask)
    assert "bmm.default" in operations.names and "_to_copy.default" not in operations.names


def test_what_it_cannot_do_pytorchs_does():
    module, query, key, value, mask = some_attention(2, 2, 5, 5)
    bias = torch.randn(1, 2, 5, 5, dtype=query.dtype)
    additive = torch.randn(3, 1, 5, 5, dtype=query.dtype)
    for seen, more in ((None, {}), (additive, {}), (mask, {"position_bias": bias})):
        theirs = sdpa_attention_forward(module, query, key, value, seen, **more)[0]
        torch.testing.assert_close(masked_attention(module, query, key, value, seen, **more)[0], theirs)


@pytest.mark.parametrize("kind", SHAPES)
@torch.no_grad()
def test_it_is_as_near_to_float32_as_autocast(kind):
    model = tiny_model(kind)
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


@pytest.mark.parametrize(
    ("kind", "native", "dtype"), [("cuda", True, "bfloat16"), ("cuda", False, "float16"), ("cpu", False, "bfloat16")]
)
def test_a_gpu_that_only_emulates_bfloat16_gets_float16(kind, native, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert choose_amp_dtype(torch.device(kind)) == getattr(torch, dtype)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_on_a_gpu_alone_matmuls_may_use_tf32_and_cudnn_does_not_attend(kind):
    before = torch.get_float32_matmul_precision(), torch.backends.cuda.cudnn_sdp_enabled()
    try:
        choose_kernels(torch.device(kind))
        after = torch.get_float32_matmul_precision(), torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cuda.enable_cudnn_sdp(before[1])
    assert after == (before if kind == "cpu" else ("high", False))
