import copy
import json
import pickle
import random
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.wrappers import FlattenObservation, RecordEpisodeStatistics, TimeLimit

import dailydialog_gym
from dailydialog_gym.env.dialogues import load_dialogues
from dailydialog_gym.env.tokenizer import EOU

SMALL = {"max_prompt_length": 16, "max_new_tokens": 5}
DIALOG = ["Is it far ?", "No , two stops .", "Thanks !"]


def make(**kwargs) -> gym.Env:
    return gym.make("DailyDialog-v0", **(SMALL | kwargs))


@pytest.fixture
def own_dialogue(tmp_path) -> str:
    path = tmp_path / "dialogues.jsonl"
    path.write_text(json.dumps({"dialog": DIALOG, "act": [2, 1, 4]}), encoding="utf-8")
    return str(path)


def tokens(env: gym.Env, text: str) -> list[int]:
    return env.unwrapped.samples.tokenizer.encode([text])[0]


def play(env: gym.Env, actions: list[int], seed: int | None = None, options: dict | None = None) -> list:
    """Everything that the environment returns for ``actions``. It is reset whenever an episode ends."""
    returned = [env.reset(seed=seed, options=options)]
    return returned + go_on(env, actions)


def go_on(env: gym.Env, actions: list[int]) -> list:
    returned = []
    for action in actions:
        returned.append(env.step(action))
        if returned[-1][2] or returned[-1][3]:
            returned.append(env.reset())
    return returned


def some_actions(env: gym.Env, count: int = 60) -> list[int]:
    rng = np.random.default_rng(0)
    actions = rng.integers(env.action_space.n, size=count)
    actions[rng.random(count) < 0.2] = tokens(env, EOU)[0]
    return actions.tolist()


@pytest.mark.parametrize("render_mode", [None, "ansi", "human"])
def test_check_env_has_no_complaint(render_mode, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("DailyDialog-v0", render_mode=render_mode).unwrapped)


def test_spaces_are_as_documented():
    env = gym.make("DailyDialog-v0")
    vocab_size = env.unwrapped.samples.tokenizer.vocab_size
    box = gym.spaces.Box(0, vocab_size - 1, (148,), np.int64)
    assert env.action_space == gym.spaces.Discrete(vocab_size)
    assert env.observation_space == gym.spaces.Dict(
        {"input_ids": box, "attention_mask": gym.spaces.Box(0, 1, (148,), np.int64)}
    )


def test_every_observation_lies_in_the_space():
    env = make()
    for observation, *_ in play(env, some_actions(env), seed=0):
        assert observation in env.observation_space


def test_reference_reply_and_eou_terminate(own_dialogue):
    env = make(dataset=own_dialogue, max_new_tokens=9)
    observation, info = env.reset(options={"sample_id": 1})
    assert info == {"prompt": f"{DIALOG[0]} {EOU} {DIALOG[1]} {EOU}", "sample_id": 1, "act": 4}
    prompt = tokens(env, info["prompt"])
    assert observation["input_ids"][16 - len(prompt) : 16].tolist() == prompt
    reply = tokens(env, f"{DIALOG[2]} {EOU}")
    for token in reply[:-1]:
        _, reward, terminated, truncated, step_info = env.step(token)
        assert (reward, terminated, truncated, step_info) == (0.0, False, False, {})
    observation, reward, terminated, truncated, final = env.step(reply[-1])
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert type(reward) is float
    assert type(terminated) is type(truncated) is bool
    assert final == info | {"response": DIALOG[2], "reference": DIALOG[2], "intent": 4}
    assert observation["input_ids"][16 : 16 + len(reply)].tolist() == reply


