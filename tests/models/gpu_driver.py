"""Everything that runs a policy, on a GPU that is not there; ends with an error where devices are mixed."""

from contextlib import nullcontext

import fake_graphs
import numpy as np
import torch
from fake_gpu import OnGpu, install, move
from fake_graphs import FakeGraph
from torch import nn

from benchmarks.architectures import TOLERANCE, VOCAB, differences, tiny_config, tiny_model
from dailydialog_gym.models.decoder import Decoder
from dailydialog_gym.models.forward import forward_cached, forward_packed
from dailydialog_gym.models.graphs import GraphDecoder
from dailydialog_gym.models.packing import pack
from dailydialog_gym.models.sampling import draw
from dailydialog_gym.models.steps import step_if_finite
from ppo_dialog import Agent, Args, Batch, Critic, ppo_loss

IDS = np.random.default_rng(0).integers(3, VOCAB, (40, 12))


def transfers(function, *args):
    """How many tensors are copied to the GPU, and how often the CPU waits for it."""
    before = OnGpu.uploads, OnGpu.waits
    function(*args)
    return OnGpu.uploads - before[0], OnGpu.waits - before[1]


def transfers_of_decoding(gpu, layers):
    """Of reading prompts, of 15 steps, of the 16th, in which rows are dropped, and of 9 more."""
    config = tiny_config("gpt2")
    config.n_layer = layers
    model = move(tiny_model(config))
    mask = (np.arange(8) >= np.arange(40)[:, None] % 8).astype(np.int64)  # prompts of 1 to 8 tokens
    transitions = np.zeros((2, VOCAB), np.int64)
    transitions[:, 1] = 1
    decoder = Decoder(
        lambda ids, **inputs: (forward_cached(model, ids, **inputs).logits[:, -1],), transitions, 40, nullcontext(), gpu
    )
    found, (logits,) = [transfers(decoder.prefill, IDS[:, :8] * mask, mask, 2)], (torch.zeros(80, VOCAB, device=gpu),)
    uniform = torch.rand(80, 40, dtype=torch.double, device=gpu)
    half = torch.arange(80, device=gpu) % 2  # every second reply ends at once

    def steps(count):
        nonlocal logits
        for _ in range(count):
            for top_k in (0, 5):
                tokens = draw(logits, uniform[decoder.rows, decoder.written], top_k).tokens
            (logits,) = decoder.step(torch.where(half[decoder.rows] == 1, half[decoder.rows], tokens.clamp(min=2)))

    for count in (15, 1, 9):
        found.append(transfers(steps, count))
    assert len(decoder.rows) == 40
    return found


def transfers_of_graphs(gpu):
    """Of writing 80 replies of up to 18 tokens whose graphs are recorded, half of which end before the 16th token."""
    model = move(tiny_model(tiny_config("gpt2")))
    mask = (np.arange(8) >= np.arange(40)[:, None] % 8).astype(np.int64)
    transitions = np.ones((20, VOCAB), np.int64)  # counts tokens; after an odd first one the reply ends after ten more
    transitions[0, 1::2] = 9
    transitions[1:19] = np.arange(2, 20)[:, None]
    upload = torch.zeros(3)

    def forward(ids, **inputs):
        logits = forward_cached(model, ids, **inputs).logits[:, -1]
        return logits + upload.to(gpu).sum() if uploading else logits, logits[:, 0]

    uploading, uniform = False, torch.rand(80, 18, dtype=torch.double, device=gpu)
    decoder = GraphDecoder(forward, transitions, 18, nullcontext(), gpu)
    arguments = IDS[:, :8] * mask, mask, 2, uniform
    expected, _ = Decoder(forward, transitions, 18, nullcontext(), gpu).write(*arguments)
    for _ in range(2):
        drawn, _ = decoder.write(*arguments)
        there = torch.arange(18) < torch.where(drawn.tokens.cpu()[:, :1] % 2 == 1, 11, 18)
        assert torch.equal(drawn.tokens.cpu()[there], expected.tokens.cpu()[there])
    recorded = FakeGraph.recorded, FakeGraph.replayed
    found = transfers(decoder.write, *arguments)
    assert (FakeGraph.recorded - recorded[0], FakeGraph.replayed - recorded[1]) == (0, 17)
    uploading, decoder = True, GraphDecoder(forward, transitions, 18, nullcontext(), gpu)
    try:
        decoder.write(*arguments)
    except ValueError as error:
        assert "uploads to it (aten._to_copy" in str(error)
    else:
        raise AssertionError("an upload at each token was recorded")
    return found


