"""`DailyDialogEnv` and `DailyDialogVectorEnv`: Gymnasium's single and vector interface to the token MDP of `mdp.py`."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from dailydialog_gym.env.dialogues import TEST_SHARE
from dailydialog_gym.env.mdp import TokenMDP
from dailydialog_gym.env.samples import Samples, load_samples
from dailydialog_gym.env.tokenizer import EOU
from dailydialog_gym.text import Spacing

RENDER_MODES = ["human", "ansi"]
_ALL_ROWS = slice(None)  # selects the single environment's only row, twice as fast as the index [0] does


def _spaces(samples: Samples, max_new_tokens: int) -> tuple[Dict, Discrete]:
    columns, vocab_size = samples.prompt_ids.shape[1] + max_new_tokens, samples.tokenizer.vocab_size
    observation_space = Dict(
        {
            "input_ids": Box(0, vocab_size - 1, (columns,), np.int64),
            "attention_mask": Box(0, 1, (columns,), np.int64),
        }
    )
    return observation_space, Discrete(vocab_size)


def _check_render_mode(render_mode: str | None) -> None:
    if render_mode not in (None, *RENDER_MODES):
        # A TypeError, because make_vec_env of stable-baselines3 tries "rgb_array" first and catches only this error
        raise TypeError(f"unknown render_mode {render_mode!r}: expected None, 'ansi' or 'human'")


def _sample_ids_from(options: dict[str, Any] | None, count: int, samples: Samples) -> np.ndarray | None:
    """The option ``sample_id``, broadcast to shape ``(count,)``; None if the option is not given."""
    if not options or "sample_id" not in options:
        return None
    sample_id = options["sample_id"]
    ids = np.asarray(sample_id)
    if ids.dtype.kind not in "iu" or ids.shape not in ((), (count,)):
        raise ValueError(
            f"options['sample_id'] must be an integer or an integer array of shape ({count},), got {sample_id!r}"
        )
    if ids.min() < 0 or ids.max() >= len(samples):
        raise ValueError(f"options['sample_id'] must be between 0 and {len(samples) - 1}, got {sample_id!r}")
    return np.broadcast_to(ids, (count,))


def _draw_sample_id(rng: np.random.Generator, samples: Samples) -> int:
    # This takes a third of the time of rng.integers(). Its bias, at most 2**-53 * len(samples), is negligible.
    return int(rng.random() * len(samples))


class DailyDialogEnv(gym.Env):
    """Write one reply of an everyday conversation, one token per action.

    ## Description
    DailyDialog (Li et al. 2017, arXiv:1710.03957) is a corpus of everyday dialogues between two people. The agent sees
    the last ``context_size`` utterances of a dialogue and writes the next utterance, the reply. Every action appends
    one token to the reply, and the episode ends with the reply. This is the text generation task of RL4LMs
    (arXiv:2210.01241) and of OpenRL's natural language tutorial.

    ## Action Space
    ``Discrete(vocab_size)``: the id of the next token.

    ## Observation Space
    ``Dict`` of two ``Box`` spaces of shape ``(max_prompt_length + max_new_tokens,)`` and dtype int64:

    | Key              | Min | Max              | Description                             |
    |------------------|-----|------------------|-----------------------------------------|
    | `input_ids`      | 0   | `vocab_size - 1` | the prompt, the reply so far, padding   |
    | `attention_mask` | 0   | 1                | 1 for tokens, 0 for padding             |

    The prompt is the utterances of the context, each followed by ``<EOU>``. It is left-padded into the first
    ``max_prompt_length`` columns, and truncated on the left if it is longer. Reply token ``t`` is in column
    ``max_prompt_length + t``. Because of the left padding, a model needs
    ``position_ids = (attention_mask.cumsum(-1) - 1).clip(0)``.

    ## Rewards
    The reward is always 0. Reward wrappers add rewards, see `dailydialog_gym.wrappers`.

    ## Starting State
    `reset` draws a sample uniformly with ``self.np_random``, or takes sample ``i`` if it is called with
    ``options={"sample_id": i}``. The reply is empty. The info of `reset` has these keys:

    - ``prompt``: str, the text of the context.
    - ``sample_id``: int, the index of the sample.
    - ``act``: int, the dialogue act of the reference reply (1 inform, 2 question, 3 directive, 4 commissive, 0 if the
      dataset has no acts).

    ## Episode End
    1. Termination: the text of the reply contains a complete ``<EOU>``, which may be one token or several, or the
       action is the tokenizer's EOS token. With ``chat_template``, the action is the template's end of turn or EOS.
    2. Truncation: the reply has ``max_new_tokens`` tokens and is not terminated.

    In both cases the reply is final, so a learner must not bootstrap from the value of the last observation. The info
    of the last step has the keys of `reset` and these:

    - ``response``: str, the text of the reply.
    - ``reference``: str, the reference reply: the next utterance of the dialogue.
    - ``intent``: int, the act that the reply should have. It equals ``act``.

    ## Arguments
    | Parameter           | Type     | Default     | Description                                                     |
    |---------------------|----------|-------------|-----------------------------------------------------------------|
    | `dataset`           | **str**  | `"builtin"` | see `dailydialog_gym.env.load_dialogues`                        |
    | `split`             | **str**  | `"train"`   | `"train"`, `"validation"` or `"test"`                           |
    | `tokenizer`         | **str**  | `"builtin"` | `"builtin"`, or a Hugging Face tokenizer by folder or hub id    |
    | `context_size`      | **int**  | `5`         | maximum number of utterances in the context                     |
    | `max_prompt_length` | **int**  | `128`       | maximum number of tokens of the prompt                          |
    | `max_new_tokens`    | **int**  | `20`        | maximum number of tokens of the reply                           |
    | `raw_split`         | **bool** | `False`     | keep training dialogues that are also in validation or test     |
    | `full_context`      | **bool** | `False`     | use only replies with at least `context_size` utterances before |
    | `test_share`        | **float**| `0.05`      | share of train held out where a dataset has no test split       |
    | `spacing`           | **str**  | `None`      | convert punctuation to DailyDialog's (`"spaced"`) or `"ordinary"` |
    | `chat_template`     | **bool** | `False`     | write prompts in the tokenizer's chat template                  |
    | `render_mode`       | **str**  | `None`      | `"ansi"`: `render` returns the dialogue and the reply so far;   |
    |                     |          |             | `"human"`: the reply is printed while it is written             |

    RL4LMs and OpenRL use ``raw_split=True`` and ``full_context=True``.

    >>> import gymnasium as gym, dailydialog_gym
    >>> env = gym.make("DailyDialog-v0")
    >>> observation, info = env.reset(seed=1)
    >>> observation["input_ids"].shape
    (148,)
    >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())

    ## Vectorized environment
    ``gym.make_vec("DailyDialog-v0", num_envs=n)`` makes a `DailyDialogVectorEnv`, which steps all rows in numpy.

    ## Version History
    * v0: first version.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": RENDER_MODES, "render_fps": 10}  # type: ignore[misc]  # Gymnasium's is no ClassVar

    def __init__(
        self,
        dataset: str = "builtin",
        split: str = "train",
        tokenizer: str = "builtin",
        context_size: int = 5,
        max_prompt_length: int = 128,
        max_new_tokens: int = 20,
        raw_split: bool = False,
        full_context: bool = False,
        test_share: float = TEST_SHARE,
        spacing: Spacing | None = None,
        chat_template: bool = False,
        render_mode: str | None = None,
    ):
        _check_render_mode(render_mode)
        self.render_mode = render_mode
        prompts = (context_size, max_prompt_length, raw_split, full_context, test_share, spacing, chat_template)
        self.samples = load_samples(dataset, split, tokenizer, *prompts)
        self.max_new_tokens = max_new_tokens
        self.mdp, self._was_reset = TokenMDP(self.samples, 1, max_new_tokens), False
        self.observation_space, self.action_space = _spaces(self.samples, max_new_tokens)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start a new episode, whose reply is still empty.

        Args:
            seed: the new seed of ``self.np_random``. None leaves the generator as it is.
            options: ``{"sample_id": i}`` selects sample ``i``. Otherwise a sample is drawn uniformly.

        Returns:
            observation: ``input_ids`` and ``attention_mask``, each ``(max_prompt_length + max_new_tokens,)`` int64.
            info: ``prompt``, ``sample_id`` and ``act``.

        Raises:
            ValueError: ``sample_id`` is not an integer or is out of range.
        """
        sample_ids = _sample_ids_from(options, 1, self.samples)
        super().reset(seed=seed)
        if sample_ids is None:
            sample_ids = np.array([_draw_sample_id(self.np_random, self.samples)])
        self.mdp.reset(_ALL_ROWS, sample_ids)
        self._was_reset = True
        if self.render_mode == "human":
            print()
            self._printed = ""
            self._print_new_text()
        return self.mdp.observation_of(0), {key: value[0] for key, value in self.mdp.reset_info(_ALL_ROWS).items()}

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Append one token to the reply.

        Args:
            action: the id of the token, from 0 to ``vocab_size - 1``.

        Returns:
            observation: ``input_ids`` and ``attention_mask``, each ``(max_prompt_length + max_new_tokens,)`` int64.
            reward: 0.0.
            terminated: True if the token completes ``<EOU>`` or is the EOS token.
            truncated: True if the reply now has ``max_new_tokens`` tokens and is not terminated.
            info: empty, except in the last step: ``prompt``, ``sample_id``, ``act``, ``response``, ``reference`` and
                ``intent``.

        Raises:
            gymnasium.error.ResetNeeded: the episode has ended or has not started.
            ValueError: the action is not an integer or is outside the vocabulary. The episode can go on.
        """
        mdp = self.mdp
        if not mdp.live[0]:
            raise ResetNeeded("the episode has ended or has not started: call reset() before step()")
        terminated, truncated = mdp.step([action])
        if self.render_mode == "human":
            self._print_new_text()
        if mdp.live[0]:
            return mdp.observation_of(0), 0.0, False, False, {}
        info = {key: value[0] for key, value in mdp.final_info(_ALL_ROWS).items()}
        return mdp.observation_of(0), 0.0, bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> str | None:
        """The dialogue and the reply so far as text if the render mode is ``"ansi"``, otherwise None.

        Raises:
            gymnasium.error.ResetNeeded: the environment has not been reset.
        """
        if not self._was_reset:
            raise ResetNeeded("the environment has not been reset: call reset() before render()")
        return self.mdp.transcript(0) if self.render_mode == "ansi" else None

    def _print_new_text(self) -> None:
        transcript = self.mdp.transcript(0)
        if self.mdp.live[0]:
            # Hold back what the next token may change: an incomplete character, or the beginning of <EOU>.
            transcript = transcript.rstrip(f"\N{REPLACEMENT CHARACTER}{EOU}")
        print(transcript.removeprefix(self._printed), end="" if self.mdp.live[0] else "\n", flush=True)
        self._printed = transcript


