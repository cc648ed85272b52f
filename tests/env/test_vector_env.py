import copy
import pickle
import random
import warnings
from itertools import combinations

import gymnasium as gym
import numpy as np
import pytest
from equality import assert_same
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import FlattenObservation, RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st

import dailydialog_gym  # noqa: F401, registers the environment
from dailydialog_gym.env.samples import load_samples
from dailydialog_gym.env.tokenizer import EOU, load_tokenizer

PROMPT = 16
SMALL = {"max_prompt_length": PROMPT, "max_new_tokens": 4}
MODES = list(AutoresetMode)
EOU_ID = load_tokenizer("builtin").encode([EOU])[0][0]

every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
free_or_lockstep = pytest.mark.parametrize("lockstep", [False, True], ids=["free", "lockstep"])


def native(num_envs: int, mode: AutoresetMode | str = AutoresetMode.NEXT_STEP, **kwargs) -> VectorEnv:
    return gym.make_vec("DailyDialog-v0", num_envs=num_envs, autoreset_mode=mode, **(SMALL | kwargs))


def vectorized(kind: str, num_envs: int, mode: AutoresetMode = AutoresetMode.NEXT_STEP, **kwargs) -> VectorEnv:
    """Single environments in Gymnasium's "sync" or "async" vector environment."""
    vector_kwargs = {"autoreset_mode": mode}
    return gym.make_vec(
        "DailyDialog-v0", num_envs, vectorization_mode=kind, vector_kwargs=vector_kwargs, **(SMALL | kwargs)
    )


class Pair:
    """The native vector environment and a `SyncVectorEnv`. Each call goes to both, and both must return the same."""

    def __init__(self, num_envs: int, mode: AutoresetMode, **kwargs):
        self.native = native(num_envs, mode, **kwargs)
        self.sync = vectorized("sync", num_envs, mode, **kwargs)

    def reset(self, seed=None, **options):
        given = options or None
        returned = self.native.reset(seed=seed, options=given)
        # SyncVectorEnv gets a copy, because it removes the mask from its options.
        assert_same(returned, self.sync.reset(seed=seed, options=copy.copy(given)))
        return returned

    def step(self, actions):
        returned = self.native.step(actions)
        assert_same(returned, self.sync.step(actions))
        return returned


