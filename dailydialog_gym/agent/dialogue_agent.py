"""Load, save and talk to a dialogue model: any Hugging Face causal language model and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dailydialog_gym.env.samples import format_prompt, left_pad
from dailydialog_gym.env.tokenizer import ReplyTokenizer, load_tokenizer
from dailydialog_gym.hub import only_local_files
from dailydialog_gym.models.decoding import Decoding, DecodingBatch, Reply
from dailydialog_gym.models.loading import check_positions, check_vocabulary, load_model, resolve
from dailydialog_gym.templates import InTime, check_template
from dailydialog_gym.text import join_punctuation, space_punctuation


def save_agent(model: PreTrainedModel, tokenizer: str, folder: Path) -> None:
    """Write an agent folder: model (safetensors), its tokenizer and generation defaults, as transformers reads them."""
    model.save_pretrained(folder)
    trained_tokenizer = AutoTokenizer.from_pretrained(resolve(tokenizer))
    trained_tokenizer.chat_template = None  # training uses the training format, whatever the initial model used
    trained_tokenizer.save_pretrained(folder)


def _positions(model: PreTrainedModel) -> int:
    """The number of tokens that a model can read."""
    return getattr(model.config, "max_position_embeddings", None) or 2048  # some configurations name no limit


class DialogueAgent:
    """A dialogue model with its tokenizer.

    `chat` takes and returns ordinary text. It converts it to the training format, or to the chat template of a model
    that has one.

    Args:
        model: a causal language model, on the device where it is to run.
        tokenizer: see `dailydialog_gym.env.tokenizer.load_tokenizer`.
        context_size, max_prompt_length, max_new_tokens: as in the environment.
        template: the tokenizer whose chat template `chat` uses, instead of the training format.

    Raises:
        ValueError: the tokenizer has more tokens than the model's embeddings, or prompt and reply together have more
            tokens than the model has positions.

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
        template: PreTrainedTokenizerBase | None = None,
    ):
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.context_size, self.max_prompt_length, self.max_new_tokens = context_size, max_prompt_length, max_new_tokens
        self._in_time = InTime("the chat template")
        check_vocabulary(model, tokenizer.vocab_size)
        check_positions(model, max_prompt_length, max_new_tokens)
        eos = model.generation_config.eos_token_id
        self._template_ends = {*(eos if isinstance(eos, list) else [eos]), template.eos_token_id} if template else set()

    @classmethod
    def load(
        cls,
        name: str,
        device: str = "cpu",
        model_class: type[PreTrainedModel] = AutoModelForCausalLM,
        use_template: bool = True,
        trust_remote_code: bool = False,
        **kwargs: int,
    ) -> DialogueAgent:
        """From an agent folder, a hub id or ``"builtin"``; ``kwargs`` as in the constructor.

        Args:
            name: of the model.
            device: where it is to run.
            model_class: as in `load_model`.
            use_template: use the tokenizer's chat template if it has one; otherwise the training format.
            trust_remote_code: run Python code that comes with the model. It can do anything you can.
        """
        model = load_model(name, model_class, trust_remote_code).to(device)
        tokenizer = load_tokenizer(name, trust_remote_code)
        template = None
        if use_template and name != "builtin":
            template = AutoTokenizer.from_pretrained(
                name, local_files_only=only_local_files(name), trust_remote_code=trust_remote_code
            )
        if template is None or not template.chat_template:
            return cls(model, tokenizer, **kwargs)
        check_template(name, template.get_chat_template())
        # Templates, and the texts that such models are made for, are longer than the environment's prompts.
        return cls(
            model, tokenizer, template=template, **{"max_prompt_length": min(1024, _positions(model) // 2), **kwargs}
        )

    def reply(
        self,
        prompts: Sequence[str],
        sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> list[str]:
        """Answer contexts (see `dailydialog_gym.env.samples.format_prompt`), in DailyDialog's spacing.

        Equal contexts that are answered in the same batch are read once.

        Args:
            sample: draw the tokens; otherwise each is the likeliest.
            temperature, top_k: of the drawing; ``top_k=0`` leaves the whole vocabulary.
            seed: of the drawing.
            batch_size: contexts answered at once.
        """
        input_ids, mask = left_pad(self.tokenizer, list(prompts), self.max_prompt_length)
        seeds = np.random.default_rng(seed).integers(2**63, size=len(prompts)).tolist()
        replies = [
            Reply(
                ids[there].tolist(),
                Decoding(sample, temperature, top_k, max_new_tokens=self.max_new_tokens, seed=one),
                self._has_end,
            )
            for ids, there, one in zip(input_ids, mask, seeds, strict=True)
        ]
        order = sorted(replies, key=lambda reply: (len(reply.prompt_ids), reply.prompt_ids))  # little padding
        self._write(order, batch_size)
        return self.tokenizer.decode([np.array(reply.ids) for reply in replies])

    def chat(self, message: str, history: Sequence[str] = (), **decoding: Any) -> str:
        """Answer a message, both in ordinary text.

        Args:
            message: what the user says.
            history: the utterances before it, oldest first.
            decoding: as in `dailydialog_gym.models.decoding.Decoding`.
        """
        return self.chat_batch([message], [history], **decoding)[0]

    def chat_batch(
        self,
        messages: Sequence[str],
        histories: Sequence[Sequence[str]] | None = None,
        batch_size: int = 64,
        **decoding: Any,
    ) -> list[str]:
        """Answer messages of several conversations in one batch. Each reply is the one that `chat` would give.

        Args:
            messages: what each of them says.
            histories: the utterances before each, oldest first; none by default.
            batch_size: how many are answered at once.
            decoding: as in `dailydialog_gym.models.decoding.Decoding`.
        """
        how = Decoding(**{"max_new_tokens": self.max_new_tokens, **decoding})
        histories = [()] * len(messages) if histories is None else histories
        replies = [self.open_reply([*h, m], how) for m, h in zip(messages, histories, strict=True)]
        self._write(replies, batch_size)
        return [self.reply_text(reply.ids) for reply in replies]

    def chat_stream(self, message: str, history: Sequence[str] = (), **decoding: Any) -> Iterator[str]:
        """The reply of `chat` as it grows: its whole text so far after every token."""
        reply = self.open_reply([*history, message], Decoding(**{"max_new_tokens": self.max_new_tokens, **decoding}))
        batch = self.decoding_batch()
        batch.add([reply])
        while batch.replies:
            if reply.error:
                raise reply.error
            yield self.reply_text(reply.ids)
            batch.step()

    def decoding_batch(self) -> DecodingBatch:
        """An empty batch for this agent's replies."""
        return DecodingBatch(self.model, self.tokenizer.vocab_size)

    def open_reply(self, utterances: Sequence[str], decoding: Decoding) -> Reply:
        """A reply to a conversation, the last utterance of which is to be answered, ready for a batch.

        Raises:
            ValueError: the reply would not fit into the model's positions, or the chat template does not end in time.
        """
        if decoding.max_new_tokens > self.longest_reply:
            raise ValueError(f"max_new_tokens is {decoding.max_new_tokens}: expected at most {self.longest_reply}")
        utterances = list(utterances)[-self.context_size :]
        ids = self._in_time(self._prompt_ids, utterances) if self.template else self._prompt_ids(utterances)
        return Reply(ids, decoding, self._is_whole)

    @property
    def longest_reply(self) -> int:
        """How many tokens a reply may have: what the longest prompt leaves of the model's positions."""
        return min(1024, _positions(self.model) - self.max_prompt_length)

    def reply_text(self, ids: Sequence[int]) -> str:
        """The ordinary text of a reply that may still be growing: half a character or half an end is not shown."""
        if self.template:
            text = self.template.decode([i for i in ids if i not in self._template_ends], skip_special_tokens=True)
        else:
            text = join_punctuation(self.tokenizer.decode([np.array(ids[: self._read(ids)[0]])])[0])
        return text.rstrip("\ufffd").strip()

    def messages(self, utterances: Sequence[str]) -> list[dict[str, str]]:
        """What an agent with a chat template is given of a conversation, the last utterance of which is the user's."""
        utterances = list(utterances)[-self.context_size :]
        if len(utterances) % 2 == 0:
            utterances = utterances[1:]  # a template's first turn is the user's, as its last is
        return [{"role": "assistant" if turn % 2 else "user", "content": text} for turn, text in enumerate(utterances)]

    def _write(self, replies: Sequence[Reply], batch_size: int) -> None:
        for start in range(0, len(replies), batch_size):
            batch = self.decoding_batch()
            batch.add(list(replies[start : start + batch_size]))
            while batch.replies:
                batch.step()
        for reply in replies:
            if reply.error:
                raise reply.error

    def _is_whole(self, ids: Sequence[int]) -> bool:
        return ids[-1] in self._template_ends if self.template else self._has_end(ids)

    def _has_end(self, ids: Sequence[int]) -> bool:
        return self._read(ids)[1]

    def _read(self, ids: Sequence[int]) -> tuple[int, bool]:
        """How many of the tokens are text for sure, not the beginning of an end; and whether the end is there."""
        state, sure = 0, 0
        for count, token in enumerate(ids, 1):
            state = self.tokenizer.transitions[state, token]
            if state == self.tokenizer.accepting_state:
                return count, True  # `decode` leaves the end out
            if state == 0:
                sure = count
        return sure, False

    def _prompt_ids(self, utterances: list[str]) -> list[int]:
        if self.template is None:
            prompt = format_prompt([space_punctuation(text) for text in utterances])
            input_ids, mask = left_pad(self.tokenizer, [prompt], self.max_prompt_length)
            return input_ids[mask].tolist()
        messages = [{**m, "content": self._disarm(m["content"])} for m in self.messages(utterances)]
        while True:
            ids = self.template.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            if len(ids) <= self.max_prompt_length:
                return ids
            if len(messages) == 1:
                raise ValueError(
                    f"the message has {len(ids)} tokens, template included: expected at most {self.max_prompt_length}"
                )
            messages = messages[2:]

    def _disarm(self, text: str) -> str:
        """A text in which a special token's name is no special token, so that nobody speaks in another's role."""
        for name in self.template.all_special_tokens:
            text = text.replace(name, f"{name[0]} {name[1:]}")
        return text
