"""Load, save and talk to a dialogue model: any Hugging Face causal language model and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from dailydialog_gym.agent.record import ANY_CLASS, AgentRecord, find_agent_folder
from dailydialog_gym.env.samples import left_pad
from dailydialog_gym.env.tokenizer import ReplyTokenizer, as_messages, format_prompt, load_tokenizer, split_prompt
from dailydialog_gym.hub import why
from dailydialog_gym.models.decoding import Decoding, DecodingBatch, Reply
from dailydialog_gym.models.loading import check_positions, check_vocabulary, load_model, resolve
from dailydialog_gym.templates import InTime
from dailydialog_gym.text import Spacing, convert_spacing


def save_agent(model: PreTrainedModel, tokenizer: str, folder: Path, record: AgentRecord | None = None) -> None:
    """Write an agent folder: model (safetensors), tokenizer and generation defaults, as transformers reads them.

    Args:
        model: the model.
        tokenizer: its tokenizer, by folder, or ``"builtin"``, or by a hub id that was loaded before: the hub is not
            asked, because it may be down by now, or hold another revision.
        folder: where to write.
        record: what the agent was trained with, by default the environment's defaults.

    Raises:
        ValueError: there is no such tokenizer on the disk, or it needs Python code that comes with it.
    """
    record = record or AgentRecord()
    try:
        trained_tokenizer = AutoTokenizer.from_pretrained(
            resolve(tokenizer),
            local_files_only=True,
            trust_remote_code=False,  # without it transformers would ask on the terminal
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot save tokenizer {tokenizer!r}: expected 'builtin', a folder, or a hub id that was loaded before "
            f"({why(error)})"
        ) from error
    model.save_pretrained(folder)
    if not record.chat_template:
        trained_tokenizer.chat_template = None  # the agent was trained without it, whatever the initial model used
    trained_tokenizer.save_pretrained(folder)
    record.write(folder)


def _positions(model: PreTrainedModel) -> int:
    """The number of tokens that a model can read."""
    return getattr(model.config, "max_position_embeddings", None) or 2048  # some configurations name no limit


class DialogueAgent:
    """A dialogue model with its tokenizer.

    `chat` takes and returns ordinary text. It converts it to the spacing and to the prompts that the agent was trained
    with.

    Args:
        model: a causal language model, on the device where it is to run.
        tokenizer: see `dailydialog_gym.env.tokenizer.load_tokenizer`.
        context_size, max_prompt_length, max_new_tokens: as in the environment.
        spacing: the agent's own: of the dialogues that it was trained on.

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
        spacing: Spacing = "spaced",
    ):
        self.model, self.tokenizer, self.template, self.spacing = model, tokenizer, tokenizer.template, spacing
        self.context_size, self.max_prompt_length, self.max_new_tokens = context_size, max_prompt_length, max_new_tokens
        self._in_time = InTime("the chat template")
        check_vocabulary(model, tokenizer.vocab_size)
        check_positions(model, max_prompt_length=max_prompt_length, max_new_tokens=max_new_tokens)
        eos = model.generation_config.eos_token_id if model.can_generate() else None
        ends = {*(eos if isinstance(eos, list) else [eos]), *tokenizer.end_ids}
        # A configuration may name no token, or one that the tokenizer lacks and that is therefore never written
        self._template_ends = {token for token in ends if token is not None and token < tokenizer.vocab_size}

    @classmethod
    def load(
        cls,
        name: str,
        device: str = "cpu",
        model_class: type[PreTrainedModel] = AutoModelForCausalLM,
        use_template: bool = True,
        trust_remote_code: bool = False,
        record: AgentRecord | None = None,
        **kwargs: int,
    ) -> DialogueAgent:
        """From a run folder, an agent folder, a hub id or ``"builtin"``; ``kwargs`` as in the constructor.

        An agent's folder tells what it was trained with. It names the class of the model too, but no class is imported
        because a folder names it: give it as ``model_class``.

        Args:
            name: of the model.
            device: where it is to run.
            model_class: as in `load_model`.
            use_template: for a model without a record: use the tokenizer's chat template if it has one; otherwise the
                training format.
            trust_remote_code: run Python code that comes with the model. It can do anything you can.
            record: used for a model that has no record of its own.

        Raises:
            ValueError: there is no such agent, it was trained with another class, or it is not supported.
        """
        name, own = find_agent_folder(name)
        if own and own.policy_class != ANY_CLASS and model_class is AutoModelForCausalLM:
            raise ValueError(
                f"{name} was trained with a class of its own: add --policy-class {own.policy_class}, or model_class= "
                "in Python"
            )
        record = own or record
        model = load_model(name, model_class, trust_remote_code).to(device)
        has_template = record.chat_template if record else None if use_template else False
        tokenizer = load_tokenizer(name, trust_remote_code, has_template)
        settings: dict[str, Any] = {}
        if record:
            names = ("context_size", "max_prompt_length", "max_new_tokens", "spacing")
            settings = {key: getattr(record, key) for key in names}
        elif tokenizer.template:
            # Templates, and the texts that such models are made for, are longer than the environment's prompts.
            settings = {"max_prompt_length": min(1024, _positions(model) // 2), "spacing": "ordinary"}
        return cls(model, tokenizer, **{**settings, **kwargs})

    def reply(
        self,
        prompts: Sequence[str],
        sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        batch_size: int = 64,
        spacing: Spacing | None = None,
        end: str = "",
        min_new_tokens: int = 0,
    ) -> list[str]:
        """Answer contexts (see `dailydialog_gym.env.tokenizer.format_prompt`).

        Equal contexts that are answered in the same batch are read once.

        Args:
            prompts: the contexts.
            sample: sample the tokens; otherwise each is the likeliest.
            temperature: sampling temperature.
            top_k: sample from the likeliest k tokens; 0 leaves the whole vocabulary.
            seed: random seed of sampling.
            batch_size: contexts answered at once.
            spacing: of the contexts, and of the replies that are returned; by default the agent's own.
            end: is added to each reply that ended, rather than being cut off at ``max_new_tokens``.
            min_new_tokens: the fewest tokens before the end of a reply.
        """
        asked = spacing or self.spacing
        if asked != self.spacing:
            contexts = ([convert_spacing(text, asked, self.spacing) for text in split_prompt(p)] for p in prompts)
            prompts = [format_prompt(utterances) for utterances in contexts]
        input_ids, mask = left_pad(self.tokenizer, list(prompts), self.max_prompt_length)
        seeds = np.random.default_rng(seed).integers(2**63, size=len(prompts)).tolist()
        lengths = {"max_new_tokens": self.max_new_tokens, "min_new_tokens": min_new_tokens}
        replies = [
            Reply(
                ids[there].tolist(),
                Decoding(sample, temperature, top_k, seed=one, **lengths),
                self._is_whole,
                end_tokens=self._end_tokens,
            )
            for ids, there, one in zip(input_ids, mask, seeds, strict=True)
        ]
        order = sorted(replies, key=lambda reply: (len(reply.prompt_ids), reply.prompt_ids))  # little padding
        self._write(order, batch_size)
        ids = [
            [i for i in reply.ids if i not in self._template_ends] if self.template else reply.ids for reply in replies
        ]
        texts = self.tokenizer.decode([np.array(each, np.int64) for each in ids])
        return [
            convert_spacing(text, self.spacing, asked) + (end if self._is_whole(reply.ids) else "")
            for text, reply in zip(texts, replies, strict=True)
        ]

    def __call__(self, utterances: Sequence[str]) -> str:
        """The likeliest next utterance of a conversation, in the agent's own spacing.

        This makes an agent a ``partner`` of `dailydialog_gym.env.DailyDialogTextEnv`.
        """
        return self.reply([format_prompt(utterances[-self.context_size :])])[0]

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
        return Reply(ids, decoding, self._is_whole, end_tokens=self._end_tokens)

    @property
    def longest_reply(self) -> int:
        """How many tokens a reply may have: what the longest prompt leaves of the model's positions."""
        return min(1024, _positions(self.model) - self.max_prompt_length)

    def reply_text(self, ids: Sequence[int]) -> str:
        """The ordinary text of a reply that may still be growing: half a character or half an end is not shown."""
        shown = [i for i in ids if i not in self._template_ends] if self.template else ids[: self._read(ids)[0]]
        (text,) = self.tokenizer.decode([np.array(shown, np.int64)])
        return convert_spacing(text, self.spacing, "ordinary").rstrip("\ufffd").strip()

    def own_text(self, text: str) -> str:
        """An ordinary text in the spacing that the agent was trained with."""
        return convert_spacing(text, "ordinary", self.spacing)

    def messages(self, utterances: Sequence[str]) -> list[dict[str, str]]:
        """What an agent with a chat template is given of a conversation, the last utterance of which is the user's."""
        return as_messages(list(utterances)[-self.context_size :])

    def _write(self, replies: Sequence[Reply], batch_size: int) -> None:
        for start in range(0, len(replies), batch_size):
            batch = self.decoding_batch()
            batch.add(list(replies[start : start + batch_size]))
            while batch.replies:
                batch.step()
        for reply in replies:
            if reply.error:
                raise reply.error

    def _end_tokens(self, ids: Sequence[int]) -> list[int]:
        """The tokens that end a reply after ``ids``."""
        if self.template:
            return sorted(self._template_ends)
        state = 0
        for token in ids:
            state = self.tokenizer.transitions[state, token]
        return np.flatnonzero(self.tokenizer.transitions[state] == self.tokenizer.accepting_state).tolist()

    def _is_whole(self, ids: Sequence[int]) -> bool:
        return ids[-1] in self._template_ends if self.template else self._read(ids)[1]

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
        prompt = format_prompt([self.own_text(text) for text in utterances])
        input_ids, mask = left_pad(self.tokenizer, [prompt], self.max_prompt_length)
        return input_ids[mask].tolist()
