"""The token MDP, a batch of replies at a time. Numpy only: both environments are adapters over this."""

from __future__ import annotations

import numpy as np

from dailydialog_gym.env.samples import Samples
from dailydialog_gym.env.tokenizer import EOU

_ONE = np.array([1])  # an array, because numpy takes a microsecond to convert a Python number, at each use


class TokenMDP:
    """``num_envs`` replies, each written one token a step after the prompt of its sample.

    A row is live from its reset until its reply ends: with a complete end of utterance or EOS (terminated) or with
    its ``max_new_tokens``-th token (truncated). `step` moves the live rows and leaves the others as they are. In
    lockstep no row's episode ends before every row's reply has ended.

    Attributes:
        input_ids: ``(num_envs, max_prompt_length + max_new_tokens)`` int64; the prompt left-padded into the first
            ``max_prompt_length`` columns, reply token ``t`` in column ``max_prompt_length + t``.
        attention_mask: same shape, 1 where `input_ids` holds a token and 0 where it holds padding.
        live: ``(num_envs,)`` bool.
        sample_ids: ``(num_envs,)`` int64, which sample each row answers.
    """

    def __init__(self, samples: Samples, num_envs: int, max_new_tokens: int, lockstep: bool = False):
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        self.samples = samples
        self.lockstep = lockstep
        self.prompt_columns = samples.prompt_ids.shape[1]
        columns = self.prompt_columns + max_new_tokens
        self.input_ids = np.full((num_envs, columns), samples.tokenizer.pad_id, np.int64)
        self.attention_mask = np.zeros((num_envs, columns), np.int64)
        self.live = np.zeros(num_envs, np.bool_)
        self._no_rows = self.live.copy()
        self._no_rows.flags.writeable = False
        self.sample_ids = np.zeros(num_envs, np.int64)
        self._ended = np.array([samples.tokenizer.ended * samples.tokenizer.vocab_size])
        self._eou_state = np.zeros(num_envs, np.int64)
        # Positions in the flattened arrays, so that a step writes each with one index: where each row's reply begins
        # and ends, and where its next token goes.
        self._row_start = np.arange(num_envs) * columns + self.prompt_columns
        self._row_end = self._row_start + max_new_tokens
        self._cursor = self._row_start.copy()
        # What indexes the live rows; a slice, which numpy takes several times faster, while that is all of them.
        self._live_rows: slice | np.ndarray = self.live.nonzero()[0]
        self._flatten()

    def _flatten(self) -> None:
        """Views and a table in one dimension, which is cheaper to index."""
        self._flat_ids, self._flat_mask = self.input_ids.reshape(-1), self.attention_mask.reshape(-1)
        # The tokenizer's automaton; a state is the position of its first entry.
        tokenizer = self.samples.tokenizer
        self._transitions = (tokenizer.transitions * tokenizer.vocab_size).reshape(-1)

    def __getstate__(self) -> dict:
        derived = {"_flat_ids", "_flat_mask", "_transitions"}
        return {name: value for name, value in self.__dict__.items() if name not in derived}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._flatten()

    @property
    def reply_lengths(self) -> np.ndarray:
        """``(num_envs,)`` int64, tokens written so far."""
        return self._cursor - self._row_start

    def reset(self, rows: np.ndarray | slice, sample_ids: np.ndarray) -> None:
        """Begin new episodes: row ``rows[k]`` answers sample ``sample_ids[k]``."""
        samples, prompt = self.samples, self.prompt_columns
        self.input_ids[rows, :prompt] = samples.prompt_ids[sample_ids]
        self.input_ids[rows, prompt:] = samples.tokenizer.pad_id
        self.attention_mask[rows, :prompt] = samples.prompt_mask[sample_ids]
        self.attention_mask[rows, prompt:] = 0
        self.live[rows] = True
        self.sample_ids[rows] = sample_ids
        self._cursor[rows] = self._row_start[rows]
        self._eou_state[rows] = 0
        self._live_rows = slice(None) if all(self.live.tolist()) else self.live.nonzero()[0]

    def step(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Write ``tokens[row]`` into every live row.

        Args:
            tokens: ``(num_envs,)`` integers; those of rows that are not live are ignored.

        Returns:
            terminated, truncated: ``(num_envs,)`` bool, the rows whose episode ends in this step; not to be written.

        Raises:
            ValueError: ``tokens`` has another shape or type, or a live row's token is outside the vocabulary.
        """
        if tokens.shape != self.live.shape or tokens.dtype.kind not in "iu":
            raise ValueError(
                f"expected {len(self.live)} integer token(s), one a row, got an array of shape {tokens.shape} and "
                f"type {tokens.dtype}"
            )
        tokenizer, rows = self.samples.tokenizer, self._live_rows
        tokens = tokens[rows].astype(np.int64, copy=False)
        numbers = tokens.tolist()  # min() and all() of a list take a quarter of numpy's time for a handful of rows
        if min(numbers, default=0) < 0 or max(numbers, default=0) >= tokenizer.vocab_size:
            bad = next(i for i, number in enumerate(numbers) if not 0 <= number < tokenizer.vocab_size)
            raise ValueError(
                f"action {numbers[bad]} of row {np.arange(len(self.live))[rows][bad]} is outside the vocabulary of "
                f"tokenizer {tokenizer.name!r}: expected 0 to {tokenizer.vocab_size - 1}"
            )
        cursor = self._cursor[rows]
        self._flat_ids[cursor] = tokens
        self._flat_mask[cursor] = _ONE
        self._cursor[rows] = cursor = cursor + _ONE
        self._eou_state[rows] = state = self._transitions[self._eou_state[rows] + tokens]
        goes_on = (state != self._ended) & (cursor < self._row_end[rows])

        going_on = goes_on.tolist()
        if all(going_on):
            return self._no_rows, self._no_rows
        self.live[rows] = goes_on
        self._live_rows = self.live.nonzero()[0]
        ended = self._no_rows.copy()
        if not self.lockstep:
            ended[rows] = ~goes_on
        elif not any(going_on):
            ended[:] = True
        complete = self._eou_state == self._ended
        return ended & complete, ended & ~complete

    def observation(self) -> dict[str, np.ndarray]:
        """Copies: what is returned is never written again."""
        return {"input_ids": self.input_ids.copy(), "attention_mask": self.attention_mask.copy()}

    def reset_info(self, rows: np.ndarray | slice) -> dict[str, list]:
        """What is known of a new episode, a list per key with one entry for each of ``rows``."""
        ids = self.sample_ids[rows].tolist()
        return {
            "prompt": [self.samples.prompts[i] for i in ids],
            "sample_id": ids,
            "act": self.samples.acts[ids].tolist(),
        }

    def final_info(self, rows: np.ndarray | slice) -> dict[str, list]:
        """What is known of an ended episode: `reset_info`, the decoded reply, and what it should have been."""
        info = self.reset_info(rows)
        return info | {
            "response": self.responses(rows),
            "reference": [self.samples.references[i] for i in info["sample_id"]],
            "intent": info["act"],
        }

    def responses(self, rows: np.ndarray | slice) -> list[str]:
        """The texts of the replies so far."""
        spans = zip(self._row_start[rows].tolist(), self._cursor[rows].tolist(), strict=True)
        return self.samples.tokenizer.decode([self._flat_ids[start:end] for start, end in spans])

    def transcript(self, row: int) -> str:
        """The dialogue of a row for people: a line for each utterance of the context, then the reply so far."""
        context = self.samples.prompts[self.sample_ids[row]].split(EOU)[:-1]
        lines = [f"  {utterance.strip()}" for utterance in context]
        return "\n".join([*lines, f"> {self.responses([row])[0]}{self.ending(row)}"])

    def ending(self, row: int) -> str:
        """How the reply of a row ended, for people; empty while it is live."""
        if self.live[row]:
            return ""
        complete = self._eou_state[row] == self._ended[0]
        return f" {EOU}" if complete else f" [cut after {self._cursor[row] - self._row_start[row]} tokens]"