def random_actions(num_envs: int, steps: int, seed: int = 0, eou: float = 0.2) -> np.ndarray:
    """``(steps, num_envs)`` random tokens, with ``<EOU>`` at a probability of ``eou``."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(load_tokenizer("builtin").vocab_size, size=(steps, num_envs))
    actions[rng.random(actions.shape) < eou] = EOU_ID
    return actions


def drive(envs: VectorEnv, actions: np.ndarray) -> list:
    """What ``envs`` returns for ``actions``. In DISABLED mode, rows whose episode has ended are reset."""
    returned = []
    for row in actions:
        returned.append(envs.step(row))
        ended = returned[-1][2] | returned[-1][3]
        if envs.unwrapped.autoreset_mode == AutoresetMode.DISABLED and ended.any():
            returned.append(envs.reset(options={"reset_mask": ended}))
    return returned


@every_mode
@pytest.mark.parametrize("num_envs", [1, 5])
def test_equals_sync_on_random_actions(mode, num_envs):
    pair = Pair(num_envs, mode)
    _, infos = pair.reset(seed=3)
    assert infos["_prompt"].all()
    ends = 0
    for actions in random_actions(num_envs, 60):
        _, _, terminated, truncated, _ = pair.step(actions)
        ended = terminated | truncated
        ends += ended.sum()
        if mode == AutoresetMode.DISABLED and ended.any():
            pair.reset(reset_mask=ended)
    assert ends > 5 * num_envs


@every_mode
def test_equals_sync_when_replies_end_by_eou_at_different_times(mode):
    samples = load_samples("builtin", "train", "builtin", 5, PROMPT, False, False)
    replies = samples.tokenizer.encode([f"{reference} {EOU}" for reference in samples.references])
    pair = Pair(4, mode, max_new_tokens=14)
    pair.reset(seed=11)
    mdp = pair.native.unwrapped.mdp
    lengths = {"terminated": set(), "truncated": set()}
    for _ in range(80):
        before = mdp.reply_lengths
        words = [
            replies[sample][t] if t < len(replies[sample]) else 0
            for sample, t in zip(mdp.sample_ids, before, strict=True)
        ]
        _, _, terminated, truncated, infos = pair.step(np.array(words))
        lengths["terminated"].update(before[terminated].tolist())
        lengths["truncated"].update(before[truncated].tolist())
        final = infos.get("final_info", infos)
        for row in terminated.nonzero()[0]:
            assert final["response"][row] == final["reference"][row]
        if mode == AutoresetMode.DISABLED and (terminated | truncated).any():
            pair.reset(reset_mask=terminated | truncated)
    assert len(lengths["terminated"]) > 4
    assert lengths["truncated"] == {13}


@every_mode
def test_equals_sync_with_partial_resets_at_any_time(mode):
    rng = np.random.default_rng(5)
    pair = Pair(4, mode)
    pair.reset(seed=1)
    ended = np.zeros(4, np.bool_)
    seeds = [None, 8, [7, None, 5, 3]]
    for actions in random_actions(4, 150):
        mask = (rng.random(4) < 0.2) | (ended & (mode == AutoresetMode.DISABLED))
        if mask.any():
            sample = {"sample_id": int(rng.integers(1000))} if rng.random() < 0.3 else {}
            pair.reset(seed=seeds[rng.integers(3)], reset_mask=mask, **sample)
        _, _, terminated, truncated, _ = pair.step(actions)
        ended = terminated | truncated


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["step", "step", "step", "reset"]),
        st.lists(st.sampled_from([EOU_ID, EOU_ID, 5, 300, 4095]), min_size=3, max_size=3),
        st.lists(st.booleans(), min_size=3, max_size=3).filter(any),
        st.none() | st.integers(0, 9) | st.lists(st.none() | st.integers(0, 9), min_size=3, max_size=3),
        st.none() | st.integers(0, 99),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(MODES), st.integers(0, 99), st.integers(1, 3), OPERATIONS)
def test_equals_sync_whatever_happens(mode, seed, max_new_tokens, operations):
    pair = Pair(3, mode, max_new_tokens=max_new_tokens)
    pair.reset(seed=seed)
    ended = np.zeros(3, np.bool_)
    for kind, actions, mask, new_seed, sample_id in operations:
        if kind == "reset":
            sample = {} if sample_id is None else {"sample_id": sample_id}
            pair.reset(seed=new_seed, reset_mask=np.array(mask), **sample)
            ended &= ~np.array(mask)
        elif mode == AutoresetMode.DISABLED and ended.any():
            with pytest.raises(ResetNeeded):
                pair.native.step(np.array(actions))
        else:
            _, _, terminated, truncated, _ = pair.step(np.array(actions))
            ended = terminated | truncated


@every_mode
def test_spaces_and_metadata_equal_syncs(mode):
    pair = Pair(3, mode)
    for name in ("single_observation_space", "observation_space", "single_action_space", "action_space", "metadata"):
        assert getattr(pair.native, name) == getattr(pair.sync, name), name
    observations, _ = pair.reset(seed=0)
    assert observations in pair.native.observation_space
    assert pair.native.step(pair.native.action_space.sample())[0] in pair.native.observation_space


@every_mode
def test_make_vec_takes_the_mode_by_name(mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = native(2, mode.value)
    assert envs.unwrapped.autoreset_mode is envs.metadata["autoreset_mode"] is mode
    assert envs.spec.kwargs["autoreset_mode"] == mode.value


@every_mode
def test_remade_from_its_spec_is_the_same(mode):
    envs = native(3, mode)
    again = gym.make_vec(envs.spec)
    assert_same(again.reset(seed=4), envs.reset(seed=4))
    assert again.unwrapped.autoreset_mode == mode


def test_sample_id_for_each_row():
    envs, one_by_one = native(3), native(3)
    observations, infos = envs.reset(options={"sample_id": [5, 2, 5]})
    assert infos["sample_id"].tolist() == [5, 2, 5]
    one_by_one.reset()
    for row, sample_id in enumerate([5, 2, 5]):
        mask = np.arange(3) == row
        expected, _ = one_by_one.reset(options={"reset_mask": mask, "sample_id": sample_id})
    assert_same(observations, expected)


def test_sample_ids_of_rows_that_are_not_reset_are_not_used():
    envs = native(3)
    envs.reset(seed=0, options={"sample_id": 1})
    mask = np.array([True, False, True])
    _, infos = envs.reset(options={"reset_mask": mask, "sample_id": np.array([7, 8, 9])})
    assert envs.unwrapped.mdp.sample_ids.tolist() == [7, 1, 9]
    assert infos["_sample_id"].tolist() == mask.tolist()


def test_reset_mask_leaves_other_rows_alone():
    envs = native(3)
    envs.reset(seed=0)
    before = envs.step(np.array([5, 6, 7]))[0]
    after, infos = envs.reset(options={"reset_mask": np.array([False, True, False])})
    for key in before:
        assert np.array_equal(after[key][[0, 2]], before[key][[0, 2]])
    assert not after["attention_mask"][1, PROMPT:].any()
    assert infos["_prompt"].tolist() == [False, True, False]
    assert infos["prompt"][0] is None


def test_reset_leaves_its_options_alone():
    envs = native(2)
    envs.reset(seed=0)
    options = {"reset_mask": np.array([True, False]), "sample_id": np.array([3, 4])}
    given = copy.deepcopy(options)
    envs.reset(options=options)
    assert_same(options, given)


# Lockstep


def batched(infos: dict[int, dict], num_envs: int) -> dict:
    """Infos of single rows, combined by Gymnasium's own `_add_info`."""
    envs, together = VectorEnv(), {}
    envs.num_envs = num_envs
    for row, info in infos.items():
        together = envs._add_info(together, info, row)
    return together


