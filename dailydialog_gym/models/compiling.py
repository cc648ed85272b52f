"""`torch.compile` where shapes allow it: in the update, and in decoding with a fixed cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from dailydialog_gym.models.cache import FixedCache
from dailydialog_gym.models.last_block import blocks_of


def compile_agent(agent: nn.Module, columns: int, decoding: bool = True) -> FixedCache | None:
    """Compile an agent's update, `compile_layers`, and unless ``decoding`` is False the policy's `compile_decoding`."""
    compile_layers(agent)
    return compile_decoding(agent.policy, columns) if decoding else None


def compile_layers(agent: nn.Module) -> None:
    """Compile the transformer layers of an agent's models, for forwards that take gradients.

    All layers share one compiled function, so compiling 12 layers takes as long as compiling one. Decoding and
    evaluation are not compiled here.
    """
    models = [module for module in agent.modules() if isinstance(module, PreTrainedModel)]
    for block in {block for model in models for block in blocks_of(model)}:  # one model is within another
        block.forward = _where_it_learns(block.forward)
        block.compiled = True  # for all columns: `only_tail_is_read` would have it compiled for each tail


def _where_it_learns(forward: Callable) -> Callable:
    compiled = torch.compile(forward, dynamic=True)

    def chosen(*args, **kwargs):
        return (compiled if torch.is_grad_enabled() else forward)(*args, **kwargs)

    return chosen


def compile_decoding(policy: PreTrainedModel, columns: int) -> FixedCache:
    """Compile the policy's forward for steps with a `FixedCache`, and return such a cache of ``columns`` columns.

    On a GPU each step replays a CUDA graph, so the CPU does not launch some hundred kernels for every token.
    """
    forward = policy.forward
    compiled = torch.compile(forward, mode="reduce-overhead", dynamic=False)

    def chosen(*args, past_key_values=None, **kwargs):
        step = compiled if isinstance(past_key_values, FixedCache) else forward
        return step(*args, past_key_values=past_key_values, **kwargs)

    policy.forward = chosen
    return FixedCache(columns)
