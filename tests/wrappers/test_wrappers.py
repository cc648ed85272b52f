import math
import pickle
from collections.abc import Iterable

import gymnasium as gym
import numpy as np
import pytest
import torch
from equality import assert_same
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics, TransformReward
from gymnasium.wrappers.vector import RecordEpisodeStatistics as VectorRecordEpisodeStatistics
from gymnasium.wrappers.vector import TransformReward as VectorTransformReward
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

import dailydialog_gym
from dailydialog_gym import DailyDialogEnv, DailyDialogVectorEnv, wrappers
from dailydialog_gym.rewards.coefficients import AdaptiveCoefficient, FixedCoefficient
from dailydialog_gym.rewards.kl import KLDivergence
from dailydialog_gym.rewards.meteor import meteor
from dailydialog_gym.wrappers import vector

SMALL = {"context_size": 2, "max_prompt_length": 16, "max_new_tokens": 4}
MODES = list(AutoresetMode)
EOU = DailyDialogEnv(**SMALL).samples.tokenizer.encode(["<EOU>"])[0][0]

either_kind = pytest.mark.parametrize("kind", [wrappers, vector], ids=["single", "vector"])


def tally(episodes):
    """A score for each episode that depends on all of it."""
    texts = [len(p) + 3 * len(r) + 5 * len(t) for p, r, t in zip(*texts_of(episodes), strict=True)]
    return np.array(texts) / 7 + episodes.intents + episodes.attention_mask.sum(1) / 11


def texts_of(episodes):
    return episodes.prompts, episodes.responses, episodes.references


def waves(episodes):
    """A score for each token, and arbitrary scores after the end of the reply."""
    return np.sin(episodes.reply_ids) + np.where(episodes.reply_mask, 0, 100)


def drift(episodes):
    """log pi - log pi_ref of a reference that prefers some tokens."""
    return episodes.log_probs + episodes.reply_ids % 7 / 3


class Counting:
    """A scorer that records the number of episodes of each call."""

    def __init__(self, scorer=tally):
        self.scorer, self.sizes = scorer, []

    def __call__(self, episodes):
        self.sizes.append(len(episodes))
        return self.scorer(episodes)


PARTS = {
    "meteor": lambda kind, env: kind.MeteorReward(env, 0.5, by_token=True),
    "tally": lambda kind, env: kind.ScoreReward(env, tally, -0.3, "tally"),
    "waves": lambda kind, env: kind.ScoreReward(env, waves, 2.0, "waves"),
    "kl": lambda kind, env: kind.KLPenalty(env, drift, FixedCoefficient(0.2)),
}


def make_env(kind, num_envs=1, mode=AutoresetMode.NEXT_STEP):
    """The environment for the wrappers of this module."""
    return DailyDialogEnv(**SMALL) if kind is wrappers else DailyDialogVectorEnv(num_envs, mode, **SMALL)


def stack(kind, env, order: Iterable[str]):
    for name in order:
        env = PARTS[name](kind, env)
    return env


def make_action(tokens, log_probs=None):
    tokens = np.array(tokens)
    return {"token": tokens, "log_prob": np.full(tokens.shape, -1.0) if log_probs is None else np.array(log_probs)}


def actions_of(kind, tokens, log_probs=None):
    """The actions that write one reply, in the single environment or in a vector environment of one row."""
    log_probs = [-1.0] * len(tokens) if log_probs is None else log_probs
    pairs = zip(tokens, log_probs, strict=True)
    return [make_action(token, p) if kind is wrappers else make_action([token], [p]) for token, p in pairs]


def finish(env, actions, sample_id=3):
    """Write one reply from its start to its end. Returns what the last step returns."""
    env.reset(seed=0, options={"sample_id": sample_id})
    for action in actions:
        step = env.step(action)
    assert np.all(step[2] | step[3])
    return step


# The vector wrappers equal the single ones

