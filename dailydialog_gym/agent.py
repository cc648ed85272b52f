"""Load, save and talk to a dialogue model: any Hugging Face causal language model and its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from dailydialog_gym.data import format_prompt, left_pad
from dailydialog_gym.embedded import ASSETS, asset
from dailydialog_gym.text import join_punctuation, space_punctuation
from dailydialog_gym.tokenizer import ReplyTokenizer, hub_is_off, load_tokenizer


def resolve(name: str) -> str:
    """Where a model stands: the folder of ``"builtin"``, else the name itself."""
    return str(ASSETS / "policy") if name == "builtin" else name


def load_model(name: str, model_class: type[PreTrainedModel] = AutoModelForCausalLM) -> PreTrainedModel:
    """A causal language model in float32: ``"builtin"``, a folder (safetensors only: no pickle is read), or a hub id.

    Args:
        name: where its configuration and weights are.
        model_class: loads them; without it the class is the one that the configuration names.

    Raises:
        ValueError: there is no such model, or a folder lacks its configuration or weights.
    """
    if name == "builtin":
        with asset("policy") as folder:
            return load_model(str(folder), model_class)
    here = Path(name).is_dir()
    try:
        model = model_class.from_pretrained(
            name,
            dtype=torch.float32,
            use_safetensors=True if here else None,
            local_files_only=here or hub_is_off(),
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load model {name!r}: expected 'builtin', a folder with config.json and model.safetensors, or a "
            f"hub id ({error})"
        ) from error
    return model.eval()


def save_agent(model: PreTrainedModel, tokenizer: str, folder: Path) -> None:
    """Write an agent folder: model (safetensors), its tokenizer and generation defaults, as transformers reads them."""
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve(tokenizer)).save_pretrained(folder)


class DialogueAgent:
    """A model that answers.

    Args:
        model: a causal language model, on the device where it is to run.
        tokenizer: see `dailydialog_gym.tokenizer.load_tokenizer`.
        context_size, max_prompt_length, max_new_tokens: as in the environment.

    >>> agent = DialogueAgent.load("builtin")
    >>> isinstance(agent.chat("How are you?"), str)
    True
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: ReplyTokenizer,
        context_size: int = 5,
        max_prompt_length: int = 128,
        max_new_tokens: int = 20,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.context_size, self.max_prompt_length, self.max_new_tokens = context_size, max_prompt_length, max_new_tokens

    @classmethod
    def load(
        cls,
        name: str,
        device: str = "cpu",
        model_class: type[PreTrainedModel] = AutoModelForCausalLM,
        **kwargs: int,
    ) -> DialogueAgent:
        """From an agent folder, a hub id or ``"builtin"``; ``model_class`` as in `load_model`, the rest as above."""
        return cls(load_model(name, model_class).to(device), load_tokenizer(name), **kwargs)

    @torch.no_grad()
    def reply(
        self,
        prompts: Sequence[str],
        sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> list[str]:
        """Answer contexts (see `dailydialog_gym.data.format_prompt`), in DailyDialog's spacing.

        Args:
            sample: draw the tokens; otherwise each is the likeliest.
            temperature, top_k: of the drawing; ``top_k=0`` leaves the whole vocabulary.
            seed: of the drawing; the global generator is left as it was.
            batch_size: contexts answered at once.
        """
        tokenizer, device = self.tokenizer, self.model.device
        input_ids, mask = left_pad(tokenizer, list(prompts), self.max_prompt_length)
        order = np.argsort(mask.sum(1))  # batches of similar length need little padding
        drawing = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": 1.0} if sample else {}
        model_vocabulary = self.model.get_output_embeddings().weight.shape[0]
        replies: list[str] = [""] * len(prompts)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                first = mask[rows].any(0).argmax()
                output = self.model.generate(
                    torch.from_numpy(input_ids[rows, first:]).long().to(device),
                    attention_mask=torch.from_numpy(mask[rows, first:]).long().to(device),
                    max_new_tokens=self.max_new_tokens,
                    pad_token_id=tokenizer.pad_id,
                    suppress_tokens=list(range(tokenizer.vocab_size, model_vocabulary)) or None,
                    **(drawing or {"do_sample": False}),
                )
                reply_ids = output[:, input_ids.shape[1] - first :].cpu().numpy()
                lengths = tokenizer.reply_lengths(reply_ids)
                texts = tokenizer.decode([ids[:n] for ids, n in zip(reply_ids, lengths, strict=True)])
                for row, text in zip(rows, texts, strict=True):
                    replies[row] = text
        return replies

    def chat(self, message: str, history: Sequence[str] = (), **kwargs) -> str:
        """Answer a message, both in ordinary text.

        Args:
            message: what the user says.
            history: the utterances before it, oldest first.
            kwargs: as in `reply`.
        """
        utterances = [space_punctuation(text) for text in [*history, message]][-self.context_size :]
        return join_punctuation(self.reply([format_prompt(utterances)], **kwargs)[0])
