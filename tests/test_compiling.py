"""Compiled layers compute what the others do, and are compiled once."""

import shutil

import pytest
import torch
from shapes import SHAPES
from transformers import AutoModelForCausalLM

from dailydialog_gym.compiling import compile_layers


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a processor needs a C++ compiler")
def test_logits_and_gradients_are_those_of_the_layers_as_they_were():
    config, sizes = SHAPES["gpt2"]
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config(vocab_size=50, **sizes | {"n_layer": 10})).eval()
    compiled = AutoModelForCausalLM.from_config(plain.config).eval()
    compiled.load_state_dict(plain.state_dict())
    compile_layers(torch.nn.ModuleList([compiled]))
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    counters = torch._dynamo.utils.counters
    counters.clear()
    for rows, columns in ((4, 20), (3, 31), (5, 8)):
        ids, mask = torch.randint(50, (rows, columns)), torch.ones(rows, 1, columns, columns, dtype=bool).tril()
        results = []
        for model in (plain, compiled):
            logits = model(ids, attention_mask=mask, use_cache=False).logits
            logits.square().mean().backward()
            results.append([logits, *(p.grad for p in model.parameters())])
            model.zero_grad()
        for ours, expected in zip(*reversed(results), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    with torch.no_grad():
        cache = compiled(ids).past_key_values
        compiled(ids[:, -1:], past_key_values=cache)
    assert counters["stats"]["unique_graphs"] == 1
