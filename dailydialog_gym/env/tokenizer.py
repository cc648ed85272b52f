"""The environment's tokenizer: it encodes prompts, decodes replies, and detects which token ends a reply."""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np
from tokenizers import Tokenizer

from dailydialog_gym.embedded import asset
from dailydialog_gym.hub import only_local_files

EOU = "<EOU>"


class ReplyTokenizer:
    """Encodes prompts, decodes replies, and detects the end of a reply token by token.

    A reply ends as soon as its text contains a complete ``<EOU>``. Tokenizers split these five characters in different
    ways. In the embedded tokenizer they are one special token. GPT-2 splits them into ``Ġ<``, ``E``, ``OU`` and ``>``,
    or differently, depending on the characters around them: after a question mark the first token is ``?<``. So the
    characters of each token drive a Knuth-Morris-Pratt automaton that searches for ``<EOU>``. `transitions` is its
    transition table over whole tokens, and one indexing operation advances a batch of rows. The tokenizer's EOS token
    leads from every state to the accepting state.

    Attributes:
        vocab_size: the highest token id plus one, added tokens included.
        pad_id: the id in masked columns. It is the EOS token if the tokenizer has no padding token, so an attention
            mask must never be derived from it.
        bos_ids: the ids that the tokenizer puts before every text: empty, or the BOS token.
        transitions: ``(len("<EOU>") + 1, vocab_size)`` int64, where ``transitions[state, token]`` is the next state.
        accepting_state: the state of a reply that has ended.

    Raises:
        ValueError: the tokenizer cannot represent ``<EOU>``.
    """

    accepting_state = len(EOU)

    def __init__(self, name: str, backend: Tokenizer, eos_id: int | None, pad_id: int | None, bos_ids: list[int]):
        self.name = name
        self.backend = backend
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.bos_ids = bos_ids
        self.pad_id = next((i for i in (pad_id, eos_id) if i is not None), 0)
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
                f"Add it as a token: tokenizer.add_special_tokens({{'additional_special_tokens': ['{EOU}']}})"
            )

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without the special tokens that a tokenizer may add before or after it."""
        return [e.ids for e in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, replies: list[np.ndarray]) -> list[str]:
        """The texts of replies, each an array of ids, without ``<EOU>``, special tokens and surrounding whitespace."""
        texts = self.backend.decode_batch([ids.tolist() for ids in replies], skip_special_tokens=True)
        return [text.split(EOU, 1)[0].strip() for text in texts]


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


@lru_cache(maxsize=8)
def load_tokenizer(name: str, trust_remote_code: bool = False) -> ReplyTokenizer:
    """Load the embedded tokenizer or any Hugging Face tokenizer. The result is cached.

    Every tokenizer but the embedded one is loaded with transformers' ``AutoTokenizer``, so transformers must be
    installed.

    Args:
        name: ``"builtin"``, a folder, or a hub id.
        trust_remote_code: allow the tokenizer to run Python code of its own. Such code has all of your permissions.

    Raises:
        ValueError: the tokenizer cannot be loaded, has no fast backend, or cannot represent ``<EOU>``.
    """
    if name == "builtin":
        with asset("policy") as folder:
            backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        eos_id, pad_id = (backend.token_to_id(config[key]) for key in ("eos_token", "pad_token"))
        return ReplyTokenizer(name, backend, eos_id, pad_id, [])

    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, local_files_only=only_local_files(name), trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load tokenizer {name!r}: expected 'builtin', a folder with a Hugging Face tokenizer, or a hub "
            f"id ({error})"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"tokenizer {name!r} ({type(tokenizer).__name__}) has no fast (Rust) backend, which is required"
        )
    # Models whose tokenizer puts BOS before every text (Llama, OPT) expect BOS at the start of a prompt.
    first = tokenizer("a")["input_ids"][:1]
    if not first:  # transformers returns an empty tokenizer for a model folder without tokenizer files
        raise ValueError(
            f"tokenizer {name!r} has no vocabulary: expected tokenizer.json, or vocabulary and merges files"
        )
    bos_ids = first if first == [tokenizer.bos_token_id] else []
    return ReplyTokenizer(name, tokenizer.backend_tokenizer, tokenizer.eos_token_id, tokenizer.pad_token_id, bos_ids)
