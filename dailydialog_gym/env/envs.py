"""`DailyDialogEnv` and `DailyDialogVectorEnv`: Gymnasium's two interfaces over the one token MDP of `core.py`."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from dailydialog_gym.env.mdp import TokenMDP
from dailydialog_gym.env.samples import Samples, load_samples
from dailydialog_gym.env.tokenizer import EOU

RENDER_MODES = ["human", "ansi"]
_ROW = slice(None)  # of the single environment: numpy indexes all there is twice as fast as [0]


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
        raise ValueError(f"unknown render_mode {render_mode!r}: expected None, 'ansi' or 'human'")


def _chosen_sample_ids(options: dict[str, Any] | None, count: int, samples: Samples) -> np.ndarray | None:
    """The ``sample_id`` option as ``count`` numbers, where there is one; a single number stands for all rows."""
    if not options or "sample_id" not in options:
        return None
    sample_id = options["sample_id"]
    ids = np.asarray(sample_id)
    if ids.dtype.kind not in "iu" or ids.shape not in ((), (count,)):
        raise ValueError(f"options['sample_id'] must be an integer or {count} of them, got {sample_id!r}")
    if ids.min() < 0 or ids.max() >= len(samples):
        raise ValueError(f"options['sample_id'] must lie between 0 and {len(samples) - 1}, got {sample_id!r}")
    return np.broadcast_to(ids, (count,))


def _draw(rng: np.random.Generator, samples: Samples) -> int:
    # A third of the time of rng.integers(); the bias of at most 2**-53 * len(samples) is not measurable.
    return int(rng.random() * len(samples))


class DailyDialogEnv(gym.Env):
    """One reply of an everyday conversation, written one token at a time.

    ## Description
    DailyDialog (Li et al. 2017, arXiv:1710.03957) is a corpus of everyday two-person dialogues. The environment shows
    the last ``context_size`` utterances of one; the agent writes the next utterance, a token an action. This is the
    text generation task of RL4LMs (arXiv:2210.01241) and of OpenRL's natural language tutorial.

    ## Action Space
    ``Discrete(vocab_size)``: the next token.

    ## Observation Space
    ``Dict`` of two ``(max_prompt_length + max_new_tokens,)`` int64 boxes:

    - ``input_ids``: the prompt, left-padded into the first ``max_prompt_length`` columns, then the reply so far (token
      ``t`` in column ``max_prompt_length + t``), then padding. A prompt is the context's utterances, each followed by
      ``<EOU>``; a longer one than ``max_prompt_length`` loses its beginning.
    - ``attention_mask``: 1 where there is a token, 0 where there is padding. Because the padding stands on the left,
      a model needs ``position_ids = (attention_mask.cumsum(-1) - 1).clip(0)``.

    ## Rewards
    Always 0. Rewards are wrappers, see `dailydialog_gym.wrappers`.

    ## Starting State
    A sample drawn uniformly with ``self.np_random``, or ``reset(options={"sample_id": i})``. The info holds
    ``prompt`` (text), ``sample_id`` and ``act``, the act of the utterance that people answered with (1 inform,
    2 question, 3 directive, 4 commissive).

    ## Episode End
    `terminated` when the reply holds a complete ``<EOU>``, in however many tokens, or the tokenizer's EOS token.
    `truncated` when it has ``max_new_tokens`` tokens. Either way the reply is final, so a learner doesn't bootstrap.
    The last info also holds ``response`` (the reply's text), ``reference`` (what people answered) and ``intent`` (the
    act that the reply should have, equal to ``act``).

    ## Arguments
    - ``dataset``: ``"builtin"``, a folder, a ``.jsonl`` file or a hub id, see `dailydialog_gym.env.load_dialogues`.
    - ``split``: ``"train"``, ``"validation"`` or ``"test"``.
    - ``tokenizer``: ``"builtin"``, or a Hugging Face tokenizer's folder or hub id.
    - ``context_size``: utterances of context, 5; fewer where the dialogue has just begun.
    - ``max_prompt_length``, ``max_new_tokens``: in tokens, 128 and 20.
    - ``raw_split``: keep the training dialogues that also stand in validation or test.
    - ``full_context``: only replies with ``context_size`` utterances before them. RL4LMs and OpenRL have both set.
    - ``render_mode``: ``"ansi"`` (`render` returns the dialogue and the reply so far) or ``"human"`` (the reply is
      printed as it grows).

    >>> import gymnasium as gym, dailydialog_gym
    >>> env = gym.make("DailyDialog-v0")
    >>> observation, info = env.reset(seed=1)
    >>> observation["input_ids"].shape
    (148,)
    >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())

    ## Version History
    - v0: first version.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": RENDER_MODES, "render_fps": 10}

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
        render_mode: str | None = None,
    ):
        _check_render_mode(render_mode)
        self.render_mode = render_mode
        self.samples = load_samples(dataset, split, tokenizer, context_size, max_prompt_length, raw_split, full_context)
        self.max_new_tokens = max_new_tokens
        self.mdp = TokenMDP(self.samples, 1, max_new_tokens)
        self.observation_space, self.action_space = _spaces(self.samples, max_new_tokens)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        sample_ids = _chosen_sample_ids(options, 1, self.samples)
        super().reset(seed=seed)
        if sample_ids is None:
            sample_ids = np.array([_draw(self.np_random, self.samples)])
        self.mdp.reset(_ROW, sample_ids)
        if self.render_mode == "human":
            print()
            self._printed = ""
            self._print_growth()
        return self._observation(), {key: value[0] for key, value in self.mdp.reset_info(_ROW).items()}

    def step(self, action: int):
        mdp = self.mdp
        if not mdp.live[0]:
            raise ResetNeeded("the reply has ended, or none was begun: call reset() before step()")
        terminated, truncated = mdp.step(np.array([action]))
        if self.render_mode == "human":
            self._print_growth()
        if mdp.live[0]:
            return self._observation(), 0.0, False, False, {}
        info = {key: value[0] for key, value in mdp.final_info(_ROW).items()}
        return self._observation(), 0.0, bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> str | None:
        return self.mdp.transcript(0) if self.render_mode == "ansi" else None

    def _print_growth(self) -> None:
        transcript = self.mdp.transcript(0)
        if self.mdp.live[0]:
            # Kept back, because the next token may turn it into something else: part of a character, or of <EOU>.
            transcript = transcript.rstrip(f"\N{REPLACEMENT CHARACTER}{EOU}")
        print(transcript.removeprefix(self._printed), end="" if self.mdp.live[0] else "\n", flush=True)
        self._printed = transcript

    def _observation(self) -> dict[str, np.ndarray]:
        return {"input_ids": self.mdp.input_ids[0].copy(), "attention_mask": self.mdp.attention_mask[0].copy()}


