"""The divergence of a policy from a frozen reference model, and coefficients that keep it near a target."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from dailydialog_gym.agent import load_model
from dailydialog_gym.rewards.episodes import Episodes


class KLDivergence:
    """Scorer: ``log pi(token) - log pi_ref(token)`` for every token of the replies, ``(n, max_new_tokens)``.

    Its sum over a reply is the single-sample (``k1``) estimate of the KL divergence, in nats: unbiased, so negative
    for single replies and positive on average. The reference sees all episodes in one forward pass.

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
        input_ids = torch.from_numpy(episodes.input_ids).to(self.device)  # (n, L)
        attention_mask = torch.from_numpy(episodes.attention_mask).to(self.device)
        replies = episodes.max_new_tokens
        used = attention_mask.any(0).nonzero()  # columns that are padding in every row cost time and change nothing
        first, last = used[0].item(), used[-1].item() + 1
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            logits = self.model(
                input_ids[:, first:last],
                attention_mask=attention_mask[:, first:last],
                position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0)[:, first:last],
                logits_to_keep=replies + 1 - (input_ids.shape[1] - last),
                use_cache=False,
            ).logits
        log_probs = logits[:, :-1, : self.vocab_size].float().log_softmax(-1)
        tokens = input_ids[:, -replies:last].unsqueeze(-1)
        result = np.zeros(episodes.log_probs.shape)
        drawn = log_probs.gather(-1, tokens).squeeze(-1).cpu().numpy()
        result[:, : drawn.shape[1]] = episodes.log_probs[:, : drawn.shape[1]] - drawn
        return np.where(episodes.reply_mask, result, 0.0)