def stacked(observations: list[dict]) -> dict:
    return {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}


@every_mode
@pytest.mark.parametrize("idle_action", [EOU_ID, 5, -1, 4096])
def test_lockstep_equals_single_episodes_that_wait_for_each_other(mode, idle_action):
    n = 4
    envs, singles = native(n, mode, lockstep=True), [gym.make("DailyDialog-v0", **SMALL) for _ in range(n)]
    begun = [env.reset(seed=20 + i) for i, env in enumerate(singles)]
    returned = envs.reset(seed=20)
    waited, both = 0, 0
    actions = iter(random_actions(n, 400, seed=2, eou=0.3))
    for _ in range(25):
        assert_same(returned[0], stacked([observation for observation, _ in begun]))
        assert_same(returned[-1], batched({row: info for row, (_, info) in enumerate(begun)}, n))
        last = {}
        while len(last) < n:
            action = next(actions)
            expected = []
            for row, env in enumerate(singles):
                if row in last:
                    action[row] = idle_action
                    expected.append(last[row][0])
                    waited += 1
                else:
                    step = env.step(action[row])
                    expected.append(step[0])
                    if step[2] or step[3]:
                        last[row] = step
            returned = envs.step(action)
            if len(last) < n:
                assert_same(returned, (stacked(expected), np.zeros(n), np.zeros(n, bool), np.zeros(n, bool), {}))
        terminated, truncated = (np.array([last[row][k] for row in range(n)]) for k in (2, 3))
        both += terminated.any() and truncated.any()
        assert_same(returned[1:4], (np.zeros(n), terminated, truncated))
        begun = [env.reset() for env in singles]
        if mode == AutoresetMode.SAME_STEP:
            finals = {
                r: {"final_obs": step[0], "final_info": step[4]} | begun[r][1] for r, step in sorted(last.items())
            }
            assert_same(returned[4], batched(finals, n))
            infos = {key: value for key, value in returned[4].items() if not key.removeprefix("_").startswith("final")}
            returned = returned[0], infos
        else:
            assert_same(returned[0], stacked(expected))
            assert_same(returned[4], batched({row: step[4] for row, step in sorted(last.items())}, n))
            if mode == AutoresetMode.NEXT_STEP:
                returned = envs.step(np.full(n, idle_action))
                assert_same(returned[1:4], (np.zeros(n), np.zeros(n, bool), np.zeros(n, bool)))
            else:
                returned = envs.reset()
    assert waited
    assert both