class DailyDialogVectorEnv(VectorEnv):
    """``num_envs`` replies at once: `DailyDialogEnv`, batched natively.

    Row ``i`` behaves exactly as a `DailyDialogEnv` seeded ``seed + i`` in a `gymnasium.vector.SyncVectorEnv` with the
    same ``autoreset_mode``, infos included.

    Args:
        num_envs: number of rows.
        autoreset_mode: when an ended row begins its next episode: `AutoresetMode.NEXT_STEP`, ``SAME_STEP`` or
            ``DISABLED``, or their names.
        lockstep: an ended row idles, its actions ignored, until every row's reply has ended; in that step all rows
            end together, each terminated or truncated as its own reply was. Resets then concern all rows.
        others: as `DailyDialogEnv`'s.

    `reset` takes ``options={"reset_mask": mask}`` (``(num_envs,)`` bool: reset only these rows) and
    ``options={"sample_id": i}`` (one sample for all rows, or ``(num_envs,)`` of them).

    >>> import gymnasium as gym, dailydialog_gym
    >>> envs = gym.make_vec("DailyDialog-v0", num_envs=4, lockstep=True, autoreset_mode="Disabled")
    >>> observations, infos = envs.reset(seed=1)
    >>> observations["input_ids"].shape
    (4, 148)
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
        render_mode: str | None = None,
    ):
        _check_render_mode(render_mode)
        self.render_mode = render_mode
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**DailyDialogEnv.metadata, "autoreset_mode": self.autoreset_mode}
        self.samples = load_samples(dataset, split, tokenizer, context_size, max_prompt_length, raw_split, full_context)
        self.max_new_tokens = max_new_tokens
        self.mdp = TokenMDP(self.samples, num_envs, max_new_tokens, lockstep)
        self.single_observation_space, self.single_action_space = _spaces(self.samples, max_new_tokens)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rngs: list[np.random.Generator] = []
        # Rows between the end of an episode and their next reset (NEXT_STEP resets them in its next step).
        self._ended = np.ones(num_envs, np.bool_)

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None):
        rows = self._rows_to_reset(options)
        sample_ids = _chosen_sample_ids(options, self.num_envs, self.samples)
        self._seed(seed, rows)
        self.mdp.reset(rows, self._draw(rows) if sample_ids is None else sample_ids[rows])
        self._ended[rows] = False
        infos: dict[str, Any] = {}
        self._add(infos, rows, self.mdp.reset_info(rows))
        return self.mdp.observation(), infos

    def step(self, actions: np.ndarray):
        if not self._rngs:
            raise ResetNeeded("no episode was begun: call reset() before step()")
        mdp, mode = self.mdp, self.autoreset_mode
        restart = self._ended.nonzero()[0]
        if len(restart) and mode == AutoresetMode.DISABLED:
            raise ResetNeeded(
                f"rows {restart.tolist()} have ended: reset them before step(), with options={{'reset_mask': mask}}"
            )
        if len(restart) < self.num_envs:
            terminated, truncated = mdp.step(np.asarray(actions))
        else:
            terminated, truncated = np.zeros_like(self._ended), np.zeros_like(self._ended)
        self._ended = terminated | truncated
        ended = self._ended.nonzero()[0]
        infos: dict[str, Any] = {}
        if len(ended):
            self._end(ended, infos)
            if mode == AutoresetMode.SAME_STEP:
                restart = ended
                self._ended = np.zeros_like(self._ended)
        if len(restart):
            mdp.reset(restart, self._draw(restart))
            self._add(infos, restart, mdp.reset_info(restart))
        return mdp.observation(), np.zeros(self.num_envs), terminated.copy(), truncated.copy(), infos

    def render(self) -> tuple[str, ...] | None:
        if not self._rngs:
            raise ResetNeeded("no episode was begun: call reset() before render()")
        if self.render_mode == "ansi":
            return tuple(self.mdp.transcript(row) for row in range(self.num_envs))
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps between episodes: the rows' random generators."""
        return {"rngs": [rng.bit_generator.state for rng in self._rngs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Draw the next samples as the environment of the `state_dict` would have; call `reset` next, unseeded."""
        self._rngs = [np_random()[0] for _ in range(self.num_envs)]
        for rng, state in zip(self._rngs, state_dict["rngs"], strict=True):
            rng.bit_generator.state = state
        self._ended[:] = True

    def _end(self, rows: np.ndarray, infos: dict[str, Any]) -> None:
        final_info = self.mdp.final_info(rows)
        if self.render_mode == "human":
            print("\n\n".join(self.mdp.transcript(row) for row in rows), end="\n\n", flush=True)
        if self.autoreset_mode != AutoresetMode.SAME_STEP:
            self._add(infos, rows, final_info)
            return
        ids, mask = self.mdp.input_ids[rows], self.mdp.attention_mask[rows]
        final_obs = [{"input_ids": i, "attention_mask": m} for i, m in zip(ids, mask, strict=True)]
        self._add(infos, rows, {"final_obs": final_obs})
        infos["final_info"], infos["_final_info"] = {}, infos["_final_obs"].copy()
        self._add(infos["final_info"], rows, final_info)

    def _add(self, infos: dict[str, Any], rows: np.ndarray, columns: dict[str, list]) -> None:
        """`VectorEnv._add_info` for many rows in one go."""
        for key, values in columns.items():
            if key not in infos:
                kind, empty = (np.int64, 0) if isinstance(values[0], int) else (object, None)
                infos[key], infos[f"_{key}"] = np.full(self.num_envs, empty, kind), np.zeros(self.num_envs, np.bool_)
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
            raise ResetNeeded("the first reset must concern all rows: call reset() without a reset_mask")
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

    def _draw(self, rows: np.ndarray) -> np.ndarray:
        return np.array([_draw(self._rngs[row], self.samples) for row in rows])