class Still(torch.optim.Optimizer):
    """In the place of a fused optimizer, whose kernels the fake GPU lacks."""

    def step(self):
        assert self.found_inf.device.type == "fakegpu"


def transfers_of_an_update(gpu, critic):
    """Of packing a minibatch, and of its loss, its gradients and the optimizer's step."""
    args = Args(critic=critic, replies_per_prompt=2, top_k=5, max_prompt_length=8, max_new_tokens=4)
    agent = Agent.__new__(Agent)
    torch.nn.Module.__init__(agent)
    agent.policy, agent.vocab_size, agent.shared = tiny_model(tiny_config("gpt2")), VOCAB, critic == "shared"
    agent.critic = None if critic == "none" else Critic(None, 32)
    move(agent)
    mask = np.ones_like(IDS)
    tensors = torch.zeros(7, 40, 4, device=gpu)
    candidates = torch.arange(5, device=gpu).expand(40, 4, 5)
    actions = torch.zeros(40, 4, dtype=torch.long, device=gpu)
    batch = Batch(IDS, mask, tensors[0] + 1, actions, candidates, *tensors[1:4], {}, *tensors[4:7])
    optimizer = Still(agent.parameters(), {})
    scaler, packed = torch.amp.GradScaler("cpu", enabled=False), None

    def pack_minibatch():
        nonlocal packed
        packed = pack(IDS, mask, 8, np.arange(40) // 2, gpu, np.arange(10, 30))

    def update():
        policy_loss, value_loss, _ = ppo_loss(agent, batch, packed, args, nullcontext())
        loss = policy_loss + value_loss
        loss.backward()
        norms = [nn.utils.clip_grad_norm_(list(agent.parameters()), 1.0)]
        step_if_finite(scaler, optimizer, loss, *norms)

    return [transfers(pack_minibatch), transfers(update)]


if __name__ == "__main__":  # pytest imports this file, too
    gpu = install()
    states = torch.zeros(4, 3, device=gpu)
    assert transfers(states.__getitem__, np.array([2, 1]))[0] == 1  # an index on the CPU is noticed
    for wait in (states.sum().item, states.cpu, states.nonzero, lambda: states[states > 0], lambda: bool(states[0, 0])):
        assert transfers(wait)[1] == 1
    prefill, *steps = transfers_of_decoding(gpu, layers=2)
    assert transfers_of_decoding(gpu, layers=4) == [prefill, *steps]
    assert prefill == (14, 0), prefill
    assert steps == [(0, 0), (0, 2), (0, 0)], steps  # the 16th token: how many rows are live, and which

    fake_graphs.install(setattr, gpu.type)
    found = transfers_of_graphs(gpu)
    assert found == (prefill[0], 1), found  # the 16th token: how many rows are live

    for critic in ("shared", "none"):
        found = transfers_of_an_update(gpu, critic)
        assert found == [(1, 0), (0, 0)], found

    for kind in ("gpt2", "gemma2", "mistral"):
        model = move(tiny_model(tiny_config(kind)))
        packed = pack(IDS[:4], np.ones_like(IDS[:4]), 8, np.arange(4), gpu)
        forward_packed(model, packed, logits_to_keep=packed.tail).logits.square().mean().backward()
        assert all(parameter.grad.device == gpu for parameter in model.parameters() if parameter.grad is not None)
        found = differences(model)
        assert max(found.values()) < TOLERANCE, found
