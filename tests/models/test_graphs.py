"""Replies by CUDA graphs, which are emulated here, are those of the decoder without them."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from fake_graphs import FakeGraph

from benchmarks.architectures import VOCAB, tiny_config, tiny_model
from dailydialog_gym.models import Decoder, GraphDecoder, MixedPrecision
from dailydialog_gym.models.cache import FixedCache
from dailydialog_gym.models.forward import forward_cached
from dailydialog_gym.models.graphs import bucket

CPU = torch.device("cpu")
PROMPTS, COPIES, WIDTH, LONGEST = 9, 3, 20, 10
ROWS, TOP_K = PROMPTS * COPIES, 7
ENDS = np.zeros((2, VOCAB), np.int64)
ENDS[:, ::5] = 1
NEVER = np.zeros((2, VOCAB), np.int64)


def forward_of(model):
    def forward(input_ids, **inputs):
        logits = forward_cached(model, input_ids, **inputs).logits[:, -1, :VOCAB]
        return logits, logits[:, 0]  # in the place of values

    return forward


def prompts(seed, count=PROMPTS):
    rng = np.random.default_rng(seed)
    mask = (np.arange(WIDTH) >= rng.integers(2, WIDTH, (count, 1))).astype(np.int64)  # two columns hold padding alone
    return rng.integers(3, VOCAB, mask.shape) * mask, mask


def decoders(model, transitions, autocast, fixed_cache=None, top_k=TOP_K):
    settings = forward_of(model), transitions, LONGEST, autocast, CPU, top_k
    return Decoder(*settings, fixed_cache), GraphDecoder(*settings)


def batches(model, ours, plain):
    """For each batch what both decoders wrote, and how many graphs were recorded; the weights change in between."""
    for seed in range(4):
        torch.manual_seed(seed)
        uniform = torch.rand(ROWS, LONGEST, dtype=torch.double)
        recorded = FakeGraph.recorded
        results = [decoder.write(*prompts(seed), COPIES, uniform) for decoder in (plain, ours)]
        yield *results, FakeGraph.recorded - recorded
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)


def reply_mask(tokens):
    ends = torch.from_numpy(ENDS[0])[tokens]
    return ends.cumsum(1) - ends == 0


@pytest.mark.parametrize(
    ("kind", "top_k"), [("gpt2", TOP_K), ("gpt2", 0), ("opt", 0), ("mistral", 0), ("gemma2", TOP_K), ("llama4_text", 0)]
)
def test_replies_are_those_without_graphs_while_rows_leave(kind, top_k, fake_graphs):
    model = tiny_model(tiny_config(kind))
    plain, ours = decoders(model, ENDS, nullcontext(), top_k=top_k)
    recorded = []
    for (expected, values), (drawn, found), new in batches(model, ours, plain):
        there = reply_mask(expected.tokens)
        for ours_, theirs in zip((*drawn, found), (*expected, values), strict=True):
            if theirs is not None:
                torch.testing.assert_close(ours_[there], theirs[there], rtol=0, atol=1e-4)
        assert (drawn.candidates is None) == (top_k == 0)
        recorded.append(new)
    assert set(ours._graphs) >= {27, 14} and sum(recorded) == len(ours._graphs)  # graphs of several sizes, each once
    assert recorded[0] and not recorded[-1]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_oss"])
def test_mixed_precision_casts_the_weights_once_a_batch(kind, fake_graphs):
    """Replies are those of steps of the same shapes, whose weights are cast each time, but for bfloat16's rounding."""
    model = tiny_model(tiny_config(kind))
    autocast = MixedPrecision(CPU, torch.bfloat16, WIDTH)
    plain, ours = decoders(model, NEVER, autocast, FixedCache(WIDTH + LONGEST))
    for (expected, _), (drawn, _), _ in batches(model, ours, plain):
        same = (drawn.tokens == expected.tokens).all(1)
        assert same.sum() > 0.8 * ROWS
        torch.testing.assert_close(drawn.log_probs[same], expected.log_probs[same], rtol=0, atol=0.05)
    (graph,) = ours._graphs.values()
    casts = [args[0] for function, args, *_ in graph.calls if function == torch.ops.aten._to_copy.default]
    assert casts and not any(isinstance(cast, torch.nn.Parameter) for cast in casts)


def test_buckets_are_halves_of_halves():
    assert [bucket(27, live) for live in (27, 14, 13, 7, 6, 1)] == [27, 27, 14, 7, 7, 7]
    assert [bucket(1024, live) for live in (513, 512, 100, 8, 1)] == [1024, 512, 128, 8, 8]
    assert bucket(4, 1) == 4


def test_without_a_gpu_graphs_are_refused():
    with pytest.raises(ValueError, match=r"--cuda-graphs needs a CUDA GPU.*\(cpu\): leave it out"):
        decoders(None, NEVER, nullcontext())


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mixtral", {"_experts_implementation": "eager"}),  # asks which experts were chosen
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),  # the last position
    ],
)
def test_a_model_that_waits_for_the_gpu_is_refused(kind, changes, fake_graphs):
    config = tiny_config(kind)
    for name, value in changes.items():
        setattr(config, name, value)
    _, ours = decoders(tiny_model(config), NEVER, nullcontext())
    with pytest.raises(ValueError, match=r"forward waits for the GPU.*_local_scalar_dense.*leave the flag out"):
        ours.write(*prompts(0), COPIES, torch.rand(ROWS, LONGEST, dtype=torch.double))


def test_a_batch_of_another_size_is_refused(fake_graphs):
    _, ours = decoders(tiny_model(tiny_config("gpt2")), NEVER, nullcontext())
    uniform = torch.rand(ROWS, LONGEST, dtype=torch.double)
    ours.write(*prompts(0), COPIES, uniform)
    with pytest.raises(ValueError, match="3 replies: expected 27, as in the first batch"):
        ours.write(*prompts(0, count=1), COPIES, uniform[:3])
