"""The attention masks of packed rows, as each transformers model takes them."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


def attention_masks(
    model: PreTrainedModel, packed_mask: torch.Tensor, position_ids: torch.Tensor
) -> torch.Tensor | dict[str, torch.Tensor]:
    """What a model takes as ``attention_mask`` for packed rows.

    A model with layers of several types (``config.layer_types``) takes one mask for each type, other models take one
    mask for all layers: these are the rules of `transformers.masking_utils.create_masks_for_generate`. transformers
    measures sliding windows and chunks in columns. In a packed row a reply may be far from its context, so here they
    are measured in positions.

    Args:
        model: a causal language model, or its base model.
        packed_mask: boolean ``(B, 1, L, L)``, true where a query may attend to a key.
        position_ids: ``(B, L)``.

    Returns:
        Boolean masks ``(B, 1, L, L)`` for models with PyTorch's attention ("sdpa"). Eager attention adds the mask to
        the scores, so its masks are 0 where a query attends to a key, and elsewhere the minimum of the model's dtype.
    """
    config = model.config.get_text_config()
    columns = packed_mask.shape[-1]
    query, key = position_ids[:, None, :, None], position_ids[:, None, None, :]
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)

    def mask_of(layer_type: str) -> torch.Tensor:
        mask = packed_mask
        if layer_type == "sliding_attention" and window < columns:
            mask = mask & (query - key < window)
        if layer_type == "chunked_attention" and chunk < columns:
            mask = mask & (query // chunk == key // chunk)
        if config._attn_implementation == "sdpa":
            return mask
        scores = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device)
        return scores.masked_fill_(~mask, torch.finfo(model.dtype).min)

    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        return {layer_type: mask_of(layer_type) for layer_type in set(layer_types)}
    if window is not None:
        return mask_of("sliding_attention")
    return mask_of("full_attention" if chunk is None else "chunked_attention")