def test_reply_without_eou_is_truncated_at_its_last_token(own_dialogue):
    env = make(dataset=own_dialogue, max_new_tokens=3)
    env.reset()
    ends = [env.step(5)[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_reset_gives_up_a_reply_in_progress():
    env = make()
    env.reset(seed=0)
    env.step(5)
    observation, _ = env.reset(options={"sample_id": 3})
    fresh, _ = make().reset(options={"sample_id": 3})
    assert data_equivalence(observation, fresh, exact=True)


def test_same_seed_same_episodes():
    actions = some_actions(make())
    assert data_equivalence(play(make(), actions, seed=7), play(make(), actions, seed=7), exact=True)
    env = make()
    assert data_equivalence(play(env, actions, seed=7), play(env, actions, seed=7), exact=True)


def test_other_seed_other_samples():
    env = make()
    assert len({env.reset(seed=seed)[1]["sample_id"] for seed in range(20)}) > 10


def test_every_sample_is_drawn_equally_often(own_dialogue):
    env = make(dataset=own_dialogue)
    env.reset(seed=0)
    drawn = [env.reset()[1]["sample_id"] for _ in range(2000)]
    assert set(drawn) == {0, 1}
    assert abs(np.mean(drawn) - 0.5) < 0.05


def test_sample_id_leaves_the_random_numbers_alone():
    first, second = make(), make()
    first.reset(seed=3)
    second.reset(seed=3)
    second.reset(options={"sample_id": 9})
    assert first.reset()[1] == second.reset()[1]


def test_global_random_numbers_are_neither_used_nor_moved():
    env = make()
    actions = some_actions(env)
    states = random.getstate(), np.random.get_state()
    first = play(env, actions, seed=1)
    assert random.getstate() == states[0]
    assert data_equivalence(np.random.get_state(), states[1], exact=True)
    random.seed(1)
    np.random.seed(1)
    assert data_equivalence(first, play(env, actions, seed=1), exact=True)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_clone_goes_on_as_the_original(clone):
    env = make()
    actions = some_actions(env)
    play(env, actions[:3], seed=2)
    twin = clone(env)
    assert data_equivalence(go_on(env, actions), go_on(twin, actions), exact=True)


def test_clone_does_not_touch_the_original():
    env, untouched = make(), make()
    play(env, [5, 6], seed=2)
    play(untouched, [5, 6], seed=2)
    go_on(copy.deepcopy(env), some_actions(env))
    assert data_equivalence(go_on(env, [7, 8]), go_on(untouched, [7, 8]), exact=True)


def test_pickle_leaves_the_data_behind():
    env = gym.make("DailyDialog-v0").unwrapped
    env.reset(seed=0)
    assert len(pickle.dumps(env)) < 20_000


def test_what_was_returned_is_never_written_again():
    env = make()
    returned = play(env, some_actions(env), seed=4)
    copies = copy.deepcopy(returned)
    returned_later = go_on(env, some_actions(env))
    assert data_equivalence(returned, copies, exact=True)
    assert returned_later


def test_writing_into_what_was_returned_does_not_reach_the_env():
    env, untouched = make(), make()
    actions = some_actions(env)
    expected = play(untouched, actions, seed=4)
    observation, info = env.reset(seed=4)
    returned = [copy.deepcopy((observation, info))]
    for action in actions:
        observation["input_ids"][:] = observation["attention_mask"][:] = 9
        info.clear()
        observation, reward, terminated, truncated, info = env.step(action)
        returned.append(copy.deepcopy((observation, reward, terminated, truncated, info)))
        if terminated or truncated:
            observation, info = env.reset()
            returned.append(copy.deepcopy((observation, info)))
    assert data_equivalence(returned, expected, exact=True)


def test_record_episode_statistics_counts_tokens():
    env = RecordEpisodeStatistics(make())
    env.reset(seed=0)
    env.step(5)
    info = env.step(tokens(env, EOU)[0])[4]
    assert (info["episode"]["l"], info["episode"]["r"]) == (2, 0.0)
    assert info["response"] is not None


def test_time_limit_truncates_before_the_reply_ends():
    env = TimeLimit(make(), max_episode_steps=3)
    env.reset(seed=0)
    assert [env.step(5)[3] for _ in range(3)] == [False, False, True]
    assert gym.make("DailyDialog-v0", max_episode_steps=3).spec.max_episode_steps == 3


def test_flatten_observation_holds_both_parts():
    env, plain = FlattenObservation(make()), make()
    flat, _ = env.reset(seed=0)
    observation, _ = plain.reset(seed=0)
    assert flat in env.observation_space
    assert np.array_equal(flat, np.concatenate([observation["attention_mask"], observation["input_ids"]]))


def test_ansi_shows_the_dialogue_so_far(own_dialogue):
    env = make(dataset=own_dialogue, render_mode="ansi")
    env.reset(options={"sample_id": 1})
    assert env.render() == "  Is it far ?\n  No , two stops .\n> "
    reply = tokens(env, f"Thanks ! {EOU}")
    for token in reply[:-1]:
        env.step(token)
    assert env.render() == "  Is it far ?\n  No , two stops .\n> Thanks !"
    env.step(reply[-1])
    assert env.render() == f"  Is it far ?\n  No , two stops .\n> Thanks ! {EOU}"


def test_ansi_says_that_a_reply_was_cut(own_dialogue):
    env = make(dataset=own_dialogue, render_mode="ansi", max_new_tokens=1)
    env.reset(options={"sample_id": 0})
    env.step(tokens(env, "Thanks")[0])
    assert env.render().endswith("[truncated after 1 tokens]")


@pytest.mark.parametrize("reply", ["Thanks !", "Café 🙂 naïve", "OUR HELLO", "a <EO b", "x <<EOU"])
def test_human_prints_the_reply_as_it_grows(own_dialogue, capsys, reply):
    env = make(dataset=own_dialogue, render_mode="human", max_new_tokens=40)
    env.reset(options={"sample_id": 1})
    assert capsys.readouterr().out == "\n  Is it far ?\n  No , two stops .\n> "
    pieces = []
    for token in tokens(env, f"{reply} {EOU}"):
        env.step(token)
        pieces.append(capsys.readouterr().out)
    assert "".join(pieces) == f"{reply} {EOU}\n"
    assert len([piece for piece in pieces if piece]) > 1
    assert env.render() is None


def test_human_prints_an_eou_of_several_tokens_once(own_dialogue, capsys):
    env = make(dataset=own_dialogue, render_mode="human", max_new_tokens=40)
    env.reset(options={"sample_id": 1})
    for token in [*tokens(env, "Oh"), *map(env.unwrapped.samples.tokenizer.backend.token_to_id, EOU)]:
        env.step(token)
    assert capsys.readouterr().out.endswith(f"\n> Oh {EOU}\n")


def test_human_prints_the_dialogue_once(capsys):
    env = make(render_mode="human", max_new_tokens=20)
    for seed in range(30):
        _, info = env.reset(seed=seed)
        for action in np.random.default_rng(seed).integers(env.action_space.n, size=20):
            _, _, terminated, truncated, final = env.step(int(action))
            if terminated or truncated:
                break
        out = capsys.readouterr().out
        assert out.count(f"  {info['prompt'].split(EOU)[0].strip()}\n") == 1
        assert f"> {final['response']} " in out


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_prompt_length": 0}, "max_prompt_length must be an integer of at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1, got 0"),
        ({"max_new_tokens": "20"}, "max_new_tokens must be an integer of at least 1, got '20'"),
        ({"context_size": 0}, "context_size must be an integer of at least 1, got 0"),
        ({"context_size": 2.5}, "context_size must be an integer of at least 1, got 2.5"),
        ({"test_share": "0.1"}, "test_share must be a number of at least 0 and below 0.5, got '0.1'"),
        ({"dataset": "nowhere"}, "no such file or folder: 'nowhere': expected 'builtin'; a folder"),
        ({"split": "dev"}, "unknown split 'dev': expected one of train, validation, test"),
        ({"render_mode": "rgb_array"}, "unknown render_mode 'rgb_array': expected None, 'ansi' or 'human'"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*render_mode:UserWarning")
@pytest.mark.parametrize("construct", [make, lambda **kwargs: gym.make_vec("DailyDialog-v0", num_envs=2, **kwargs)])
def test_bad_arguments_are_named(construct, kwargs, message):
    with pytest.raises(TypeError if "render_mode" in kwargs else ValueError, match=message):
        construct(**kwargs)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (-1, "action -1 of row 0 is outside the vocabulary of tokenizer 'builtin': expected 0 to 4095"),
        (4096, "action 4096 of row 0 is outside the vocabulary"),
        (1.0, r"expected 1 integer token\(s\), one per row, got an array of shape \(1,\) and type float64"),
        (np.array([3, 4]), r"expected 1 integer token\(s\), one per row, got an array of shape \(1, 2\)"),
        ("7", "type <U1"),
        (None, "type object"),
    ],
)
def test_bad_action_is_named_and_changes_nothing(action, message):
    env, untouched = make().unwrapped, make().unwrapped
    env.reset(seed=0)
    untouched.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert data_equivalence(env.step(5), untouched.step(5), exact=True)


@pytest.mark.parametrize("action", [5, np.int64(5), np.int32(5), np.uint8(5), np.array(5)])
def test_any_integer_is_an_action(action):
    env = make()
    env.reset(seed=0)
    assert env.step(action)[0]["input_ids"][16] == 5


def test_render_before_reset_is_an_error():
    for kind in dailydialog_gym.DailyDialogEnv, dailydialog_gym.DailyDialogVectorEnv:
        env = kind(render_mode="ansi")
        with pytest.raises(ResetNeeded, match=r"call reset\(\) before render"):
            env.render()


def test_step_before_reset_is_an_error():
    with pytest.raises(ResetNeeded, match=r"call reset\(\) before step\(\)"):
        make().unwrapped.step(5)


def test_step_after_the_end_is_an_error():
    env = make()
    env.reset(seed=0)
    env.step(tokens(env, EOU)[0])
    with pytest.raises(ResetNeeded, match=r"the episode has ended .*call reset\(\) before step\(\)"):
        env.step(5)
    env.reset()
    env.step(5)


@pytest.mark.parametrize(
    ("sample_id", "message"),
    [
        (-1, r"options\['sample_id'\] must be between 0 and 1, got -1"),
        (2, r"must be between 0 and 1, got 2"),
        (0.0, r"must be an integer or an integer array of shape \(1,\), got 0.0"),
        (True, r"must be an integer or an integer array of shape \(1,\), got True"),
        ([0, 1], r"must be an integer or an integer array of shape \(1,\), got \[0, 1\]"),
        (None, r"must be an integer or an integer array of shape \(1,\), got None"),
    ],
)
def test_bad_sample_id_is_named(own_dialogue, sample_id, message):
    with pytest.raises(ValueError, match=message):
        make(dataset=own_dialogue).reset(options={"sample_id": sample_id})


def test_a_refused_reset_changes_nothing():
    env, untouched = make(), make()
    play(env, [5], seed=0)
    play(untouched, [5], seed=0)
    with pytest.raises(ValueError, match="sample_id"):
        env.reset(seed=1, options={"sample_id": -1})
    actions = some_actions(env)
    assert data_equivalence(go_on(env, actions), go_on(untouched, actions), exact=True)


def test_arguments_reach_the_data():
    env = gym.make("DailyDialog-v0", split="test", context_size=2, max_prompt_length=30, full_context=True)
    dialogues = load_dialogues("builtin", "test")
    assert len(env.unwrapped.samples) == sum(len(dialogue.utterances) - 2 for dialogue in dialogues)
    _, info = env.reset(options={"sample_id": 0})
    assert info["prompt"] == " ".join(f"{u} {EOU}" for u in dialogues[0].utterances[:2])
    assert env.observation_space["input_ids"].shape == (50,)


def test_module_prefix_registers_the_environment():
    code = (
        "import gymnasium as gym, sys\n"
        "env = gym.make('dailydialog_gym:DailyDialog-v0')\n"
        "env.reset(seed=0)\n"
        "env.step(3)\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"
