"""The divergence of a policy from a frozen reference model, and coefficients that keep it near a target."""

from __future__ import annotations

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from dailydialog_gym.agent import load_model
from dailydialog_gym.precision import MixedPrecision
from dailydialog_gym.rewards.episodes import Episodes


class KLDivergence:
    """Scorer: ``log pi(token) - log pi_ref(token)`` for every token of the replies, ``(n, max_new_tokens)``.

    Its sum over a reply is the single-sample (``k1``) estimate of the KL divergence, in nats: unbiased, so negative
    for single replies and positive on average. The reference reads each distinct context once, then all replies.

    Args:
        model: the reference, a causal language model or its hub id or folder.
        vocab_size: the policy's vocabulary; columns of the reference's logits beyond it are left out.
        device: where the reference runs.
        amp_dtype: autocast to this type, or None for full precision.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        vocab_size: int,
        device: torch.device | str = "cpu",
        amp_dtype: torch.dtype | None = None,
    ):
        if isinstance(model, str):
            model = load_model(model)
        rows = model.get_output_embeddings().weight.shape[0]
        if rows < vocab_size:
            raise ValueError(f"the reference model has {rows} tokens of vocabulary, but the policy has {vocab_size}")
        self.model = model.to(device).eval().requires_grad_(False)
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        self.amp_dtype = amp_dtype

    @torch.no_grad()
    def __call__(self, episodes: Episodes) -> np.ndarray:
        if episodes.log_probs is None:
            raise ValueError("KLDivergence needs the agent's log-probabilities: wrap the environment in KLPenalty")
        ids, mask = episodes.input_ids, episodes.attention_mask  # (n, L)
        used = mask.any(0).nonzero()[0]  # columns that are padding in every row cost time and change nothing
        first, start, last = used[0], ids.shape[1] - episodes.max_new_tokens, used[-1] + 1
        _, readers, context = np.unique(
            np.where(mask, ids, -1)[:, first:start], axis=0, return_index=True, return_inverse=True
        )
        prompt, reply, cache = slice(first, start), slice(start, last), DynamicCache()
        with MixedPrecision(self.device, self.amp_dtype, ids.shape[1], self.amp_dtype is not None):
            after_prompt = self._logits(ids[readers, prompt], mask[readers, prompt], cache, 1)
            context = torch.from_numpy(context).to(self.device)
            cache.batch_select_indices(context)
            after_reply = self._logits(ids[:, reply], mask[:, first:last], cache, 0)
        logits = torch.cat([after_prompt[context], after_reply[:, :-1]], 1)  # (n, T, vocabulary)
        tokens = torch.from_numpy(ids[:, reply]).to(self.device)
        drawn = logits.float().log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1).cpu().numpy()
        result = np.zeros(episodes.log_probs.shape)
        result[:, : drawn.shape[1]] = episodes.log_probs[:, : drawn.shape[1]] - drawn
        return np.where(episodes.reply_mask, result, 0.0)

    def _logits(self, ids: np.ndarray, mask: np.ndarray, cache: DynamicCache, last: int) -> torch.Tensor:
        """Of the ``last`` columns of ``ids``, 0 for all; ``mask`` also covers the columns that are in the cache."""
        position_ids = (mask.cumsum(1) - 1).clip(0)[:, -ids.shape[1] :]
        input_ids, attention_mask, position_ids = (
            torch.from_numpy(array).to(self.device) for array in (ids, mask, position_ids)
        )
        return self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            logits_to_keep=last,
        ).logits[..., : self.vocab_size]
