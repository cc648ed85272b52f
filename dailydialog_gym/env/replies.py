"""The MDP of the text environments: `TokenMDP` with whole replies as actions, and a partner who answers them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text

from dailydialog_gym.env.mdp import TokenMDP
from dailydialog_gym.env.samples import Samples, left_pad
from dailydialog_gym.env.tokenizer import format_prompt, split_prompt
from dailydialog_gym.ranges import check_count

# From the utterances so far, the oldest first, to the next one
Partner = Callable[[Sequence[str]], str]


class ReplyMDP(TokenMDP):
    """The token MDP with replies as actions: `step` plays the tokens of each reply one after the other.

    An episode has at most ``turns`` replies. After each but the last the partner answers. Without a ``partner``, the
    partner's utterances are those of the dialogue, whatever the agent has said, and the episode also ends where the
    dialogue has no further reply.

    Args:
        samples, num_envs, max_new_tokens: see `TokenMDP`.
        turns: the maximum number of replies of an episode.
        partner: see `Partner`.

    Attributes:
        observation_space, action_space: of one row.
        going_on: the rows whose last reply did not end the episode.
        replied: the infos of their replies, as `final_info` returns them.

    Raises:
        ValueError: ``turns`` is not an integer of at least 1, the partner cannot be called, or there is one although
            ``turns`` is 1.
    """

    def __init__(
        self, samples: Samples, num_envs: int, max_new_tokens: int, turns: int = 1, partner: Partner | None = None
    ):
        super().__init__(samples, num_envs, max_new_tokens)
        check_count("turns", turns)
        if partner and not callable(partner):
            raise ValueError(f"a partner is a function of the utterances so far, or a DialogueAgent, got {partner!r}")
        if partner and turns == 1:
            raise ValueError("a partner answers only if there are several turns: set turns to 2 or more")
        self.max_new_tokens, self.turns, self.partner = max_new_tokens, turns, partner
        vocabulary = samples.tokenizer.backend.get_vocab(with_added_tokens=True)
        reply_length = max_new_tokens * (max(map(len, vocabulary)) + 2)  # more characters are more tokens for sure
        length = max(map(len, samples.prompts)) + reply_length + len(f" {format_prompt([''])}")
        charset = samples.characters | {*map(chr, range(32, 127)), "\N{REPLACEMENT CHARACTER}"}  # and printable ASCII
        self.observation_space = Text(length, charset=charset)
        self.action_space = Text(reply_length, min_length=0, charset=charset)
        self._other_characters = re.compile(f"[^{re.escape(''.join(sorted(charset)))}]")
        self.going_on, self.replied = np.zeros(0, np.int64), dict[str, list[Any]]()
        self._utterances: list[list[str]] = [[]] * num_envs  # before the next reply
        self._transcripts = [""] * num_envs  # of them
        self._turns = np.zeros(num_envs, np.int64)  # the replies that have been written
        # The sample whose reference is the dialogue's own reply at this place, -1 after the end of the dialogue
        self._places = np.zeros(num_envs, np.int64)
        self._broken = np.zeros(num_envs, np.bool_)  # the episodes in which the partner raised an error

    def reset(self, rows: np.ndarray | slice, sample_ids: np.ndarray) -> None:
        super().reset(rows, sample_ids)
        self._turns[rows], self._places[rows], self._broken[rows] = 0, sample_ids, False
        for row in np.arange(len(self.live))[rows].tolist():
            self._utterances[row] = split_prompt(self.samples.prompts[self.sample_ids[row]])
            self._transcripts[row] = "".join(f"  {utterance}\n" for utterance in self._utterances[row])

    def step(self, replies: Any) -> tuple[np.ndarray, np.ndarray]:
        """Write ``replies[row]`` as the reply of every live row, of which `TokenMDP.step` cuts what is too long.

        Returns:
            terminated, truncated: ``(num_envs,)`` bool, the rows whose episode ends in this step.

        Raises:
            gymnasium.error.ResetNeeded: the partner raised an error in the step before.
            ValueError: ``replies`` are not ``num_envs`` texts, or the partner's answer is no text.
        """
        if self._broken.any():
            raise ResetNeeded("the partner raised an error, which ended the episodes: call reset() before step()")
        if isinstance(replies, str) or len(replies) != len(self.live) or not all(isinstance(r, str) for r in replies):
            raise ValueError(f"expected {len(self.live)} text(s), one reply per row, got {replies!r}")
        terminated, truncated = self._no_rows, self._no_rows
        tokens = np.zeros((len(replies), self.max_new_tokens), np.int64)
        for row, ids in enumerate(self.samples.tokenizer.encode_replies(replies)):
            ids = ids[: self.max_new_tokens]
            tokens[row, : len(ids)] = ids
        for column in tokens.T:
            if not self.live.any():
                break
            complete, cut = super().step(column)
            terminated, truncated = terminated | complete, truncated | cut
        rows = (terminated | truncated).nonzero()[0]
        goes_on = self._turns[rows] + 1 < self.turns
        if not self.partner:
            goes_on &= self._place_after(self._place_after(self._places[rows])) >= 0
        self.going_on, self.replied = rows[goes_on], {}
        if len(self.going_on):
            self._broken[self.going_on] = True  # until a reset, if the partner raises an error
            self._go_on(self.going_on)
            self._broken[self.going_on] = False
        return terminated & ~self.live, truncated & ~self.live

    def _go_on(self, rows: np.ndarray) -> None:
        """Let the partner answer, and begin the next reply."""
        samples, self.replied = self.samples, self.final_info(rows)
        next_places = self._place_after(self._places[rows])
        for row, response, place in zip(rows.tolist(), self.responses(rows), next_places.tolist(), strict=True):
            conversation = [*self._utterances[row], response]
            answer = _ask(self.partner, conversation) if self.partner else samples.references[place]
            self._transcripts[row] = f"{self.transcript(row)}\n  {answer}\n"
            self._utterances[row] = [*conversation, answer]
        self._turns[rows] += 1
        self._places[rows] = self._place_after(next_places)
        prompts = left_pad(samples.tokenizer, [self._prompt(row) for row in rows], self.prompt_columns)
        super().reset(rows, self.sample_ids[rows])
        self.input_ids[rows, : self.prompt_columns], self.attention_mask[rows, : self.prompt_columns] = prompts

    def _place_after(self, places: np.ndarray) -> np.ndarray:
        return np.where(places < 0, -1, self.samples.following[places])

    def _prompt(self, row: int) -> str:
        return format_prompt(self._utterances[row][-self.samples.context_size :])

    def observation(self) -> Any:
        return tuple(self.observation_of(row) for row in range(len(self.live)))

    def observation_of(self, row: int) -> Any:
        """The prompt of the next reply, and after the last reply the prompt with it, as in the observation space."""
        text = self._prompt(row) if self.live[row] else f"{self._prompt(row)} {format_prompt(self.responses([row]))}"
        return self._other_characters.sub("\N{REPLACEMENT CHARACTER}", text)[-self.observation_space.max_length :]

    def final_info(self, rows: np.ndarray | slice) -> dict[str, list[Any]]:
        """The infos of finished replies, and ``input_ids`` and ``attention_mask`` of prompt and reply.

        ``act`` and ``intent`` are those of the dialogue's reply at this place, 0 after the end of the dialogue. The
        ``reference`` is this reply, and None after an answer that is not the dialogue's.
        """
        places, samples = self._places[rows], self.samples
        has_reference = (self._turns[rows] == 0) | (self.partner is None)
        acts = np.where(places < 0, 0, samples.acts[places]).tolist()
        return super().final_info(rows) | {
            "prompt": [self._prompt(row) for row in np.arange(len(self.live))[rows]],
            "reference": [
                samples.references[place] if there else None for place, there in zip(places, has_reference, strict=True)
            ],
            "act": acts,
            "intent": acts,
            "input_ids": list(self.input_ids[rows].copy()),
            "attention_mask": list(self.attention_mask[rows].copy()),
        }

    def transcript(self, row: int) -> str:
        return f"{self._transcripts[row]}> {self.responses([row])[0]}{self.ending(row)}"


def _ask(partner: Partner, conversation: list[str]) -> str:
    answer = partner(list(conversation))
    if not isinstance(answer, str):
        raise ValueError(f"the partner must return a text, got {answer!r}")
    return " ".join(answer.split())  # an utterance is one line