@every_mode
def test_lockstep_reset_concerns_all_rows(mode):
    envs = native(3, mode, lockstep=True)
    envs.reset(seed=0)
    envs.step(np.array([EOU_ID, 5, 5]))
    with pytest.raises(ValueError, match=r"in lockstep, all rows are reset together: options\['reset_mask'\]"):
        envs.reset(options={"reset_mask": np.array([True, False, False])})
    observations, infos = envs.reset(options={"reset_mask": np.ones(3, np.bool_)})
    assert not observations["attention_mask"][:, PROMPT:].any()
    assert infos["_prompt"].all()
    _, _, terminated, truncated, _ = envs.step(np.array([5, EOU_ID, 5]))
    assert not (terminated | truncated).any()


def test_lockstep_of_one_row_is_no_lockstep():
    actions = random_actions(1, 40)
    envs = [native(1, lockstep=lockstep) for lockstep in (False, True)]
    assert_same(*[[env.reset(seed=0), *drive(env, actions)] for env in envs])


# Returned arrays, seeds, and copies of the environment


@every_mode
@free_or_lockstep
def test_what_was_returned_is_never_written_again(mode, lockstep):
    envs = native(3, mode, lockstep=lockstep)
    actions = random_actions(3, 80)
    returned = [envs.reset(seed=0), *drive(envs, actions[:40])]
    copies = copy.deepcopy(returned)
    drive(envs, actions[40:])
    envs.reset(seed=0)
    assert_same(returned, copies)


@every_mode
@free_or_lockstep
def test_no_two_returned_arrays_share_memory(mode, lockstep):
    def arrays(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, np.ndarray) and value.dtype != object:
            yield value
        elif isinstance(value, tuple | list | np.ndarray):
            for inner in value:
                yield from arrays(inner)

    envs = native(3, mode, lockstep=lockstep)
    for returned in [envs.reset(seed=0), *drive(envs, random_actions(3, 12))]:
        assert not any(np.shares_memory(one, other) for one, other in combinations(arrays(returned), 2))


@every_mode
@free_or_lockstep
def test_writing_into_what_was_returned_does_not_reach_the_env(mode, lockstep):
    def deface(value):
        if isinstance(value, np.ndarray) and value.dtype != object:
            value[:] = 1
        elif isinstance(value, dict):
            for inner in value.values():
                deface(inner)
        elif isinstance(value, tuple | list | np.ndarray):
            for inner in value:
                deface(inner)

    envs, untouched = native(3, mode, lockstep=lockstep), native(3, mode, lockstep=lockstep)
    returned, expected = envs.reset(seed=0), untouched.reset(seed=0)
    for actions in random_actions(3, 60):
        assert_same(returned, expected)
        deface(returned)
        given = actions.copy()
        returned, expected = envs.step(given), untouched.step(actions)
        given[:] = 9
        if mode == AutoresetMode.DISABLED and (returned[2] | returned[3]).any():
            mask = returned[2] | returned[3]
            deface(returned[0])
            returned = envs.reset(options={"reset_mask": mask})
            expected = untouched.reset(options={"reset_mask": mask.copy()})
            mask[:] = True


@every_mode
@free_or_lockstep
def test_same_seed_same_episodes(mode, lockstep):
    actions = random_actions(3, 40)
    envs, others = native(3, mode, lockstep=lockstep), native(3, mode, lockstep=lockstep)
    first = [envs.reset(seed=9), *drive(envs, actions)]
    assert_same([others.reset(seed=9), *drive(others, actions)], first)
    assert_same([envs.reset(seed=9), *drive(envs, actions)], first)


def test_rows_are_seeded_one_after_the_other():
    sample_ids = native(4).reset(seed=9)[1]["sample_id"]
    assert sample_ids.tolist() == native(4).reset(seed=[9, 10, 11, 12])[1]["sample_id"].tolist()
    assert len(set(sample_ids)) > 1


def test_global_random_numbers_are_neither_used_nor_moved():
    envs, actions = native(3), random_actions(3, 40)
    states = random.getstate(), np.random.get_state()
    first = [envs.reset(seed=9), *drive(envs, actions)]
    assert random.getstate() == states[0]
    assert_same(np.random.get_state(), states[1])
    random.seed(1)
    np.random.seed(1)
    assert_same([envs.reset(seed=9), *drive(envs, actions)], first)


