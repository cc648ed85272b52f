"""`DailyDialogTextEnv` and `DailyDialogTextVectorEnv`: the environments of `envs.py` with whole replies as actions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Text
from gymnasium.vector.utils import batch_space

from dailydialog_gym.env.envs import DailyDialogEnv, DailyDialogVectorEnv
from dailydialog_gym.env.mdp import TokenMDP
from dailydialog_gym.env.samples import Samples
from dailydialog_gym.env.tokenizer import format_prompt


class ReplyMDP(TokenMDP):
    """The token MDP with replies as actions: `step` plays the tokens of each reply, and ends all episodes.

    Attributes:
        observation_space, action_space: of one row.
        texts: ``num_envs`` texts, the observations: the conversations so far, see `format_prompt`.
    """

    def __init__(self, samples: Samples, num_envs: int, max_new_tokens: int):
        super().__init__(samples, num_envs, max_new_tokens)
        self.max_new_tokens = max_new_tokens
        vocabulary = samples.tokenizer.backend.get_vocab(with_added_tokens=True)
        reply_length = max_new_tokens * (max(map(len, vocabulary)) + 2)  # more characters are more tokens for sure
        length = max(map(len, samples.prompts)) + reply_length + len(f" {format_prompt([''])}")
        charset = samples.characters | {"\N{REPLACEMENT CHARACTER}"}
        self.observation_space = Text(length, charset=charset)
        self.action_space = Text(reply_length, min_length=0, charset=charset)
        self._other_characters = re.compile(f"[^{re.escape(''.join(sorted(charset)))}]")
        self.texts = [""] * num_envs

    def reset(self, rows: np.ndarray | slice, sample_ids: np.ndarray) -> None:
        super().reset(rows, sample_ids)
        for row, sample_id in zip(np.arange(len(self.texts))[rows], sample_ids, strict=True):
            self.texts[row] = self.samples.prompts[sample_id]

    def step(self, replies: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Write ``replies[row]`` as the reply of every live row, of which `TokenMDP.step` cuts what is too long.

        Raises:
            ValueError: ``replies`` are not ``num_envs`` texts.
        """
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
        for row, response in zip(rows, self.responses(rows), strict=True):
            written = self._other_characters.sub("\N{REPLACEMENT CHARACTER}", format_prompt([response]))
            self.texts[row] = f"{self.texts[row]} {written}"
        return terminated, truncated

    def observation(self) -> tuple[str, ...]:
        return tuple(self.texts)

    def observation_of(self, row: int) -> str:
        return self.texts[row]

    def final_info(self, rows: np.ndarray | slice) -> dict[str, list]:
        """`TokenMDP.final_info`, and ``input_ids`` and ``attention_mask`` of prompt and reply."""
        return super().final_info(rows) | {
            "input_ids": list(self.input_ids[rows].copy()),
            "attention_mask": list(self.attention_mask[rows].copy()),
        }


class DailyDialogTextEnv(DailyDialogEnv):
    """Write one reply of an everyday conversation, a whole text as one action.

    ## Description
    The environment's tokenizer encodes the reply, and its tokens end it as in `DailyDialogEnv`, so ``max_new_tokens``
    tokens are the longest reply. The reward wrappers are the same, except `KLPenalty`, which needs the log-probability
    of each token.

    ## Action Space
    ``Text``: the reply. The space has the characters of the dialogues, but `step` accepts any text.

    ## Observation Space
    ``Text``: the conversation so far, each utterance followed by `` <EOU>``. `dailydialog_gym.env.split_prompt` turns
    it into a list of utterances. In the observation after a reply, a character that is not in the dialogues is shown as
    U+FFFD.

    ## Rewards, Starting State, Arguments
    Those of `DailyDialogEnv`.

    ## Episode End
    1. Termination: the reply fits into ``max_new_tokens`` tokens, its end included.
    2. Truncation: it does not, and is cut.

    The info of the step has the keys of `DailyDialogEnv`'s last step, and the arrays ``input_ids`` and
    ``attention_mask`` of `DailyDialogEnv`'s last observation.

    >>> import gymnasium as gym, dailydialog_gym
    >>> env = gym.make("DailyDialogText-v0")
    >>> conversation, info = env.reset(seed=1)
    >>> conversation, reward, terminated, truncated, info = env.step("I see .")
    >>> info["response"], terminated
    ('I see .', True)

    ## Version History
    * v0: first version.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.mdp = ReplyMDP(self.samples, 1, self.max_new_tokens)
        self.observation_space, self.action_space = self.mdp.observation_space, self.mdp.action_space


class DailyDialogTextVectorEnv(DailyDialogVectorEnv):
    """``num_envs`` copies of `DailyDialogTextEnv`, stepped together in numpy.

    Row ``i`` behaves exactly like environment ``i`` of a `gymnasium.vector.SyncVectorEnv` of `DailyDialogTextEnv` with
    the same seed and ``autoreset_mode``. Actions and observations are ``num_envs`` texts. The arguments are those of
    `DailyDialogVectorEnv`. Every step ends the episodes of all rows that it does not reset, so ``lockstep`` changes
    nothing.

    >>> import gymnasium as gym, dailydialog_gym
    >>> envs = gym.make_vec("DailyDialogText-v0", num_envs=2)
    >>> conversations, infos = envs.reset(seed=1)
    >>> conversations, rewards, terminated, truncated, infos = envs.step(["I see .", "No ."])
    >>> infos["response"].tolist()
    ['I see .', 'No .']

    ## Version History
    * v0: first version.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.mdp = ReplyMDP(self.samples, self.num_envs, self.max_new_tokens)
        self.single_observation_space, self.single_action_space = self.mdp.observation_space, self.mdp.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