ROWS = 3
TURN = st.tuples(
    st.lists(st.one_of(st.just(EOU), st.integers(2, 4000)), min_size=ROWS, max_size=ROWS),
    st.lists(st.floats(-20, 0, width=32), min_size=ROWS, max_size=ROWS),
    st.one_of(st.just([False] * ROWS), st.lists(st.booleans(), min_size=ROWS, max_size=ROWS)),
    st.one_of(st.none(), st.integers(0, 1000)),
)


@settings(deadline=None, max_examples=120)
@given(
    mode=st.sampled_from(MODES),
    order=st.permutations(list(PARTS)),
    seed=st.integers(0, 1000),
    turns=st.lists(TURN, min_size=1, max_size=14),
)
def test_single_wrappers_in_sync_vector_env_equal_vector_wrappers(mode, order, seed, turns):
    def make_one():
        return stack(wrappers, DailyDialogEnv(**SMALL), order)

    sync = SyncVectorEnv([make_one] * ROWS, autoreset_mode=mode)
    native = stack(vector, DailyDialogVectorEnv(ROWS, mode, **SMALL), order)
    assert sync.action_space == native.action_space
    assert sync.single_action_space == native.single_action_space
    assert_same(sync.reset(seed=seed), native.reset(seed=seed))
    for tokens, log_probs, mask, new_seed in turns:
        action = make_action(tokens, np.array(log_probs, np.float32))
        left, right = sync.step(action), native.step(action)
        assert_same(left, right)
        mask = np.array(mask)
        if mode == AutoresetMode.DISABLED:
            mask |= left[2] | left[3]
        if mask.any():
            results = [env.reset(seed=new_seed, options={"reset_mask": mask.copy()}) for env in (sync, native)]
            assert_same(*results)


@pytest.mark.parametrize("mode", MODES)
def test_lockstep_gives_each_row_the_reward_that_it_would_get_alone(mode):
    replies = [[9, EOU], [EOU], [5, 6, 7, 8]]
    envs = stack(vector, DailyDialogVectorEnv(3, mode, lockstep=True, **SMALL), PARTS)
    envs.reset(options={"sample_id": np.array([10, 11, 12])})
    for t in range(4):
        live = np.array([t < len(reply) for reply in replies])
        tokens = [reply[t] if on else -1 for reply, on in zip(replies, live, strict=True)]
        _, rewards, terminated, truncated, infos = envs.step(make_action(tokens, np.where(live, -t - 0.5, np.nan)))
        assert (terminated | truncated).tolist() == [t == 3] * 3
    final = infos["final_info"] if mode == AutoresetMode.SAME_STEP else infos
    for row, reply in enumerate(replies):
        env = stack(wrappers, DailyDialogEnv(**SMALL), PARTS)
        actions = [make_action(token, -t - 0.5) for t, token in enumerate(reply)]
        _, reward, *ends, info = finish(env, actions, 10 + row)
        assert (rewards[row], terminated[row], truncated[row]) == (reward, *ends)
        for key, value in info.items():
            assert np.array_equal(final[key][row], value), key


# Stacking


@either_kind
def test_wrappers_stack_in_any_order_with_equal_totals(kind):
    results = []
    for order in (list(PARTS), list(PARTS)[::-1], ["kl", "waves", "meteor", "tally"]):
        env = stack(kind, make_env(kind), order)
        _, reward, _, _, info = finish(env, actions_of(kind, [17, 300, EOU], [-2.5] * 3))
        results.append((reward, info["token_rewards"], *(info[f"reward/{name}"] for name in PARTS)))
    for other in results[1:]:
        for value, expected in zip(other, results[0], strict=True):
            np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12)


def test_reward_is_the_weighted_sum_of_the_raw_scores():
    env = stack(wrappers, DailyDialogEnv(**SMALL), PARTS)
    *_, info = step = finish(env, [make_action(token) for token in (17, 300, EOU)])
    raw = {name: info[f"reward/{name}"] for name in PARTS}
    assert raw["meteor"] == meteor(info["response"], info["reference"])
    assert raw["waves"] == pytest.approx(np.sin([17, 300, EOU]).sum())
    assert raw["kl"] == pytest.approx(-3 + sum(token % 7 / 3 for token in (17, 300, EOU)))
    total = 0.5 * raw["meteor"] - 0.3 * raw["tally"] + 2 * raw["waves"] - 0.2 * raw["kl"]
    assert step[1] == pytest.approx(total)
    assert info["token_rewards"].sum() == step[1]
    assert info["token_rewards"].shape == (4,) and info["token_rewards"][3] == 0


