"""What is compiled computes what it did before, and is compiled once."""

import shutil

import pytest
import torch
from shapes import tiny_model
from transformers import AutoModelForCausalLM

from dailydialog_gym.models.cache import RoomyCache
from dailydialog_gym.models.compiling import compile_decoding, compile_layers

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a processor needs a C++ compiler")


def test_logits_and_gradients_are_those_of_the_layers_as_they_were():
    plain = tiny_model("gpt2", n_layer=10)
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


@torch.no_grad()
def test_a_step_with_a_fixed_cache_is_one_program_for_all_tokens_of_all_batches():
    model = tiny_model("gpt2")
    ids, mask = torch.randint(50, (2, 3, 9)), torch.zeros(3, 9, dtype=torch.long)
    expected = [model(batch).logits[:, 4:] for batch in ids]
    fixed = compile_decoding(model, 9)
    counters = torch._dynamo.utils.counters
    counters.clear()
    for batch, wanted in zip(ids, expected, strict=True):
        mask[:, :4], mask[:, 4:] = 1, 0
        prefilled = RoomyCache()
        model(batch[:, :4], past_key_values=prefilled)
        fixed.hold(prefilled, 0)
        found = []
        for t in range(4, 9):
            mask[:, t] = 1
            position_ids = torch.full((3, 1), t)
            inputs = {"attention_mask": mask.clone(), "position_ids": position_ids, "past_key_values": fixed}
            found.append(model(batch[:, t : t + 1], **inputs).logits)
        torch.testing.assert_close(torch.cat(found, 1), wanted, rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
