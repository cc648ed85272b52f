"""The environment's tokenizer: it encodes prompts, decodes replies, and detects which token ends a reply."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from dailydialog_gym.caching import cached_until_changed
from dailydialog_gym.embedded import asset
from dailydialog_gym.extras import need
from dailydialog_gym.files import check_folder
from dailydialog_gym.hub import only_local_files, why
from dailydialog_gym.templates import render_apart
from dailydialog_gym.text import pattern_of, spell_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EOU = "<EOU>"
_EOU_PATTERN = pattern_of([EOU])


def format_prompt(utterances: Sequence[str]) -> str:
    """Format a context as the text that the model continues: every utterance is followed by `` <EOU>``.

    RL4LMs and OpenRL use the same format. An ``<EOU>`` inside an utterance ends nothing: it is spelt out.

    >>> format_prompt(["Good morning .", "Hi , Ann !"])
    'Good morning . <EOU> Hi , Ann ! <EOU>'
    >>> format_prompt(["Hi <EOU> I agree"])
    'Hi < EOU> I agree <EOU>'
    """
    return " ".join(f"{spell_out(utterance, _EOU_PATTERN)} {EOU}" for utterance in utterances)


def split_prompt(prompt: str) -> list[str]:
    """The utterances of a prompt in the format of `format_prompt`.

    >>> split_prompt("Good morning . <EOU> Hi , Ann ! <EOU>")
    ['Good morning .', 'Hi , Ann !']
    """
    return [utterance.strip() for utterance in prompt.split(EOU)[:-1]]


def as_messages(utterances: Sequence[str]) -> list[dict[str, str]]:
    """A conversation as the messages of a chat template: the last utterance is the user's, and so is the first.

    >>> as_messages(["Hi!", "Hello.", "Who is it?"])[1]
    {'role': 'assistant', 'content': 'Hello.'}
    """
    utterances = utterances[len(utterances) % 2 == 0 :]
    return [{"role": "assistant" if turn % 2 else "user", "content": text} for turn, text in enumerate(utterances)]


class ReplyTokenizer:
    """Encodes prompts, decodes replies, and detects the end of a reply token by token.

    With a chat template, a prompt is the template's text, and a reply ends with the template's end of turn or the
    tokenizer's EOS token. All that follows is about tokenizers without one.

    A reply ends as soon as its text contains a complete ``<EOU>``. Tokenizers split these five characters in different
    ways. In the embedded tokenizer they are one special token. GPT-2 splits them into ``Ġ<``, ``E``, ``OU`` and ``>``,
    or differently, depending on the characters around them: after a question mark the first token is ``?<``. So the
    characters of each token drive a Knuth-Morris-Pratt automaton that searches for ``<EOU>``. `transitions` is its
    transition table over whole tokens, and one indexing operation advances a batch of rows. The tokenizer's EOS token
    leads from every state to the accepting state.

    Args:
        name: for error messages.
        backend: the tokenizer.
        eos_id, pad_id: the ids of the EOS and the padding token, None if there is none.
        bos_ids: see the attribute.
        template: the Hugging Face tokenizer whose chat template is used, or None.

    Attributes:
        vocab_size: the highest token id plus one, added tokens included.
        pad_id: the id in masked columns. It is the EOS token if the tokenizer has no padding token, so an attention
            mask must never be derived from it.
        bos_ids: the ids that the tokenizer puts before every text: empty, or the BOS token. A template writes its own.
        end_ids: with a template, the ids of the tokens that end a reply; otherwise empty.
        transitions: ``(len("<EOU>") + 1, vocab_size)`` int64, where ``transitions[state, token]`` is the next state.
        accepting_state: the state of a reply that has ended.

    Raises:
        ValueError: the tokenizer cannot represent ``<EOU>``, or the template has no end of turn.
    """

    accepting_state = len(EOU)

    def __init__(
        self,
        name: str,
        backend: Tokenizer,
        eos_id: int | None,
        pad_id: int | None,
        bos_ids: list[int],
        template: PreTrainedTokenizerBase | None = None,
    ):
        self.name = name
        self.backend = backend
        self.template: Any = template
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.bos_ids = [] if template else bos_ids
        self.pad_id = next((i for i in (pad_id, eos_id) if i is not None), 0)
        special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        self._special = pattern_of(special if template else special - {EOU})
        self.end_ids: set[int] = set()
        if template:
            self._end_of_turn = _end_of_turn(name, template, self._special)
            self.end_ids = {self._end_of_turn, *([] if eos_id is None else [eos_id])}
            self.transitions = np.zeros((len(EOU) + 1, self.vocab_size), np.int64)
            self.transitions[:, list(self.end_ids)] = self.accepting_state
            return
        self.transitions = _eou_transitions(backend, self.vocab_size)
        if eos_id is not None:
            self.transitions[:, eos_id] = self.accepting_state
        state = 0
        for token in self.encode([EOU])[0]:
            state = self.transitions[state, token]
        if state != self.accepting_state:
            tokens = [backend.id_to_token(i) for i in self.encode([EOU])[0]]
            raise ValueError(
                f"tokenizer {name!r} cannot represent the end-of-utterance marker {EOU!r}: it encodes it as {tokens}. "
                "An instruct model needs none with its chat template (--chat-template). "
                f"Add it as a token: tokenizer.add_special_tokens({{'additional_special_tokens': ['{EOU}']}})"
            )

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without the special tokens that a tokenizer may add before or after it.

        Raises:
            ValueError: a text has a lone surrogate, half of a character, such as is left where an emoji was cut.
        """
        try:
            return [e.ids for e in self.backend.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError as error:
            bad = next(text for text in texts if re.search("[\ud800-\udfff]", text))
            raise ValueError(f"expected text, got half of a character (a lone surrogate) in {bad[:80]!r}") from error

    def encode_prompts(self, prompts: Sequence[str], width: int) -> list[list[int] | None]:
        """Token ids of contexts in the format of `format_prompt`, at most ``width`` of each.

        The name of a special token inside an utterance is spelt out. A longer context loses its beginning: single
        tokens, but not BOS; with a chat template whole utterances, and where the last one alone is too long for
        ``width``, there is None instead of ids.
        """
        if not self.template:
            room = width - len(self.bos_ids)
            encoded = self.encode([spell_out(prompt, self._special) for prompt in prompts])
            return [self.bos_ids + ids[-room:] for ids in encoded]
        messages = [as_messages([spell_out(text, self._special) for text in split_prompt(p)]) for p in prompts]
        encoded = self.encode([self._render(each) for each in messages])
        for i, ids in enumerate(encoded):
            while len(ids) > width and len(messages[i]) > 1:
                messages[i] = messages[i][2:]
                (ids,) = self.encode([self._render(messages[i])])
            encoded[i] = ids
        return [ids if len(ids) <= width else None for ids in encoded]

    def encode_replies(self, replies: Sequence[str]) -> list[list[int]]:
        """Token ids of replies, as an agent that writes these texts would choose them, with the tokens that end them.

        The name of a special token is spelt out, except ``<EOU>`` where there is no chat template: it ends a reply.
        """
        texts = [spell_out(reply, self._special) for reply in replies]
        if self.template:
            return [[*ids, self._end_of_turn] for ids in self.encode(texts)]
        # A reply follows an <EOU>, which decides how its first word is tokenised.
        before = len(self.encode([EOU])[0])
        return [ids[before:] for ids in self.encode([f"{EOU} {text} {EOU}" for text in texts])]

    def encode_dialogues(self, dialogues: Iterable[Sequence[str]]) -> list[list[list[int]]]:
        """Token ids of each utterance of each dialogue with the ``<EOU>`` after it, as contexts and replies have them.

        Raises:
            ValueError: ``<EOU>`` is more than one token.
        """
        if len(end := self.encode([EOU])[0]) != 1:
            raise ValueError(f"the tokenizer {self.name!r} splits {EOU}: fine-tune the model with recipes.sft first")
        found: list[list[list[int]]] = []
        for ids in self.encode([spell_out(format_prompt(utterances), self._special) for utterances in dialogues]):
            ends = [i + 1 for i, token in enumerate(ids) if token == end[0]]
            found.append([ids[start:stop] for start, stop in zip([0, *ends], ends, strict=False)])
        return found

    def _render(self, messages: list[dict[str, str]]) -> str:
        try:
            return self.template.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program, which may raise anything
            fault = f"{type(error).__name__}: {error}"
            raise ValueError(f"the chat template of tokenizer {self.name!r} fails ({fault})") from error

    def decode(self, replies: list[np.ndarray]) -> list[str]:
        """The texts of replies, each an array of ids, without ``<EOU>``, special tokens and surrounding whitespace."""
        texts = self.backend.decode_batch([ids.tolist() for ids in replies], skip_special_tokens=True)
        if self.template:
            return [text.strip() for text in texts]
        return [text.split(EOU, 1)[0].strip() for text in texts]


def _end_of_turn(name: str, template: PreTrainedTokenizerBase, special: re.Pattern[str]) -> int:
    """The special token that follows an assistant's message in a chat template: an end of turn, or the next role."""
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "MARK"), ("user", "b"))]
    after = render_apart(name, template.get_chat_template(), turns, template.special_tokens_map).partition("MARK")[2]
    end = special.search(after)
    if not end:
        raise ValueError(f"the chat template of tokenizer {name!r} has no token that ends a reply, it has {after!r}")
    return template.convert_tokens_to_ids(end[0])


