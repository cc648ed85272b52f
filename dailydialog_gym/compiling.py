"""`torch.compile` where it pays: in the update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel


def compile_layers(agent: nn.Module) -> None:
    """Compile the transformer layers of an agent's models, for forwards that take gradients.

    One layer is compiled and serves for all of its shape, so that this takes as long for 12 as for one. Decoding and
    evaluating, whose shapes change with every token, stay as they are.
    """
    models = [module for module in agent.modules() if isinstance(module, PreTrainedModel)]
    names = {name for model in models for name in model._no_split_modules or ()}
    for module in agent.modules():
        if type(module).__name__ in names:
            module.forward = _where_it_learns(module.forward)


def _where_it_learns(forward: Callable) -> Callable:
    compiled = torch.compile(forward, dynamic=True)

    def chosen(*args, **kwargs):
        return (compiled if torch.is_grad_enabled() else forward)(*args, **kwargs)

    return chosen
