"""The two ways to run a policy: on whole replies in packed rows, and token by token with a key-value cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import Cache, PreTrainedModel

from dailydialog_gym.models.last_block import only_tail_is_read
from dailydialog_gym.models.masks import attention_masks
from dailydialog_gym.models.packing import Packed


def forward_packed(model: nn.Module, packed: Packed, **options: Any):
    """A transformers model's output for packed rows; only its last ``packed.tail`` columns are meaningful.

    `Packed.predicting` selects from it what predicts the reply tokens.

    Args:
        model: a transformers model, or a DeepSpeed engine of one.
        options: are passed on to the model.
    """
    network, positions = network_of(model), packed.position_ids
    with only_tail_is_read(network, packed.tail):
        return model(
            packed.input_ids,
            attention_mask=attention_masks(network, packed.attention_mask, positions, positions),
            position_ids=positions,
            use_cache=False,
            **options,
        )


def forward_cached(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    past_key_values: Cache,
    **options: Any,
):
    """A transformers model's output for the tokens that its cache lacks; its logits are those of the last column.

    transformers would make the attention masks from the two-dimensional one, but asks the device first whether there is
    any padding, and waits for the answer at every token.

    Args:
        model: a transformers model, or a DeepSpeed engine of one.
        input_ids: ``(n, L)``.
        attention_mask: ``(n, columns)``, 1 for tokens and 0 for padding; the last L columns are those of ``input_ids``
            unless the cache is a `FixedCache`, which has as many columns as the mask.
        position_ids: ``(n, L)``.
        past_key_values: the cache.
        options: are passed on to the model.
    """
    network, width = network_of(model), input_ids.shape[1]
    there = attention_mask.bool()
    there = functional.pad(there, (0, past_key_values.get_mask_sizes(width, 0)[0] - there.shape[1]))
    seen = there[:, None, None]
    if width > 1:  # a prompt; padding sees itself, because a softmax over nothing is NaN
        square = torch.ones(width, width, dtype=torch.bool, device=there.device)
        seen = (seen & square.tril()) | torch.eye(width, dtype=torch.bool, device=there.device)
    return model(
        input_ids,
        attention_mask=attention_masks(network, seen, position_ids, there.cumsum(-1) - 1),
        position_ids=position_ids,
        past_key_values=past_key_values,
        use_cache=True,
        logits_to_keep=1,
        **options,
    )


def network_of(model: nn.Module) -> PreTrainedModel:
    """The model of transformers in a module that may wrap it, such as an adapter or an engine of DeepSpeed."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))