@every_mode
@free_or_lockstep
@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda envs: pickle.loads(pickle.dumps(envs))], ids=["copy", "pickle"]
)
def test_clone_goes_on_as_the_original(mode, lockstep, clone):
    envs, actions = native(4, mode, lockstep=lockstep), random_actions(4, 60)
    envs.reset(seed=2)
    drive(envs, actions[:6])
    twin = clone(envs)
    assert_same(drive(twin, actions), drive(envs, actions))


# Gymnasium's AsyncVectorEnv and wrappers


def test_async_equals_native():
    envs, asynchronous = native(2), vectorized("async", 2)
    try:
        assert_same(asynchronous.reset(seed=6), envs.reset(seed=6))
        assert_same(drive(asynchronous, random_actions(2, 12)), drive(envs, random_actions(2, 12)))
    finally:
        asynchronous.close()


@every_mode
def test_record_episode_statistics_counts_tokens(mode):
    envs = RecordEpisodeStatistics(native(2, mode))
    envs.reset(seed=0)
    lengths = []
    for actions in ([5, 5], [5, EOU_ID], [EOU_ID, 5], [5, EOU_ID], [EOU_ID, EOU_ID]):
        _, _, terminated, _, infos = envs.step(np.array(actions))
        if terminated.any():
            lengths.append(infos["episode"]["l"].tolist())
            assert infos["_episode"].tolist() == terminated.tolist()
            assert infos["episode"]["r"].tolist() == [0.0, 0.0]
        if mode == AutoresetMode.DISABLED and terminated.any():
            envs.reset(options={"reset_mask": terminated})
    # In NEXT_STEP mode, the step after the end of an episode ignores its action.
    later = [[0, 1], [1, 0]] if mode == AutoresetMode.NEXT_STEP else [[0, 2], [2, 1]]
    assert lengths == [[0, 2], [3, 0], *later]


def test_record_episode_statistics_forgets_only_rows_that_were_reset():
    envs = RecordEpisodeStatistics(native(2))
    envs.reset(seed=0)
    envs.step(np.array([5, 5]))
    envs.reset(options={"reset_mask": np.array([True, False])})
    infos = envs.step(np.array([EOU_ID, EOU_ID]))[4]
    assert infos["episode"]["l"].tolist() == [1, 2]


def test_flatten_observation_holds_both_parts():
    envs, plain = FlattenObservation(native(2)), native(2)
    flat, _ = envs.reset(seed=0)
    observations, _ = plain.reset(seed=0)
    assert flat in envs.observation_space
    assert np.array_equal(flat, np.concatenate([observations["attention_mask"], observations["input_ids"]], 1))


# Rendering


@free_or_lockstep
def test_ansi_shows_every_row(lockstep):
    envs = native(3, render_mode="ansi", lockstep=lockstep)
    singles = [gym.make("DailyDialog-v0", render_mode="ansi", **SMALL) for _ in range(3)]
    envs.reset(seed=0)
    for i, env in enumerate(singles):
        env.reset(seed=i)
    for actions in ([300, 400, 500], [301, EOU_ID, 501]):
        envs.step(np.array(actions))
        for env, action in zip(singles, actions, strict=True):
            env.step(action)
        assert envs.render() == tuple(env.render() for env in singles)


@every_mode
def test_human_prints_each_dialogue_when_it_ends(mode, capsys):
    envs = native(3, mode, render_mode="human")
    envs.reset(seed=0)
    envs.step(np.array([300, 400, 500]))
    assert capsys.readouterr().out == ""
    transcripts = [envs.unwrapped.mdp.transcript(row) for row in (0, 2)]
    envs.step(np.array([EOU_ID, 401, EOU_ID]))
    assert capsys.readouterr().out == "".join(f"{transcript} {EOU}\n\n" for transcript in transcripts)
    assert envs.render() is None


