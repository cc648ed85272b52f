"""The KL divergence of the policy from a frozen reference model."""

from __future__ import annotations

from dailydialog_gym.extras import need

need("torch", "transformers")

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dailydialog_gym.models.forward import forward_packed
from dailydialog_gym.models.last_block import head_on_predicting
from dailydialog_gym.models.loading import head_of, load_model
from dailydialog_gym.models.packing import pack
from dailydialog_gym.models.precision import MixedPrecision
from dailydialog_gym.rewards.episodes import Episodes

MAX_LOGITS = 2**27  # of a forward; 0.5 GiB in float32


class KLDivergence:
    """Scorer: ``log pi(token) - log pi_ref(token)`` for every token of the replies, ``(n, max_new_tokens)``.

    The sum over a reply is the single-sample k1 estimate of the KL divergence, in nats. It is negative for some
    replies. It is unbiased if the tokens were drawn from the whole distribution, not from its top k. Each distinct
    context is encoded once, together with all replies to it.

    Args:
        model: the reference model: a causal language model, or its folder or hub id.
        vocab_size: the size of the policy's vocabulary. Further columns of the reference's logits are ignored.
        device: the device of the reference.
        amp_dtype: the dtype for autocast, or None for full precision. The weights of linear layers are stored in it.

    Raises:
        ValueError: the reference has no language-model head, or its vocabulary is smaller than ``vocab_size``.
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
        rows = head_of(model).weight.shape[0]
        if rows < vocab_size:
            raise ValueError(
                f"the reference model, a {type(model).__name__}, has {rows} tokens, but the policy has {vocab_size}: "
                "choose a reference with the same tokenizer, such as the policy before training"
            )
        self.model = model.to(device).eval().requires_grad_(False)
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        self.amp_dtype = amp_dtype
        if amp_dtype:  # cast once what autocast would cast in every forward, except a head tied to the embeddings
            tied = self.model.get_input_embeddings().weight
            for module in self.model.modules():
                if isinstance(module, nn.Linear | Conv1D) and module.weight is not tied:
                    module.to(amp_dtype)

    @torch.no_grad()
    def __call__(self, episodes: Episodes) -> np.ndarray:
        if episodes.log_probs is None:
            raise ValueError("KLDivergence needs the agent's log-probabilities: wrap the environment in KLPenalty")
        context = np.unique(
            np.where(episodes.attention_mask, episodes.input_ids, -1)[:, : -episodes.max_new_tokens],
            axis=0,
            return_inverse=True,
        )[1]
        tokens = np.bincount(context, episodes.reply_mask.sum(1)).astype(np.int64)  # of the replies to each context
        forwards = (tokens * self.vocab_size).cumsum() // MAX_LOGITS  # of each context, the forward that reads it
        result = np.zeros(episodes.log_probs.shape)
        for forward in np.unique(forwards):
            rows = forwards[context] == forward
            there = rows[:, None] & episodes.reply_mask
            result[there] = episodes.log_probs[there] - self._log_probs(episodes, rows, context)
        return result

    def _log_probs(self, episodes: Episodes, rows: np.ndarray, context: np.ndarray) -> np.ndarray:
        """``(tokens,)`` log-probabilities of the reply tokens in some rows, by the reference."""
        ids, mask = episodes.input_ids[rows], episodes.attention_mask[rows]
        start = ids.shape[1] - episodes.max_new_tokens
        packed = pack(ids, mask, start, context[rows], self.device)
        precision = MixedPrecision(self.device, self.amp_dtype, packed.input_ids.shape[1])
        with precision, head_on_predicting(self.model, packed):
            logits = forward_packed(self.model, packed, logits_to_keep=packed.tail).logits[0, :, : self.vocab_size]
        tokens = torch.from_numpy(ids[:, start:][mask[:, start:].astype(bool)]).to(self.device)
        return -cross_entropy(logits.float(), tokens, reduction="none").cpu().numpy()
