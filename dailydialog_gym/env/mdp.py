"""The batched token MDP in numpy. `DailyDialogEnv` and `DailyDialogVectorEnv` are thin adapters over it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dailydialog_gym.env.samples import Samples
from dailydialog_gym.env.tokenizer import EOU, split_prompt
from dailydialog_gym.ranges import check_count

_ONE = np.array([1])  # numpy needs about a microsecond to convert a Python number to an array


class TokenMDP:
    """A batch of ``num_envs`` episodes. In each of them the agent writes one reply, and every action is one token.

    A row is live from its reset until its reply ends. The reply ends with a complete ``<EOU>`` or an EOS token
    (terminated), or with token number ``max_new_tokens`` (truncated). `step` appends a token to the live rows and does
    not change the others. With ``lockstep``, the episodes of all rows end in the same step, in which the last live row
    ends its reply.

    Args:
        samples: the contexts and references.
        num_envs: the number of rows.
        max_new_tokens: the maximum number of tokens of a reply.
        lockstep: end the episodes of all rows in the same step.

    Attributes:
        input_ids: ``(num_envs, max_prompt_length + max_new_tokens)`` int64. The prompt is left-padded into the first
            ``max_prompt_length`` columns, and reply token ``t`` is in column ``max_prompt_length + t``.
        attention_mask: same shape, int64, 1 for tokens and 0 for padding.
        live: ``(num_envs,)`` bool, the rows whose replies are still being written.
        sample_ids: ``(num_envs,)`` int64, the sample of each row.

    Raises:
        ValueError: ``num_envs`` or ``max_new_tokens`` is not an integer of at least 1.
    """

    def __init__(self, samples: Samples, num_envs: int, max_new_tokens: int, lockstep: bool = False):
        check_count("num_envs", num_envs)
        check_count("max_new_tokens", max_new_tokens)
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
        # The state of the tokenizer's automaton in each row, as an offset into `_transitions`.
        self._eou_state = np.zeros(num_envs, np.int64)
        self._accepting_state = np.array([samples.tokenizer.accepting_state * samples.tokenizer.vocab_size])
        # Offsets into the flattened arrays: the start and the end of each row's reply, and its next free column.
        self._reply_start = np.arange(num_envs) * columns + self.prompt_columns
        self._reply_end = self._reply_start + max_new_tokens
        self._cursor = self._reply_start.copy()
        # The index of the live rows. It is a slice while all rows are live, because numpy applies a slice several times
        # faster than an index array.
        self._live_rows: slice | np.ndarray = self.live.nonzero()[0]
        self._make_flat_views()

    def _make_flat_views(self) -> None:
        """Flatten the arrays and the transition table, because indexing is faster in one dimension."""
        self._flat_ids, self._flat_mask = self.input_ids.reshape(-1), self.attention_mask.reshape(-1)
        # Row `state` of the table begins at offset `state * vocab_size`, and the entries are such offsets too.
        tokenizer = self.samples.tokenizer
        self._transitions = (tokenizer.transitions * tokenizer.vocab_size).reshape(-1)

    def __getstate__(self) -> dict[str, Any]:
        # A copy needs views of its own arrays.
        derived = {"_flat_ids", "_flat_mask", "_transitions"}
        return {name: value for name, value in self.__dict__.items() if name not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_flat_views()

    @property
    def reply_lengths(self) -> np.ndarray:
        """``(num_envs,)`` int64, the number of tokens of each reply so far."""
        return self._cursor - self._reply_start

    def reset(self, rows: np.ndarray | slice, sample_ids: np.ndarray) -> None:
        """Start new episodes: row ``rows[k]`` gets the prompt of sample ``sample_ids[k]`` and an empty reply."""
        samples, prompt = self.samples, self.prompt_columns
        self.input_ids[rows, :prompt] = samples.prompt_ids[sample_ids]
        self.input_ids[rows, prompt:] = samples.tokenizer.pad_id
        self.attention_mask[rows, :prompt] = samples.prompt_mask[sample_ids]
        self.attention_mask[rows, prompt:] = 0
        self.live[rows] = True
        self.sample_ids[rows] = sample_ids
        self._cursor[rows] = self._reply_start[rows]
        self._eou_state[rows] = 0
        self._live_rows = slice(None) if all(self.live.tolist()) else self.live.nonzero()[0]

    def step(self, tokens: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Append ``tokens[row]`` to the reply of every live row.

        Args:
            tokens: ``(num_envs,)`` integers. Entries of rows that are not live are ignored.

        Returns:
            terminated, truncated: ``(num_envs,)`` bool, the rows whose episode ends in this step. The arrays may be
            shared between steps, so the caller must not write into them.

        Raises:
            ValueError: ``tokens`` has another shape or type, or the token of a live row is outside the vocabulary.
        """
        tokens = np.asarray(tokens)
        if tokens.shape != self.live.shape or tokens.dtype.kind not in "iu":
            raise ValueError(
                f"expected {len(self.live)} integer token(s), one per row, got an array of shape {tokens.shape} and "
                f"type {tokens.dtype}"
            )
        tokenizer, rows = self.samples.tokenizer, self._live_rows
        tokens = tokens[rows].astype(np.int64, copy=False)
        token_list = tokens.tolist()  # for few rows, Python's min() and all() take a quarter of the time of numpy's
        if min(token_list, default=0) < 0 or max(token_list, default=0) >= tokenizer.vocab_size:
            bad = next(i for i, token in enumerate(token_list) if not 0 <= token < tokenizer.vocab_size)
            raise ValueError(
                f"action {token_list[bad]} of row {np.arange(len(self.live))[rows][bad]} is outside the vocabulary of "
                f"tokenizer {tokenizer.name!r}: expected 0 to {tokenizer.vocab_size - 1}"
            )
        cursor = self._cursor[rows]
        self._flat_ids[cursor] = tokens
        self._flat_mask[cursor] = _ONE
        self._cursor[rows] = cursor = cursor + _ONE
        self._eou_state[rows] = state = self._transitions[self._eou_state[rows] + tokens]
        unfinished = (state != self._accepting_state) & (cursor < self._reply_end[rows])

        unfinished_list = unfinished.tolist()
        if all(unfinished_list):
            return self._no_rows, self._no_rows
        self.live[rows] = unfinished
        self._live_rows = self.live.nonzero()[0]
        done = self._no_rows.copy()
        if not self.lockstep:
            done[rows] = ~unfinished
        elif not any(unfinished_list):
            done[:] = True
        complete = self._eou_state == self._accepting_state
        return done & complete, done & ~complete

    def observation(self) -> dict[str, np.ndarray]:
        """Copies of `input_ids` and `attention_mask`, which later steps do not change."""
        return {"input_ids": self.input_ids.copy(), "attention_mask": self.attention_mask.copy()}

    def observation_of(self, row: int) -> dict[str, np.ndarray]:
        """Copies of one row of `input_ids` and `attention_mask`."""
        return {"input_ids": self.input_ids[row].copy(), "attention_mask": self.attention_mask[row].copy()}

    def reset_info(self, rows: np.ndarray | slice) -> dict[str, list[Any]]:
        """The infos of new episodes: for each key a list with one entry per row of ``rows``."""
        ids = self.sample_ids[rows].tolist()
        return {
            "prompt": [self.samples.prompts[i] for i in ids],
            "sample_id": ids,
            "act": self.samples.acts[ids].tolist(),
        }

    def final_info(self, rows: np.ndarray | slice) -> dict[str, list[Any]]:
        """The infos of ended episodes: `reset_info`, the decoded reply, the reference reply and its act."""
        info = self.reset_info(rows)
        return info | {
            "response": self.responses(rows),
            "reference": [self.samples.references[i] for i in info["sample_id"]],
            "intent": info["act"],
        }

    def responses(self, rows: np.ndarray | slice | list[int]) -> list[str]:
        """The texts of the replies so far."""
        spans = zip(self._reply_start[rows].tolist(), self._cursor[rows].tolist(), strict=True)
        return self.samples.tokenizer.decode([self._flat_ids[start:end] for start, end in spans])

    def transcript(self, row: int) -> str:
        """The dialogue of a row in readable form: one line per utterance of the context, then the reply so far."""
        lines = [f"  {utterance}" for utterance in split_prompt(self.samples.prompts[self.sample_ids[row]])]
        return "\n".join([*lines, f"> {self.responses([row])[0]}{self.ending(row)}"])

    def ending(self, row: int) -> str:
        """How the reply of a row ended, in readable form. Empty while the row is live."""
        if self.live[row]:
            return ""
        complete = self._eou_state[row] == self._accepting_state[0]
        return f" {EOU}" if complete else f" [truncated after {self.reply_lengths[row]} tokens]"