def _eou_transitions(backend: Tokenizer, vocab_size: int) -> np.ndarray:
    """The transition table of `ReplyTokenizer`.

    In state ``s`` the text so far ends with the first ``s`` characters of ``<EOU>``; state 5 accepts. No proper prefix
    of ``<EOU>`` is also a suffix of it, so a mismatch leads back to state 0, or to state 1 if the character is ``<``.
    """
    num_states = len(EOU) + 1
    # The states are used as indices. numpy would have to convert a type other than int64, which takes twice as long.
    transitions = np.zeros((num_states, vocab_size), np.int64)
    for text, token in backend.get_vocab(with_added_tokens=True).items():
        for start in range(num_states):
            state = start
            for char in text:
                if state == len(EOU):
                    break
                state = state + 1 if char == EOU[state] else int(char == EOU[0])
            transitions[start, token] = state
    return transitions


@cached_until_changed("name")
def load_tokenizer(name: str, trust_remote_code: bool = False, chat_template: bool | None = False) -> ReplyTokenizer:
    """Load the embedded tokenizer or any Hugging Face tokenizer. The result is cached until the files change.

    Every tokenizer but the embedded one is loaded with transformers' ``AutoTokenizer``, so transformers must be
    installed.

    Args:
        name: ``"builtin"``, a folder, or a hub id.
        trust_remote_code: allow the tokenizer to run Python code of its own. Such code has all of your permissions.
        chat_template: write prompts in the tokenizer's chat template, so that no ``<EOU>`` is needed; None: if it has
            one.

    Raises:
        ValueError: the tokenizer cannot be loaded, has no fast backend, cannot represent ``<EOU>``, or has no chat
            template or one that does not end.
    """
    if name == "builtin":
        if chat_template:
            raise ValueError("the embedded tokenizer has no chat template: use it without --chat-template")
        with asset("policy") as folder:
            backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        eos_id, pad_id = (backend.token_to_id(config[key]) for key in ("eos_token", "pad_token"))
        return ReplyTokenizer(name, backend, eos_id, pad_id, [])

    need("transformers")
    from transformers import AutoTokenizer

    try:
        check_folder(name)
        tokenizer = AutoTokenizer.from_pretrained(
            name, local_files_only=only_local_files(name), trust_remote_code=trust_remote_code
        )
    except Exception as error:  # damaged files raise many types, those of `tokenizers` the plain one
        raise ValueError(
            f"cannot load tokenizer {name!r}: expected 'builtin', a folder with a Hugging Face tokenizer, or a hub "
            f"id ({why(error)})"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"tokenizer {name!r} ({type(tokenizer).__name__}) has no fast (Rust) backend, which is required"
        )
    if chat_template and not tokenizer.chat_template:
        raise ValueError(f"tokenizer {name!r} has no chat template: use it without --chat-template")
    # Models whose tokenizer puts BOS before every text (Llama, OPT) expect BOS at the start of a prompt.
    first = tokenizer("a")["input_ids"][:1]
    if not first:  # transformers returns an empty tokenizer for a model folder without tokenizer files
        raise ValueError(
            f"tokenizer {name!r} has no vocabulary: expected tokenizer.json, or vocabulary and merges files"
        )
    bos_ids = first if first == [tokenizer.bos_token_id] else []
    use_template = bool(tokenizer.chat_template) if chat_template is None else chat_template
    ids = (tokenizer.eos_token_id, tokenizer.pad_token_id, bos_ids)
    return ReplyTokenizer(name, tokenizer.backend_tokenizer, *ids, tokenizer if use_template else None)