class DailyDialogVectorEnv(VectorEnv):
    """``num_envs`` copies of `DailyDialogEnv`, stepped together in numpy.

    ## Description
    Row ``i`` behaves exactly like environment ``i`` of a `gymnasium.vector.SyncVectorEnv` of `DailyDialogEnv` with the
    same seed and ``autoreset_mode``, infos included.

    ## Action Space
    ``MultiDiscrete`` of shape ``(num_envs,)``: the id of the next token of each row.

    ## Observation Space
    ``Dict`` of ``input_ids`` and ``attention_mask`` as in `DailyDialogEnv`, each of shape
    ``(num_envs, max_prompt_length + max_new_tokens)``.

    ## Rewards
    The rewards are always 0. Reward wrappers add rewards, see `dailydialog_gym.wrappers.vector`.

    ## Starting State
    Every row has a random generator of its own and starts like `DailyDialogEnv`. `reset` also takes
    ``options={"reset_mask": mask}`` to reset only some rows.

    ## Episode End
    Episodes end as in `DailyDialogEnv`. ``autoreset_mode`` says when the row of an ended episode is reset. With
    ``lockstep=True``, a row whose reply has ended ignores its actions until the replies of all rows have ended. The
    episodes of all rows end in that step, each with the ``terminated`` or ``truncated`` of its own reply.

    ## Arguments
    | Parameter        | Type              | Default     | Description                                                |
    |------------------|-------------------|-------------|------------------------------------------------------------|
    | `num_envs`       | **int**           | `1`         | number of rows                                             |
    | `autoreset_mode` | **AutoresetMode** | `NEXT_STEP` | `NEXT_STEP`, `SAME_STEP` or `DISABLED`, or the mode's name |
    | `lockstep`       | **bool**          | `False`     | end the episodes of all rows in the same step              |

    The other arguments are those of `DailyDialogEnv`. With ``render_mode="human"``, dialogues are printed when they
    end.

    >>> import gymnasium as gym, dailydialog_gym
    >>> envs = gym.make_vec("DailyDialog-v0", num_envs=4, lockstep=True, autoreset_mode="Disabled")
    >>> observations, infos = envs.reset(seed=1)
    >>> observations["input_ids"].shape
    (4, 148)

    ## Version History
    * v0: first version.
    """

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        lockstep: bool = False,
        dataset: str = "builtin",
        split: str = "train",
        tokenizer: str = "builtin",
        context_size: int = 5,
        max_prompt_length: int = 128,
        max_new_tokens: int = 20,
        raw_split: bool = False,
        full_context: bool = False,
        test_share: float = TEST_SHARE,
        spacing: Spacing | None = None,
        chat_template: bool = False,
        render_mode: str | None = None,
    ):
        _check_render_mode(render_mode)
        self.render_mode = render_mode
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**DailyDialogEnv.metadata, "autoreset_mode": self.autoreset_mode}
        prompts = (context_size, max_prompt_length, raw_split, full_context, test_share, spacing, chat_template)
        self.samples = load_samples(dataset, split, tokenizer, *prompts)
        self.max_new_tokens = max_new_tokens
        self.mdp = TokenMDP(self.samples, num_envs, max_new_tokens, lockstep)
        self.single_observation_space, self.single_action_space = _spaces(self.samples, max_new_tokens)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rngs: list[np.random.Generator] = []
        # Rows whose episode has ended and that have not been reset since. In NEXT_STEP mode the next step resets them.
        self._needs_reset = np.ones(num_envs, np.bool_)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start new episodes in all rows, or in some of them.

        Args:
            seed: with an integer, row ``i`` is seeded with ``seed + i``. A list has one entry per row, and None leaves
                the row's generator as it is. Only rows that are reset are seeded.
            options: ``{"reset_mask": mask}``, a ``(num_envs,)`` bool array, resets only the rows where it is True.
                ``{"sample_id": i}`` selects the sample, one for all rows or a list of ``num_envs``; otherwise every
                row draws a sample uniformly.

        Returns:
            observations: ``input_ids`` and ``attention_mask`` of all rows, each
                ``(num_envs, max_prompt_length + max_new_tokens)`` int64.
            infos: arrays ``prompt``, ``sample_id`` and ``act`` of shape ``(num_envs,)``, and for each key a mask
                ``_key``, which is True for the rows that were reset.

        Raises:
            ValueError: an option or the number of seeds is wrong, or the mask selects some rows in lockstep mode.
            gymnasium.error.ResetNeeded: the first call does not reset all rows.
        """
        rows = self._rows_to_reset(options)
        sample_ids = _sample_ids_from(options, self.num_envs, self.samples)
        self._seed(seed, rows)
        self.mdp.reset(rows, self._draw_sample_ids(rows) if sample_ids is None else sample_ids[rows])
        self._needs_reset[rows] = False
        infos: dict[str, Any] = {}
        self._add_infos(infos, rows, self.mdp.reset_info(rows))
        return self.mdp.observation(), infos

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Append one token to the reply of every row.

        Actions of rows that are reset in this step (``NEXT_STEP`` mode), or that wait for other rows (lockstep), are
        ignored.

        Args:
            actions: ``(num_envs,)`` integers, the ids of the tokens.

        Returns:
            observations: ``input_ids`` and ``attention_mask``, each ``(num_envs, max_prompt_length + max_new_tokens)``
                int64.
            rewards: ``(num_envs,)`` float64, zeros.
            terminated, truncated: ``(num_envs,)`` bool.
            infos: for rows that were reset, ``prompt``, ``sample_id`` and ``act``; for rows whose episode ended, also
                ``response``, ``reference`` and ``intent``. As in Gymnasium, ``SAME_STEP`` mode puts the infos of ended
                episodes into ``final_info`` and their last observations into ``final_obs``.

        Raises:
            gymnasium.error.ResetNeeded: the environment has not been reset, or an episode has ended in ``DISABLED``
                mode.
            ValueError: ``actions`` has a wrong shape or type, or an action is outside the vocabulary. The episodes can
                go on.
        """
        if not self._rngs:
            raise ResetNeeded("the environment has not been reset: call reset() before step()")
        mdp = self.mdp
        rows_to_reset = self._needs_reset.nonzero()[0]
        if len(rows_to_reset) and self.autoreset_mode == AutoresetMode.DISABLED:
            raise ResetNeeded(
                f"the episodes of rows {rows_to_reset.tolist()} have ended: reset these rows before step(), with "
                "options={'reset_mask': mask}"
            )
        if len(rows_to_reset) < self.num_envs:
            terminated, truncated = mdp.step(actions)
        else:
            terminated, truncated = np.zeros_like(self._needs_reset), np.zeros_like(self._needs_reset)
        return self._after_step(rows_to_reset, terminated, truncated)

    def replay(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Whole replies in one call, in lockstep: what `step` returns for the token that ends the last of them.

        An agent that knows itself where its replies end, by the tokenizer's ``transitions``, need not wait for the
        environment at every token. Actions after the end of a reply are ignored.

        Args:
            actions: ``(num_envs, max_new_tokens)`` integers, the tokens of replies of which none is written yet.

        Raises:
            gymnasium.error.ResetNeeded: the episodes are not at their beginning.
            ValueError: the environment is not in lockstep, or ``actions`` has a wrong shape or type or an action
                outside the vocabulary. Reset the environment then.
        """
        mdp, actions = self.mdp, np.asarray(actions)
        self.check_replay(actions.shape)
        for tokens in actions.T:
            terminated, truncated = mdp.step(tokens)
            if not mdp.live.any():
                break
        return self._after_step(np.arange(0), terminated, truncated)

    def check_replay(self, shape: tuple[int, ...]) -> None:
        """Check that whole replies of this shape can be written now.

        Raises:
            gymnasium.error.ResetNeeded, ValueError: as `replay`, except for single tokens.
        """
        if not self.mdp.lockstep:
            raise ValueError("replay() is for environments in lockstep: make this one with lockstep=True")
        if self._needs_reset.any() or self.mdp.reply_lengths.any():
            raise ResetNeeded("the episodes are not at their beginning: call reset() before replay()")
        expected = (self.num_envs, self.max_new_tokens)
        if shape != expected:
            raise ValueError(f"expected the tokens of whole replies, {expected}, got an array of shape {shape}")

    def _after_step(
        self, rows_to_reset: np.ndarray, terminated: np.ndarray, truncated: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        mdp = self.mdp
        self._needs_reset = terminated | truncated
        ended_rows = self._needs_reset.nonzero()[0]
        infos: dict[str, Any] = {}
        if len(ended_rows):
            self._add_final_infos(infos, ended_rows)
            if self.autoreset_mode == AutoresetMode.SAME_STEP:
                rows_to_reset = ended_rows
                self._needs_reset = np.zeros_like(self._needs_reset)
        if len(rows_to_reset):
            mdp.reset(rows_to_reset, self._draw_sample_ids(rows_to_reset))
            self._add_infos(infos, rows_to_reset, mdp.reset_info(rows_to_reset))
        return mdp.observation(), np.zeros(self.num_envs), terminated.copy(), truncated.copy(), infos

    def render(self) -> tuple[str, ...] | None:
        """The dialogue and the reply so far of every row if the render mode is ``"ansi"``, otherwise None.

        Raises:
            gymnasium.error.ResetNeeded: the environment has not been reset.
        """
        if not self._rngs:
            raise ResetNeeded("the environment has not been reset: call reset() before render()")
        if self.render_mode == "ansi":
            return tuple(self.mdp.transcript(row) for row in range(self.num_envs))
        return None

    def _add_final_infos(self, infos: dict[str, Any], rows: np.ndarray) -> None:
        final_info = self.mdp.final_info(rows)
        if self.render_mode == "human":
            print("\n\n".join(self.mdp.transcript(row) for row in rows), end="\n\n", flush=True)
        if self.autoreset_mode != AutoresetMode.SAME_STEP:
            self._add_infos(infos, rows, final_info)
            return
        self._add_infos(infos, rows, {"final_obs": [self.mdp.observation_of(row) for row in rows]})
        infos["final_info"], infos["_final_info"] = {}, infos["_final_obs"].copy()
        self._add_infos(infos["final_info"], rows, final_info)

    def _add_infos(self, infos: dict[str, Any], rows: np.ndarray, columns: dict[str, list[Any]]) -> None:
        """Like `VectorEnv._add_info`, but for many rows at once: ``columns[key][k]`` belongs to row ``rows[k]``."""
        for key, values in columns.items():
            if key not in infos:
                if isinstance(values[0], int | np.ndarray):
                    infos[key] = np.zeros((self.num_envs, *np.shape(values[0])), np.int64)
                else:
                    infos[key] = np.full(self.num_envs, None, object)
                infos[f"_{key}"] = np.zeros(self.num_envs, np.bool_)
            infos[key][rows] = values
            infos[f"_{key}"][rows] = True

    def _rows_to_reset(self, options: dict[str, Any] | None) -> np.ndarray:
        mask = options.get("reset_mask") if options else None
        if mask is None:
            return np.arange(self.num_envs)
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise ValueError(f"options['reset_mask'] must be a bool array of shape ({self.num_envs},), got {mask!r}")
        if not mask.any():
            raise ValueError("options['reset_mask'] selects no row: at least one must be True")
        if self.mdp.lockstep and not mask.all():
            raise ValueError("in lockstep, all rows are reset together: options['reset_mask'] must be all True")
        if not self._rngs and not mask.all():
            raise ResetNeeded("the first reset must include all rows: call reset() without a reset_mask")
        return mask.nonzero()[0]

    def _seed(self, seed: int | list[int | None] | None, rows: np.ndarray) -> None:
        seeds = seed if isinstance(seed, list) else [None if seed is None else seed + i for i in range(self.num_envs)]
        if len(seeds) != self.num_envs:
            raise ValueError(f"expected one seed, or a list of {self.num_envs}, got {len(seeds)}")
        if not self._rngs:
            self._rngs = [np_random(s)[0] for s in seeds]
            return
        for row in rows:
            if seeds[row] is not None:
                self._rngs[row] = np_random(seeds[row])[0]

    def _draw_sample_ids(self, rows: np.ndarray) -> np.ndarray:
        return np.array([_draw_sample_id(self._rngs[row], self.samples) for row in rows])
