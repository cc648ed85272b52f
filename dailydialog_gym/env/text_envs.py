"""`DailyDialogTextEnv` and `DailyDialogTextVectorEnv`: the environments of `envs.py` with whole replies as actions."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from dailydialog_gym.env.envs import DailyDialogEnv, DailyDialogVectorEnv
from dailydialog_gym.env.replies import Partner, ReplyMDP


class DailyDialogTextEnv(DailyDialogEnv):
    """Write one reply of an everyday conversation, a whole text as one action.

    ## Description
    The environment's tokenizer encodes the reply, and its tokens end it as in `DailyDialogEnv`, so ``max_new_tokens``
    tokens are the longest reply. The reward wrappers are the same, except `KLPenalty`, which needs the log-probability
    of each token.

    ## Action Space
    ``Text``: the reply. The space has the characters of the dialogues and of ASCII, but `step` accepts any text.

    ## Observation Space
    ``Text``: the conversation so far, each utterance followed by `` <EOU>``. `dailydialog_gym.env.split_prompt` turns
    it into a list of utterances. In the observation after a reply, a character outside the space is shown as U+FFFD.

    ## Rewards, Starting State
    Those of `DailyDialogEnv`. Each reply has a reward of its own.

    ## Episode End
    The episode ends with the reply number ``turns``; without ``partner`` also where the dialogue has no further reply.
    After each reply before it, the partner answers, and the observation is the prompt of the next reply.

    1. Termination: the last reply fits into ``max_new_tokens`` tokens, its end included.
    2. Truncation: it does not, and is cut.

    The info of every step has the keys of `DailyDialogEnv`'s last step, and the arrays ``input_ids`` and
    ``attention_mask`` of prompt and reply. ``act`` and ``intent`` are those of the dialogue's own reply at this place,
    0 after the end of the dialogue; the ``reference`` is this reply, and None after an answer of ``partner``.

    ## Arguments
    Those of `DailyDialogEnv`, and:

    | Parameter | Type         | Default | Description                                                              |
    |-----------|--------------|---------|--------------------------------------------------------------------------|
    | `turns`   | **int**      | `1`     | maximum number of replies in an episode                                  |
    | `partner` | **callable** | `None`  | from the utterances so far to the answer, such as a `DialogueAgent`;     |
    |           |              |         | None: the dialogue's own utterances, whatever the agent has said         |

    >>> import gymnasium as gym, dailydialog_gym
    >>> env = gym.make("DailyDialogText-v0")
    >>> conversation, info = env.reset(seed=1)
    >>> conversation, reward, terminated, truncated, info = env.step("I see .")
    >>> info["response"], terminated
    ('I see .', True)

    ## Version History
    * v0: first version.
    """

    mdp: ReplyMDP

    def __init__(self, *args: Any, turns: int = 1, partner: Partner | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.mdp = ReplyMDP(self.samples, 1, self.max_new_tokens, turns, partner)
        self.observation_space, self.action_space = self.mdp.observation_space, self.mdp.action_space

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Write a reply.

        Args:
            action: the text of the reply. It ends at an ``<EOU>``, and after ``max_new_tokens`` tokens.

        Returns:
            observation: the conversation with the reply, or, if the episode goes on, the prompt of the next reply.
            reward: 0.0.
            terminated: True if the episode ends and its last reply was not cut.
            truncated: True if the episode ends and its last reply was cut.
            info: ``prompt``, ``sample_id``, ``act``, ``response``, ``reference``, ``intent``, ``input_ids`` and
                ``attention_mask``, see the class.

        Raises:
            gymnasium.error.ResetNeeded: the episode has ended or has not started.
            ValueError: the action or the partner's answer is no text.
        """
        observation, reward, terminated, truncated, info = super().step(action)
        if not (terminated or truncated):
            info = {key: value[0] for key, value in self.mdp.replied.items()}
        return observation, reward, terminated, truncated, info


class DailyDialogTextVectorEnv(DailyDialogVectorEnv):
    """``num_envs`` copies of `DailyDialogTextEnv`, stepped together in numpy.

    Row ``i`` behaves exactly like environment ``i`` of a `gymnasium.vector.SyncVectorEnv` of `DailyDialogTextEnv` with
    the same seed and ``autoreset_mode``. Actions and observations are ``num_envs`` texts. The arguments are those of
    `DailyDialogVectorEnv`, ``turns`` and ``partner``. Every step ends the replies of all rows that it does not reset,
    so ``lockstep`` changes nothing. Several turns need another ``autoreset_mode`` than ``SAME_STEP``.

    >>> import gymnasium as gym, dailydialog_gym
    >>> envs = gym.make_vec("DailyDialogText-v0", num_envs=2)
    >>> conversations, infos = envs.reset(seed=1)
    >>> conversations, rewards, terminated, truncated, infos = envs.step(["I see .", "No ."])
    >>> infos["response"].tolist()
    ['I see .', 'No .']

    ## Version History
    * v0: first version.
    """

    mdp: ReplyMDP

    def __init__(self, *args: Any, turns: int = 1, partner: Partner | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.mdp = ReplyMDP(self.samples, self.num_envs, self.max_new_tokens, turns, partner)
        if turns > 1 and self.autoreset_mode == AutoresetMode.SAME_STEP:
            raise ValueError("several turns need autoreset_mode NextStep or Disabled")
        self.single_observation_space, self.single_action_space = self.mdp.observation_space, self.mdp.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Write a reply in every row. Replies of rows that are reset in this step (``NEXT_STEP`` mode) are ignored.

        Args:
            actions: ``num_envs`` texts.

        Returns:
            observations: ``num_envs`` texts: the conversations with the replies, or the prompts of the next replies.
            rewards: ``(num_envs,)`` float64, zeros.
            terminated, truncated: ``(num_envs,)`` bool.
            infos: those of `DailyDialogTextEnv`, in the form of `DailyDialogVectorEnv`.

        Raises:
            gymnasium.error.ResetNeeded: as in `DailyDialogVectorEnv`.
            ValueError: ``actions`` are not ``num_envs`` texts, or a partner's answer is no text.
        """
        observations, rewards, terminated, truncated, infos = super().step(actions)
        self._add_infos(infos, self.mdp.going_on, self.mdp.replied)
        return observations, rewards, terminated, truncated, infos
