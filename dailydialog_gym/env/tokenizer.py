"""A tokenizer as the environment sees it: texts to ids, ids to texts, and which tokens end a reply."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from dailydialog_gym.embedded import asset
from dailydialog_gym.hub import hub_is_off

EOU = "<EOU>"


class ReplyTokenizer:
    """Encodes prompts, decodes replies, and finds the end of an utterance token by token.

    A reply ends as soon as its text holds a complete ``<EOU>``, however the tokenizer cuts those five characters:
    one special token (builtin), or GPT-2's ``Ġ<``, ``E``, ``OU``, ``>`` in any other division, such as ``?<``
    after a question mark. Each token moves a Knuth-Morris-Pratt automaton for ``<EOU>`` over the characters of its
    vocabulary string; `transitions` holds that move for every state and token, so that a batch of tokens costs
    one gather. The tokenizer's EOS token moves every state to the accepting one.

    Attributes:
        vocab_size: one more than the highest id, added tokens included.
        pad_id: what stands in masked columns. Where the tokenizer has no padding token it is EOS, so masks must
            never be derived from it.
        bos_ids: what the tokenizer puts before a text: empty, or one id.
        transitions: ``(len("<EOU>") + 1, vocab_size)`` int64, ``transitions[state, token]`` is the next state.
        ended: the accepting state.
    """

    ended = len(EOU)

    def __init__(self, name: str, backend: Tokenizer, eos_id: int | None, pad_id: int | None, bos_ids: list[int]):
        self.name = name
        self.backend = backend
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.bos_ids = bos_ids
        self.pad_id = next((i for i in (pad_id, eos_id) if i is not None), 0)
        self.transitions = _eou_transitions(backend, self.vocab_size, self.ended)
        if eos_id is not None:
            self.transitions[:, eos_id] = self.ended
        state = 0
        for token in self.encode([EOU])[0]:
            state = self.transitions[state, token]
        if state != self.ended:
            tokens = [backend.id_to_token(i) for i in self.encode([EOU])[0]]
            raise ValueError(
                f"tokenizer {name!r} has no end-of-utterance: it turns {EOU!r} into {tokens}, which does not spell "
                f"{EOU!r}. Add it as a token: tokenizer.add_special_tokens({{'additional_special_tokens': ['{EOU}']}})"
            )

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without the special tokens a tokenizer may put around it."""
        return [e.ids for e in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def reply_lengths(self, reply_ids: np.ndarray) -> np.ndarray:
        """How many of each row's tokens belong to the reply, the one that ends it included.

        Args:
            reply_ids: ``(n, width)``; a row without an end is all reply.
        """
        lengths = np.full(len(reply_ids), reply_ids.shape[1])
        state = np.zeros(len(reply_ids), np.int64)
        for t in range(reply_ids.shape[1]):
            state = np.where(state == self.ended, state, self.transitions[state, reply_ids[:, t]])
            lengths = np.where(state == self.ended, np.minimum(lengths, t + 1), lengths)
        return lengths

    def decode(self, replies: list[np.ndarray]) -> list[str]:
        """The texts of replies (id arrays), without the end of utterance, special tokens and surrounding blanks."""
        texts = self.backend.decode_batch([ids.tolist() for ids in replies], skip_special_tokens=True)
        return [text.split(EOU, 1)[0].strip() for text in texts]


def _eou_transitions(backend: Tokenizer, vocab_size: int, ended: int) -> np.ndarray:
    """The automaton of `ReplyTokenizer`. No proper prefix of ``<EOU>`` is also a suffix, so a mismatch restarts it."""
    transitions = np.zeros((ended + 1, vocab_size), np.int64)  # an index's own type: uint8 takes twice as long
    for text, token in backend.get_vocab(with_added_tokens=True).items():
        for start in range(ended + 1):
            state = start
            for char in text:
                if state == ended:
                    break
                state = state + 1 if char == EOU[state] else int(char == EOU[0])
            transitions[start, token] = state
    return transitions


@lru_cache(maxsize=8)
def load_tokenizer(name: str, trust_remote_code: bool = False) -> ReplyTokenizer:
    """Load the builtin tokenizer (``"builtin"``) or any Hugging Face tokenizer by hub id or folder.

    Everything but ``"builtin"`` is read by transformers' ``AutoTokenizer``, which must be installed.

    Args:
        name: of the tokenizer.
        trust_remote_code: run Python code that comes with it. It can do anything you can.

    Raises:
        ValueError: the name can't be loaded, has no fast backend, or can't write ``<EOU>``.
    """
    if name == "builtin":
        with asset("policy") as folder:
            backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = json.loads((folder / "tokenizer_config.json").read_text())
        eos_id, pad_id = (backend.token_to_id(config[key]) for key in ("eos_token", "pad_token"))
        return ReplyTokenizer(name, backend, eos_id, pad_id, [])

    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, local_files_only=Path(name).is_dir() or hub_is_off(), trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load tokenizer {name!r}: expected 'builtin', a folder with a Hugging Face tokenizer, or a hub "
            f"id ({error})"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer {name!r} ({type(tokenizer).__name__}) has no fast (Rust) backend, which is needed")
    # A tokenizer that begins every text with BOS (Llama, OPT) expects it at the start of a prompt.
    first = tokenizer("a")["input_ids"][:1]
    if not first:  # what transformers makes of a model's folder without tokenizer files
        raise ValueError(
            f"tokenizer {name!r} has no vocabulary: expected tokenizer.json, or vocabulary and merges files"
        )
    bos_ids = first if first == [tokenizer.bos_token_id] else []
    return ReplyTokenizer(name, tokenizer.backend_tokenizer, tokenizer.eos_token_id, tokenizer.pad_token_id, bos_ids)
