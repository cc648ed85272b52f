"""Everything that runs a policy, on a GPU that is not there; ends with an error where devices are mixed."""

from contextlib import nullcontext

import numpy as np
import torch
from fake_gpu import OnGpu, install, move

from benchmarks.architectures import TOLERANCE, VOCAB, differences, tiny_config, tiny_model
from dailydialog_gym.models.forward import Decoder, forward_packed
from dailydialog_gym.models.packing import pack

IDS = np.random.default_rng(0).integers(3, VOCAB, (40, 12))


def uploads_of(function, *args):
    before = OnGpu.uploads
    function(*args)
    return OnGpu.uploads - before


def uploads_of_decoding(gpu, layers):
    """How many tensors are copied to the GPU by reading prompts, by a step, and by a step that drops rows."""
    config = tiny_config("gpt2")
    config.n_layer = layers
    model = move(tiny_model(config))
    mask = (np.arange(8) >= np.arange(40)[:, None] % 8).astype(np.int64)  # prompts of 1 to 8 tokens
    decoder = Decoder(lambda ids, **inputs: (model(ids, **inputs).logits[:, -1],), 12, nullcontext(), gpu)
    live = np.arange(80) < 40
    return [
        uploads_of(decoder.prefill, IDS[:, :8] * mask, mask, 2),
        uploads_of(decoder.step, torch.ones(80, dtype=torch.long, device=gpu), live | True),
        uploads_of(decoder.step, torch.ones(80, dtype=torch.long, device=gpu), live),
    ]


if __name__ == "__main__":  # pytest imports this file, too
    gpu = install()
    states = torch.zeros(4, 3, device=gpu)
    assert uploads_of(states.__getitem__, np.array([2, 1])) == 1  # an index on the CPU is noticed
    prefill, step, dropping = uploads_of_decoding(gpu, layers=2)
    assert uploads_of_decoding(gpu, layers=4) == [prefill, step, dropping]
    assert step == 0 and dropping == 1 and prefill == 14, (prefill, step, dropping)

    for kind in ("gpt2", "gemma2", "mistral"):
        model = move(tiny_model(tiny_config(kind)))
        packed = pack(IDS[:4], np.ones_like(IDS[:4]), 8, np.arange(4), gpu)
        forward_packed(model, packed, logits_to_keep=packed.tail).logits.square().mean().backward()
        assert all(parameter.grad.device == gpu for parameter in model.parameters() if parameter.grad is not None)
        found = differences(model)
        assert max(found.values()) < TOLERANCE, found
