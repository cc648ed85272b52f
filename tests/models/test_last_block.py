"""What is read of a model is the same, and its last feed-forward part works on that alone."""

import shutil

import pytest
import torch
from shapes import SHAPES
from transformers import AutoModelForCausalLM, BloomConfig, GPTNeoXConfig, GptOssConfig, MixtralConfig, PhiConfig

from dailydialog_gym.models.compiling import compile_layers
from dailydialog_gym.models.last_block import only_tail_is_read

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
MODELS = SHAPES | {  # a residual given to the mlp, parallel branches, experts, experts that also say who was chosen
    "bloom": (BloomConfig, {"hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "gpt_neox": (GPTNeoXConfig, SIZES),
    "phi": (PhiConfig, SIZES),
    "mixtral": (MixtralConfig, SIZES | {"num_local_experts": 2}),
    "gpt_oss": (GptOssConfig, SIZES | {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}),
}
TAIL = 4


def model_of(kind):
    config, sizes = MODELS[kind]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(vocab_size=50, pad_token_id=0, **sizes)).eval()


def outputs_and_gradients(model, kind):
    ids = torch.randint(1, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    # Bloom's positions are in its mask; the others take packed rows'
    mask = torch.ones(3, 9) if kind == "bloom" else torch.ones(3, 1, 9, 9, dtype=torch.bool).tril()
    more = {} if kind == "bloom" else {"position_ids": torch.arange(9).expand(3, 9)}
    outputs = model(ids, attention_mask=mask, use_cache=False, output_hidden_states=True, **more)
    read = torch.cat([outputs.logits[:, -TAIL:], outputs.hidden_states[-1][:, -TAIL:]], -1)
    model.zero_grad()
    read.square().sum().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    return read.detach(), outputs.logits[:, :-TAIL].detach(), gradients


@pytest.mark.parametrize("kind", MODELS)
def test_the_tail_and_its_gradients_are_the_same(kind):
    model = model_of(kind)
    read, unread, gradients = outputs_and_gradients(model, kind)
    with only_tail_is_read(model, TAIL):
        ours, left_out, our_gradients = outputs_and_gradients(model, kind)
    torch.testing.assert_close((ours, our_gradients), (read, gradients), rtol=1e-4, atol=1e-5)
    if kind != "opt":  # which has no mlp
        assert not torch.allclose(left_out, unread, atol=1e-3)
    torch.testing.assert_close(outputs_and_gradients(model, kind)[1], unread)  # all is as it was


def test_it_ends_with_an_error_inside():
    model = model_of("gpt2")
    with pytest.raises(KeyError), only_tail_is_read(model, TAIL):
        raise KeyError
    assert not model.transformer.h[-1].mlp._forward_hooks and not model.transformer.h[-1].mlp._forward_pre_hooks


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a processor needs a C++ compiler")
def test_a_compiled_block_works_on_all_columns():
    model, kind = model_of("gpt2"), "gpt2"
    expected = outputs_and_gradients(model, kind)
    compile_layers(torch.nn.ModuleList([model]))
    with only_tail_is_read(model, TAIL):
        torch.testing.assert_close(outputs_and_gradients(model, kind), expected, rtol=1e-3, atol=1e-4)
