"""Which transformers models are supported, and the attention masks of packed rows as each of them takes them."""

from __future__ import annotations

import inspect

import torch
from transformers import PreTrainedModel

SUPPORTED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


def attention_masks(
    model: PreTrainedModel, mask: torch.Tensor, query_positions: torch.Tensor, key_positions: torch.Tensor
) -> torch.Tensor | dict[str, torch.Tensor]:
    """What a model takes as ``attention_mask``, for packed rows and for steps with a cache.

    A model with layers of several types (``config.layer_types``) takes one mask for each type, other models take one
    mask for all layers: these are the rules of `transformers.masking_utils.create_masks_for_generate`. transformers
    measures sliding windows and chunks in columns. In a packed row a reply may be far from its context, so here they
    are measured in positions.

    Args:
        model: a causal language model, or its base model.
        mask: boolean ``(B, 1, L, S)``, true where a query may attend to a key.
        query_positions: ``(B, L)``.
        key_positions: ``(B, S)``.

    Returns:
        Boolean masks ``(B, 1, L, S)`` for models with PyTorch's attention ("sdpa"). Eager attention adds the mask to
        the scores, so its masks are 0 where a query attends to a key, and elsewhere the minimum of the model's dtype.
    """
    config = model.config.get_text_config()
    columns = mask.shape[-1]
    query, key = query_positions[:, None, :, None], key_positions[:, None, None, :]
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)

    def mask_of(layer_type: str) -> torch.Tensor:
        seen = mask
        if layer_type == "sliding_attention" and window < columns:
            seen = seen & (query - key < window)
        if layer_type == "chunked_attention" and chunk < columns:
            seen = seen & (query // chunk == key // chunk)
        if config._attn_implementation == "sdpa":
            return seen
        scores = torch.zeros(seen.shape, dtype=model.dtype, device=seen.device)
        return scores.masked_fill_(~seen, torch.finfo(model.dtype).min)

    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        return {layer_type: mask_of(layer_type) for layer_type in set(layer_types)}
    if window is not None:
        return mask_of("sliding_attention")
    return mask_of("full_attention" if chunk is None else "chunked_attention")


def check_supported(model: PreTrainedModel) -> None:
    """Refuse a language model, or its base model, whose replies or updates would be wrong.

    Replies are decoded with a cache of keys and values, prompts are left-padded, and the update packs several replies
    into a row. So a layer's state must be keys and values, attention must be causal, and positions must be those of
    ``position_ids``. `dailydialog_gym.models.self_check` finds what these rules do not cover.

    Raises:
        ValueError: the model's class, and why it is refused.
    """
    config = model.config.get_text_config()
    layer_types = set(getattr(config, "layer_types", None) or ()) - SUPPORTED_LAYERS
    multimodal = any("vision" in name or "audio" in name for name in config.sub_configs)
    if multimodal or config is not model.config or hasattr(config, "cross_attention_layers"):
        reason = "it also reads images or sounds, and only models of text alone are supported"
    elif layer_types or model._is_stateful:
        found = f" ({', '.join(sorted(layer_types))})" if layer_types else ""
        reason = f"its layers{found} keep another state than keys and values, as recurrent and hybrid models do"
    elif hasattr(config, "is_decoder") and hasattr(config, "add_cross_attention"):
        reason = "it is an encoder of BERT's kind with a language-model head"
    elif getattr(config, "alibi", False):
        reason = "ALiBi takes positions from columns, and a row holds several replies here"
    elif "local" in getattr(config, "attention_layers", ()):
        reason = "its local attention counts columns, and a row holds several replies here"
    elif hasattr(config, "altup_num_inputs"):
        reason = "its hidden states are several streams (AltUp), and the critic reads one"
    elif not _takes(type(model), "position_ids"):
        reason = "its forward takes no position_ids, and a row holds several replies here"
    elif model.get_output_embeddings() is not None and not _takes(type(model), "past_key_values"):
        reason = "its forward takes no past_key_values, the cache that replies are decoded with"
    elif any(getattr(module, "is_causal", True) is False for module in model.modules()):
        reason = "its attention is not causal: tokens attend to later ones"
    else:
        return
    raise ValueError(f"{type(model).__name__} is not supported: {reason}")


def _takes(model_class: type[PreTrainedModel], name: str) -> bool:
    """Whether a model's forward has a parameter; a subclass may pass it on in ``*args`` and ``**kwargs``."""
    forwards = [vars(base)["forward"] for base in model_class.__mro__ if "forward" in vars(base)]
    return any(name in inspect.signature(forward).parameters for forward in forwards)