# Bad input


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([5, -1], "action -1 of row 1 is outside the vocabulary of tokenizer 'builtin': expected 0 to 4095"),
        ([4096, 5], "action 4096 of row 0 is outside the vocabulary"),
        ([5.0, 5.0], r"expected 2 integer token\(s\), one per row, got an array of shape \(2,\) and type float64"),
        ([5], r"expected 2 integer token\(s\), one per row, got an array of shape \(1,\)"),
        ([5, 5, 5], r"shape \(3,\)"),
        ([[5], [5]], r"shape \(2, 1\)"),
        (5, r"shape \(\)"),
    ],
)
@every_mode
def test_bad_actions_are_named_and_change_nothing(mode, actions, message):
    envs, untouched = native(2, mode), native(2, mode)
    envs.reset(seed=0)
    untouched.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        envs.step(actions)
    further = random_actions(2, 20)
    assert_same(drive(envs, further), drive(untouched, further))


@every_mode
@free_or_lockstep
def test_step_before_reset_is_an_error(mode, lockstep):
    with pytest.raises(ResetNeeded, match=r"the environment has not been reset: call reset\(\) before step\(\)"):
        native(2, mode, lockstep=lockstep).step(np.array([5, 5]))


def test_step_after_the_end_names_the_rows():
    envs = native(3, AutoresetMode.DISABLED)
    envs.reset(seed=0)
    envs.step(np.array([EOU_ID, 5, EOU_ID]))
    with pytest.raises(ResetNeeded, match=r"rows \[0, 2\] have ended: reset these rows before step\(\), with options="):
        envs.step(np.array([5, 5, 5]))
    envs.reset(options={"reset_mask": np.array([True, False, False])})
    with pytest.raises(ResetNeeded, match=r"rows \[2\] have ended"):
        envs.step(np.array([5, 5, 5]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs must be an integer of at least 1, got 0"),
        ({"num_envs": -1}, "num_envs must be an integer of at least 1, got -1"),
        ({"mode": "Sometimes"}, "'Sometimes' is not a valid AutoresetMode"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        native(**({"num_envs": 2} | arguments))


@pytest.mark.parametrize(
    ("seed", "options", "message"),
    [
        (5, {"reset_mask": np.ones(2, np.bool_)}, r"options\['reset_mask'\] must be a bool array of shape \(3,\), got"),
        (5, {"reset_mask": np.ones((3, 1), np.bool_)}, r"must be a bool array of shape \(3,\)"),
        (5, {"reset_mask": np.ones(3, np.int64)}, r"must be a bool array of shape \(3,\)"),
        (5, {"reset_mask": [True, True, True]}, r"must be a bool array of shape \(3,\)"),
        (5, {"reset_mask": np.zeros(3, np.bool_)}, r"options\['reset_mask'\] selects no row"),
        (5, {"sample_id": -1}, r"options\['sample_id'\] must be between 0 and \d+, got -1"),
        (5, {"sample_id": 10**9}, r"must be between 0 and \d+, got 1000000000"),
        (
            5,
            {"sample_id": [0, 1]},
            r"options\['sample_id'\] must be an integer or an integer array of shape \(3,\), got \[0, 1\]",
        ),
        (5, {"sample_id": 1.0}, r"must be an integer or an integer array of shape \(3,\), got 1.0"),
        ([1, 2], None, "expected one seed, or a list of 3, got 2"),
    ],
)
def test_bad_seeds_and_options_are_named_and_change_nothing(seed, options, message):
    envs, untouched = native(3), native(3)
    envs.reset(seed=0)
    untouched.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        envs.reset(seed=seed, options=options)
    further = random_actions(3, 20)
    assert_same(drive(envs, further), drive(untouched, further))


@every_mode
def test_a_refused_first_reset_begins_nothing(mode):
    envs = native(3, mode)
    with pytest.raises(ValueError, match="sample_id"):
        envs.reset(seed=0, options={"sample_id": -1})
    with pytest.raises(ResetNeeded, match="the environment has not been reset"):
        envs.step(np.array([5, 5, 5]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda envs: envs.reset(options={"reset_mask": np.array([True, False])}),
            r"the first reset must include all rows: call reset\(\) without",
        ),
        (lambda envs: envs.render(), "call reset"),
    ],
    ids=["partial reset", "render"],
)
def test_the_first_call_resets_all_rows(call, message):
    with pytest.raises(ResetNeeded, match=message):
        call(native(2, render_mode="ansi"))