def test_meteor_reward_of_the_reference_reply():
    env = wrappers.MeteorReward(DailyDialogEnv(max_new_tokens=60), weight=2.0)
    tokens = env.unwrapped.samples.tokenizer.encode([f"{env.unwrapped.samples.references[3]} <EOU>"])[0]
    _, reward, _, _, info = finish(env, tokens)
    assert reward == 2 * info["reward/meteor"] > 1.8


def test_only_the_last_step_has_a_reward():
    env = stack(wrappers, DailyDialogEnv(**SMALL), PARTS)
    env.reset(seed=0)
    for _ in range(3):
        _, reward, terminated, truncated, info = env.step(make_action(5))
        assert (reward, terminated, truncated, info) == (0, False, False, {})
    assert env.step(make_action(5))[1] != 0


def test_reward_of_a_wrapper_in_between_belongs_to_the_last_token():
    def add_5(reward):
        return reward + 5  # in every step, but only the reward of the last step is in token_rewards

    single = wrappers.ScoreReward(TransformReward(DailyDialogEnv(**SMALL), add_5), waves, 1.0, "waves")
    native = vector.ScoreReward(VectorTransformReward(DailyDialogVectorEnv(1, **SMALL), add_5), waves, 1.0, "waves")
    _, reward, _, _, info = finish(single, [17, EOU])
    _, rewards, _, _, infos = finish(native, [np.array([17]), np.array([EOU])])
    np.testing.assert_allclose(info["token_rewards"], [np.sin(17), np.sin(EOU) + 5, 0, 0])
    assert info["token_rewards"].sum() == reward == rewards[0]
    assert np.array_equal(infos["token_rewards"][0], info["token_rewards"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("statistics_first", [True, False])
def test_record_episode_statistics_works_inside_and_outside(mode, statistics_first):
    single, native = DailyDialogEnv(**SMALL), DailyDialogVectorEnv(2, mode, **SMALL)
    if statistics_first:
        single = wrappers.MeteorReward(RecordEpisodeStatistics(single))
        native = vector.MeteorReward(VectorRecordEpisodeStatistics(native))
    else:
        single = RecordEpisodeStatistics(wrappers.MeteorReward(single))
        native = VectorRecordEpisodeStatistics(vector.MeteorReward(native))
    _, reward, _, _, info = finish(single, [17, EOU])
    _, rewards, _, _, infos = finish(native, [np.array([17, 17]), np.array([EOU, EOU])])
    assert rewards.tolist() == [reward, reward]
    expected = 0 if statistics_first else reward
    statistics = infos["final_info"] if mode == AutoresetMode.SAME_STEP and "episode" not in infos else infos
    assert info["episode"]["r"] == expected
    assert statistics["episode"]["r"].tolist() == [expected, expected]


def test_a_step_changes_nothing_returned_before():
    envs = stack(vector, DailyDialogVectorEnv(2, **SMALL), PARTS)
    envs.reset(seed=0)
    first = envs.step(make_action([EOU, 5]))
    before = pickle.dumps(first)
    for _ in range(6):
        envs.step(make_action([EOU, 5]))
    assert pickle.dumps(first) == before


# Scorers are called once for all episodes


@pytest.mark.parametrize("mode", MODES)
def test_scorer_is_called_once_for_all_episodes_that_end_in_the_same_step(mode):
    scorer = Counting()
    envs = vector.ScoreReward(DailyDialogVectorEnv(4, mode, **SMALL), scorer)
    envs.reset(seed=0)
    envs.step(np.array([EOU, 5, EOU, EOU]))
    assert scorer.sizes == [3]
    if mode == AutoresetMode.DISABLED:
        envs.reset(options={"reset_mask": np.array([True, False, True, True])})
    envs.step(np.array([5, 5, 5, 5]))
    assert scorer.sizes == [3]
    envs.step(np.array([5, EOU, 5, 5]))
    assert scorer.sizes == [3, 1]


@pytest.mark.parametrize("mode", MODES)
def test_lockstep_calls_the_scorer_once_per_batch(mode):
    scorer = Counting()
    envs = vector.ScoreReward(DailyDialogVectorEnv(4, mode, lockstep=True, **SMALL), scorer)
    envs.reset(seed=0)
    for tokens in ([EOU, 5, 5, EOU], [5, EOU, 5, 5], [5, 5, EOU, 5]):
        assert scorer.sizes == []
        envs.step(np.array(tokens))
    assert scorer.sizes == [4]


# KLPenalty


def make_kl(kind, num_envs=1, scorer=drift, mode=AutoresetMode.NEXT_STEP, **arguments):
    return kind.KLPenalty(make_env(kind, num_envs, mode), scorer, **arguments)


def test_action_space_holds_token_and_log_prob():
    single, native = make_kl(wrappers), make_kl(vector, num_envs=3)
    token = DailyDialogEnv(**SMALL).action_space
    assert single.action_space == native.single_action_space
    assert single.action_space["token"] == token
    assert single.action_space.contains({"token": 5, "log_prob": np.array(-0.5, np.float32)})
    assert not single.action_space.contains({"token": 5, "log_prob": np.array(0.5, np.float32)})
    assert native.action_space == gym.vector.utils.batch_space(single.action_space, 3)
    assert wrappers.MeteorReward(single).action_space == single.action_space


@either_kind
def test_sampled_actions_are_valid(kind):
    env = make_kl(kind, num_envs=3)
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(4):
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
    assert np.all(terminated | truncated)
    assert np.all(np.isfinite(info["reward/kl"]))


EXPECTED_ACTION = r"KLPenalty expects an action \{'token': ..., 'log_prob': ...\}"


@pytest.mark.parametrize(
    ("kind", "num_envs", "wrong", "message"),
    [
        *[
            (kind, 1, wrong, EXPECTED_ACTION)
            for kind in (wrappers, vector)
            for wrong in (5, np.array([5]), {"token": 5}, {"token": 5, "log_prob": -1.0, "value": 0.0}, (5, -1.0))
        ],
        *[
            case
            for log_prob in (0.5, np.nan, np.inf, -np.inf)
            for case in (
                (wrappers, 1, make_action(5, log_prob), f"row 0: .* got {log_prob}"),
                (vector, 3, make_action([5, 5, 5], [-1, log_prob, -1]), f"row 1: .* got {log_prob}"),
            )
        ],
        *[
            (vector, 2, make_action([5, 5], log_probs), r"expected log-probabilities of shape \(2,\)")
            for log_probs in (-1.0, [-1.0], [-1.0, -1.0, -1.0], [[-1.0, -1.0]])
        ],
    ],
)
def test_a_wrong_action_is_an_error_that_says_what_was_expected(kind, num_envs, wrong, message):
    env = make_kl(kind, num_envs)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(wrong)


def test_log_prob_of_a_certain_token_may_be_rounded_up():
    assert finish(make_kl(wrappers), [make_action(EOU, 1e-6)])[4]["log_probs"][0] == 1e-6


def test_log_probs_of_rows_that_autoreset_are_ignored():
    envs = make_kl(vector, num_envs=2)
    envs.reset(seed=0)
    envs.step(make_action([EOU, 5], [-1, -2]))
    envs.step(make_action([5, 5], [np.nan, -3]))
    *_, infos = envs.step(make_action([EOU, EOU], [-4, -5]))
    assert infos["log_probs"].tolist() == [[-4, 0, 0, 0], [-2, -3, -5, 0]]


def test_log_probs_of_the_previous_episode_are_not_kept():
    env = make_kl(wrappers)
    finish(env, [make_action(5, -3.0)] * 4)
    assert finish(env, [make_action(EOU, -1.0)])[4]["log_probs"].tolist() == [-1, 0, 0, 0]


def test_a_refused_action_is_not_recorded():
    env = make_kl(wrappers)
    env.reset(seed=0)
    env.step(make_action(5, -1.0))
    for bad in (make_action(5, 1.0), make_action(10**6, -9.0)):
        with pytest.raises(ValueError, match=r"log-probability|vocabulary"):
            env.step(bad)
    assert env.step(make_action(EOU, -2.0))[4]["log_probs"].tolist() == [-1, -2, 0, 0]


@either_kind
def test_an_ended_episode_refuses_actions(kind):
    env = make_kl(kind, mode=AutoresetMode.DISABLED)
    (last,) = actions_of(kind, [EOU])
    with pytest.raises(ResetNeeded):
        env.step(last)
    env.reset(seed=0)
    env.step(last)
    with pytest.raises(ResetNeeded):
        env.step(last)


def test_last_info_of_kl_penalty():
    _, reward, _, _, info = finish(
        make_kl(wrappers, coefficient=AdaptiveCoefficient(0.3)),
        [make_action(15, -1.0), make_action(21, -2.5), make_action(EOU, -0.5)],
    )
    by_token = np.array([-1.0, -2.5, -0.5]) + np.array([15, 21, EOU]) % 7 / 3
    assert info["log_probs"].tolist() == [-1, -2.5, -0.5, 0]
    np.testing.assert_allclose(info["token_rewards"], [*(-0.3 * by_token), 0])
    assert info["reward/kl"] == pytest.approx(by_token.sum())
    assert info["metric/kl_per_token"] == pytest.approx(by_token.mean())
    assert info["metric/kl_coef"] == 0.3
    assert reward == info["token_rewards"].sum()


def test_scorers_outside_kl_penalty_see_the_log_probs():
    def surprise(episodes):
        return -episodes.log_probs

    env = wrappers.ScoreReward(make_kl(wrappers), surprise, 1.0, "surprise")
    assert finish(env, [make_action(5, -1.0), make_action(EOU, -2.0)])[4]["reward/surprise"] == 3


def constant_kl(per_token):
    return lambda episodes: np.full(episodes.reply_mask.shape, per_token)


def test_coefficient_adapts_by_openrls_rule():
    """A KL of 0.055 is 10% above the target of 0.05, so the coefficient grows by 10% of 10%: 0.2, 0.202, 0.20402."""
    env = make_kl(wrappers, scorer=constant_kl(0.055))
    coefs = [finish(env, [make_action(5), make_action(EOU)])[4]["metric/kl_coef"] for _ in range(3)]
    np.testing.assert_allclose(coefs, [0.2, 0.2 * 1.01, 0.2 * 1.01**2], rtol=1e-12)


def test_penalty_uses_the_coefficient_from_before_the_update():
    env = make_kl(wrappers, scorer=constant_kl(1.0))
    results = [finish(env, [make_action(EOU)]) for _ in range(2)]
    np.testing.assert_allclose([result[1] for result in results], [-0.2, -0.2 * 1.02], rtol=1e-12)


def test_coefficient_of_a_vector_env_moves_after_num_envs_episodes():
    envs = make_kl(vector, num_envs=2, scorer=constant_kl(0.0), mode=AutoresetMode.SAME_STEP)
    envs.reset(seed=0)
    coefs = []
    for tokens in ([EOU, 5], [EOU, 5], [EOU, EOU], [EOU, EOU]):
        final = envs.step(make_action(tokens))[4]["final_info"]
        coefs.append(final["metric/kl_coef"][0])
    np.testing.assert_allclose(coefs, [0.2, 0.2, 0.2 * 0.98, 0.2 * 0.98**2], rtol=1e-12)


@either_kind
def test_k3_is_logged_where_asked_for_and_the_penalty_uses_k1(kind):
    """Ratios pi_ref / pi of 2 and 1/2: k1 is -log 2 + log 2 = 0, k3 is (2 - 1 - log 2) + (1/2 - 1 + log 2) = 1/2."""

    def halves(episodes):
        return np.array([[-math.log(2), math.log(2), 99, 99]] * len(episodes))

    rewards, logged = {}, {}
    for estimator in ("k1", "k3"):
        env = make_kl(kind, scorer=halves, estimator=estimator)
        _, rewards[estimator], *_, info = finish(env, actions_of(kind, [5, EOU]))
        logged[estimator] = info["metric/kl_per_token"]
        assert info["reward/kl"] == pytest.approx(0, abs=1e-12)
    assert rewards["k1"] == rewards["k3"]
    assert logged["k1"] == pytest.approx(0, abs=1e-12)
    assert logged["k3"] == pytest.approx(0.25, rel=1e-12)


def test_unknown_estimator_is_an_error():
    with pytest.raises(ValueError, match="'k1' or 'k3', got 'k2'"):
        make_kl(wrappers, estimator="k2")


def test_policy_that_equals_the_reference_gets_no_penalty():
    """In a whole lockstep rollout, with replies and prompts of different lengths."""
    envs = DailyDialogVectorEnv(5, AutoresetMode.DISABLED, lockstep=True, max_prompt_length=24, max_new_tokens=6)
    vocab_size = envs.single_action_space.n
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=int(vocab_size), n_positions=30, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4
    )
    policy = GPT2LMHeadModel(config).eval()
    envs = vector.KLPenalty(envs, KLDivergence(policy, vocab_size))
    observations, _ = envs.reset(seed=0)
    rng, ended = np.random.default_rng(0), np.zeros(5, np.bool_)
    t = 0
    while not ended.all():
        ids, mask = (torch.from_numpy(observations[key][:, : 24 + t]) for key in ("input_ids", "attention_mask"))
        with torch.no_grad():
            logits = policy(ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
        tokens = np.where(rng.random(5) < 0.4, EOU, rng.integers(2, vocab_size, 5))
        log_probs = logits[:, -1].log_softmax(-1).gather(1, torch.from_numpy(tokens)[:, None])[:, 0].numpy()
        observations, rewards, terminated, truncated, infos = envs.step({"token": tokens, "log_prob": log_probs})
        ended, t = terminated | truncated, t + 1
    assert len(set(observations["attention_mask"][:, 24:].sum(1))) > 2
    assert (infos["log_probs"].sum(1) < -5).all()
    np.testing.assert_allclose(infos["reward/kl"], 0, atol=1e-3)
    np.testing.assert_allclose(rewards, 0, atol=1e-3)


# Wrong uses


@pytest.mark.parametrize("name", ["ScoreReward", "MeteorReward", "IntentReward", "KLPenalty"])
@pytest.mark.parametrize(
    ("kind", "make"),
    [
        (wrappers, lambda: gym.make("CartPole-v1")),
        (wrappers, lambda: DailyDialogVectorEnv(2, **SMALL)),
        (vector, lambda: gym.make_vec("CartPole-v1", 2)),
        (vector, lambda: DailyDialogEnv(**SMALL)),
        (vector, lambda: SyncVectorEnv([lambda: DailyDialogEnv(**SMALL)])),
    ],
    ids=["single of another", "single of vector", "vector of another", "vector of single", "vector of sync"],
)
def test_wrapping_the_wrong_kind_of_env_is_a_type_error(name, kind, make):
    arguments = [] if name == "MeteorReward" else [tally]
    with pytest.raises(TypeError, match=r"wraps a DailyDialog|Expected env to be a `gymnasium"):
        getattr(kind, name)(make(), *arguments)


def zeros(episodes):
    return np.zeros(len(episodes))


@pytest.mark.parametrize(
    ("wrap", "last_action", "message"),
    [
        (
            lambda env: wrappers.ScoreReward(env, lambda _: np.array([np.nan]), name="politeness"),
            EOU,
            "scorer 'politeness'",
        ),
        (
            lambda env: wrappers.ScoreReward(wrappers.ScoreReward(env, zeros, name="calm"), zeros, name="calm"),
            EOU,
            "two scorers are named 'calm'",
        ),
        (
            lambda env: wrappers.KLPenalty(env, zeros, estimator="k3"),
            make_action(EOU),
            "k3 needs a score for each token",
        ),
        (lambda env: wrappers.MeteorReward(gym.wrappers.TimeLimit(env, 1)), 5, "set max_new_tokens"),
    ],
    ids=["score that is not finite", "two scorers of one name", "k3 of whole replies", "truncated by a wrapper"],
)
def test_an_episode_that_cannot_be_scored_is_an_error(wrap, last_action, message):
    with pytest.raises(ValueError, match=message):
        finish(wrap(DailyDialogEnv(**SMALL)), [last_action])


# Rendering


def make_rendered(render_mode):
    env = gym.make("DailyDialog-v0", render_mode=render_mode, **SMALL)
    return wrappers.ScoreReward(wrappers.MeteorReward(env, 0.5), waves, -1.0, "waves")


def test_ansi_shows_the_reward_of_an_ended_episode():
    env = make_rendered("ansi")
    env.reset(seed=0)
    env.step(5)
    assert "reward" not in env.render()
    _, reward, _, _, info = env.step(EOU)
    *_, first, second = env.render().split("\n")
    meteor_score, waves_score = info["reward/meteor"], info["reward/waves"]
    assert first == f"  meteor {meteor_score:.3f}, weight 0.500, reward so far {0.5 * meteor_score:.3f}"
    assert second == f"  waves {waves_score:.3f}, weight -1.000, reward so far {reward:.3f}"
    env.reset()
    assert "reward" not in env.render()


def test_human_prints_the_reward_once_at_the_end(capsys):
    env = make_rendered("human")
    env.reset(seed=0)
    env.step(5)
    assert "reward" not in capsys.readouterr().out
    _, reward, *_ = env.step(EOU)
    *_, first, second = capsys.readouterr().out.rstrip("\n").split("\n")
    assert first.startswith("  meteor ") and first.count("weight 0.500") == 1
    assert second.endswith(f"weight -1.000, reward so far {reward:.3f}")
    assert env.render() is None


def test_render_shows_the_coefficient_of_the_penalty():
    env = gym.make("DailyDialog-v0", render_mode="ansi", **SMALL)
    env = wrappers.KLPenalty(env, constant_kl(1.0), AdaptiveCoefficient(0.5))
    for coef in (0.5, 0.51):
        finish(env, [make_action(EOU)])
        assert f"kl 1.000, weight -{coef:.3f}, reward so far -{coef:.3f}" in env.render()


# Pickling and imports


@pytest.mark.parametrize(
    ("kind", "make", "actions"),
    [
        (
            wrappers,
            lambda: gym.make("DailyDialog-v0", **SMALL),
            [make_action(5, -1.0), make_action(6, -2.0), make_action(EOU, -3.0)],
        ),
        (
            vector,
            lambda: DailyDialogVectorEnv(2, **SMALL),
            [
                make_action([5, 5], [-1.0, -2.0]),
                make_action([6, 6], [-3.0, -4.0]),
                make_action([EOU, EOU], [-5.0, -6.0]),
            ],
        ),
    ],
    ids=["single", "vector"],
)
def test_a_wrapped_env_pickles_in_the_middle_of_an_episode(kind, make, actions):
    env = kind.KLPenalty(kind.MeteorReward(make()), drift)
    env.reset(seed=0)
    env.step(actions[0])
    copy = pickle.loads(pickle.dumps(env))
    for next_action in actions[1:]:
        left, right = env.step(next_action), copy.step(next_action)
        assert_same(left, right)
    assert np.all(left[2])
    assert_same(env.reset(), copy.reset())


PUBLIC = [
    *(getattr(dailydialog_gym, name) for name in dailydialog_gym.__all__),
    *(getattr(room, name) for room in (wrappers, vector) for name in room.__all__ if name != "replay"),
]


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_methods_have_docstrings_of_their_own(kind):
    """Without one, `help` shows Gymnasium's, with its CartPole examples."""
    assert kind.__doc__
    for name in ("reset", "step", "render"):
        method = getattr(kind, name)
        assert not method.__module__.startswith("dailydialog_gym") or method.__doc__, name
    assert kind.step.__module__.startswith("dailydialog_gym")
