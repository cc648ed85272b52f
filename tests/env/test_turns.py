"""Several turns in the text environment: a partner answers, and each reply has a reward."""

import json
import pickle

import gymnasium as gym
import numpy as np
import pytest
from equality import assert_same
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import dailydialog_gym  # noqa: F401, registers the environments
from dailydialog_gym import wrappers
from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.env import EOU, load_samples, split_prompt
from dailydialog_gym.env.samples import left_pad
from dailydialog_gym.rewards.length import token_count, words_beyond_people
from dailydialog_gym.rewards.meteor import meteor
from dailydialog_gym.wrappers import vector

DIALOGUES = [
    {"dialog": [f"{name} {i} ?" for i in range(length)], "act": [i % 4 + 1 for i in range(length)]}
    for name, length in (("tea", 7), ("rain", 4), ("bus", 2))
]
SMALL = {"context_size": 3, "max_prompt_length": 24, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("turns") / "dialogues.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in DIALOGUES), encoding="utf-8")
    return str(path)


@pytest.fixture
def make(dataset):
    return lambda **kwargs: gym.make("DailyDialogText-v0", dataset=dataset, test_share=0, **SMALL, **kwargs)


def echo(utterances):
    return f"You said {utterances[-1]}"


def texts(*utterances) -> str:
    return " ".join(f"{utterance} {EOU}" for utterance in utterances)


def test_samples_know_which_one_follows(dataset):
    assert load_samples(dataset, test_share=0).following.tolist() == [1, 2, 3, 4, 5, -1, 7, 8, -1, -1]


def test_the_dialogue_itself_answers_and_every_reply_is_paid(make):
    env = wrappers.MeteorReward(make(turns=4))
    conversation, _ = env.reset(options={"sample_id": 0})
    assert conversation == texts("tea 0 ?")
    steps = [env.step(reply) for reply in ("tea 1 ?", "no .", "tea 5 ?")]
    assert [step[0] for step in steps] == [
        texts("tea 0 ?", "tea 1 ?", "tea 2 ?"),
        texts("tea 2 ?", "no .", "tea 4 ?"),
        texts("tea 2 ?", "no .", "tea 4 ?", "tea 5 ?"),  # the last observation is prompt and reply
    ]
    references = ["tea 1 ?", "tea 3 ?", "tea 5 ?"]
    assert [step[4]["reference"] for step in steps] == references
    assert [step[4]["act"] for step in steps] == [step[4]["intent"] for step in steps] == [2, 4, 2]
    assert [step[1] for step in steps] == [
        meteor(*pair) for pair in zip(("tea 1 ?", "no .", "tea 5 ?"), references, strict=True)
    ]
    # The dialogue has an utterance after the third reply, but no reply to it.
    assert [step[2] or step[3] for step in steps] == [False, False, True]


def test_the_number_of_turns_ends_an_episode_and_a_cut_reply_only_if_it_is_the_last(make):
    env = make(turns=2)
    env.reset(options={"sample_id": 0})
    assert env.step("no " * 20)[2:4] == (False, False)
    assert env.step("no " * 20)[2:4] == (False, True)
    env.reset(options={"sample_id": 9})
    assert env.step("no .")[2:4] == (True, False)


def test_a_partner_hears_all_utterances_and_there_is_no_reference_any_more(make):
    heard = []
    env = make(turns=3, partner=lambda utterances: heard.append(utterances) or echo(utterances))
    env.reset(options={"sample_id": 7})  # the dialogue has two utterances before and two after
    first, second, third = [env.step(reply) for reply in ("a", "b \u2603", "c")]
    start = ["rain 0 ?", "rain 1 ?"]
    assert heard == [[*start, "a"], [*start, "a", "You said a", "b \u2603"]]
    assert [step[4]["reference"] for step in (first, second, third)] == ["rain 2 ?", None, None]
    assert [step[4]["act"] for step in (first, second, third)] == [3, 0, 0]
    assert second[4]["prompt"] == first[0] == texts("rain 1 ?", "a", "You said a")
    assert third[4]["prompt"] == texts("You said a", "b \u2603", "You said b \u2603")
    assert second[0] == third[4]["prompt"].replace("\u2603", "\ufffd")
    assert second[0] in env.observation_space
    ids, mask = left_pad(env.unwrapped.samples.tokenizer, [third[4]["prompt"]], 24)
    np.testing.assert_array_equal(third[4]["input_ids"][:24], ids[0])
    np.testing.assert_array_equal(third[4]["attention_mask"][:24], mask[0])
    assert third[2]


def test_the_act_is_that_of_the_dialogue_at_this_place(make):
    env = make(turns=3, partner=echo)
    env.reset(options={"sample_id": 0})
    assert [env.step("a")[4]["act"] for _ in range(3)] == [2, 4, 2]


def test_meteor_refuses_where_there_is_no_reference_and_other_scorers_do_not(make):
    env = make(turns=2, partner=echo)
    for scorer in (token_count, words_beyond_people, lambda episodes: episodes.intents):
        env = wrappers.ScoreReward(env, scorer, name=str(scorer))
    env.reset(options={"sample_id": 0})
    assert np.isfinite([env.step("a")[1] for _ in range(2)]).all()
    env = wrappers.MeteorReward(make(turns=2, partner=echo))
    env.reset(options={"sample_id": 0})
    env.step("a")
    with pytest.raises(ValueError, match="METEOR compares a reply with a reference"):
        env.step("a")


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
@pytest.mark.parametrize("partner", [None, echo])
def test_the_vector_environment_equals_single_ones(make, dataset, mode, partner):
    def single():
        return wrappers.ScoreReward(make(turns=3, partner=partner), token_count, 0.5, "length")

    kwargs = {"dataset": dataset, "test_share": 0, "turns": 3, "partner": partner, **SMALL}
    native = gym.make_vec("DailyDialogText-v0", num_envs=4, autoreset_mode=mode, **kwargs)
    both = vector.ScoreReward(native, token_count, 0.5, "length"), SyncVectorEnv([single] * 4, autoreset_mode=mode)
    assert_same(*(envs.reset(seed=5) for envs in both))
    rng, ends = np.random.default_rng(0), set()
    for _ in range(12):
        replies = tuple(rng.choice(["no .", "", "no " * 9], 4).tolist())
        one, other = (envs.step(replies) for envs in both)
        assert_same(one, other)
        ended = one[2] | one[3]
        ends.add(ended.sum())
        if mode == AutoresetMode.DISABLED and ended.any():
            assert_same(*(envs.reset(options={"reset_mask": ended}) for envs in both))
    assert partner or ends & {1, 2, 3}  # rows also end in different steps


def test_the_transcript_has_all_turns(make, capsys):
    env = make(turns=2, partner=echo, render_mode="ansi")
    env.reset(options={"sample_id": 0})
    env.step("yes .")
    env.step("no " * 9)
    expected = f"  tea 0 ?\n> yes . {EOU}\n  You said yes .\n> {'no ' * 8}[truncated after 8 tokens]"
    assert env.render() == expected
    env = make(turns=2, partner=echo, render_mode="human")
    env.reset(options={"sample_id": 0})
    env.step("yes .")
    env.step("no " * 9)
    assert capsys.readouterr().out.strip("\n") == expected


def test_a_copy_goes_on_as_the_original(make):
    env = make(turns=3, partner=echo)
    env.reset(options={"sample_id": 0})
    env.step("a")
    twin = pickle.loads(pickle.dumps(env))
    assert_same(twin.step("b"), env.step("b"))


def test_an_agent_is_a_partner(make, tiny_model):
    agent = DialogueAgent.load(tiny_model, max_new_tokens=4)
    env = make(turns=2, partner=agent)
    env.reset(options={"sample_id": 0})
    conversation = env.step("yes .")[0]
    assert split_prompt(conversation) == ["tea 0 ?", "yes .", agent.reply([texts("tea 0 ?", "yes .")])[0]]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"turns": 0}, "turns must be an integer of at least 1, got 0"),
        ({"turns": 2.5}, "turns must be an integer of at least 1, got 2.5"),
        ({"turns": "3"}, "turns must be an integer of at least 1, got '3'"),
        ({"partner": echo}, "a partner answers only if there are several turns"),
        ({"turns": 2, "partner": "builtin"}, "a partner is a function .* or a DialogueAgent, got 'builtin'"),
    ],
)
def test_wrong_arguments_are_named(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_what_does_not_go_together_is_refused(make):
    with pytest.raises(ValueError, match="several turns need autoreset_mode NextStep or Disabled"):
        gym.make_vec("DailyDialogText-v0", turns=2, autoreset_mode="SameStep")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "the partner must return a text, got None"),
        ("\ud83d", r"got half of a character .* in '.*\\ud83d <EOU>'"),
    ],
)
def test_a_partner_who_says_no_text_ends_the_episode(make, answer, message):
    env = make(turns=2, partner=lambda utterances: answer)
    env.reset(options={"sample_id": 0})
    with pytest.raises(ValueError, match=message):
        env.step("a")
    with pytest.raises(ResetNeeded):
        env.step("a")


def test_rows_whose_partner_raised_an_error_need_a_reset(make):
    answers = iter([ConnectionError("timeout"), "b", "c", "d", "e", "f"])

    def partner(utterances):
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    dataset = make(turns=2, partner=partner).unwrapped.samples.source[0]
    envs = gym.make_vec("DailyDialogText-v0", 2, dataset=dataset, test_share=0, turns=2, partner=partner, **SMALL)
    envs.reset(seed=1)
    with pytest.raises(ConnectionError):
        envs.step(["a", "a"])
    with pytest.raises(ResetNeeded, match="the partner raised an error"):
        envs.step(["a", "a"])
    envs.reset(seed=1)
    envs.step(["a", "a"])
    assert envs.step(["a", "a"])[2].all()


def test_an_answer_of_several_lines_is_one_utterance(make):
    env = make(turns=2, partner=lambda utterances: " Well ,\n\n  no . ")
    env.reset(options={"sample_id": 0})
    assert env.step("a")[0] == texts("tea 0 ?", "a", "Well , no .")
