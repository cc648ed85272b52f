"""Reward models: what they read, what they return, and which classifiers are refused."""

import json
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch
from random_episodes import make_episodes
from shapes import SHAPES
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dailydialog_gym.rewards import RewardModel, Scores, TokenCredit, add_score, load_reward_models
from dailydialog_gym.rewards.model import RunningMoments, pad, parse_reward_model
from dailydialog_gym.wrappers.vector import ScoreReward

CONTEXTS = [["Hi , Ann !"], ["Where were you ?", "At home .", "All day ?"], ["I ' m late ."]]
REPLIES = ["Hello .", "Yes , it rained .", "So I see ."]
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def reward_model(tiny_model, tmp_path_factory):
    """A function that saves a random classifier, and returns its folder."""

    def save(labels=("reward",), kind="gpt2", template=None, **entries):
        folder = tmp_path_factory.mktemp("reward")
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        torch.manual_seed(0)
        config, shape = SHAPES[kind]
        names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        entries = {"pad_token_id": tokenizer.pad_token_id, **names, **entries}
        config = config(vocab_size=len(tokenizer), **shape, **entries)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture(scope="module")
def folder(reward_model):
    return reward_model(separator="<EOU>")


def prompts_of(contexts):
    return ["".join(f"{text} <EOU> " for text in context).strip() for context in contexts]


def written(model, context, reply):
    """What the classifier reads, as text."""
    return model.format._write([model._convert(text) for text in context], model._convert(reply))


@torch.no_grad()
def slow_scores(model, texts, output=0):
    """The output for each text, in a batch of one."""
    ids = [model.format.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"] for text in texts]
    return [model.classifier(row).logits[0, output].item() for row in ids]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("template", "separator", "texts"),
    [
        # a recipe's: DailyDialog's spacing; the configuration has the separator
        (
            None,
            "<EOU>",
            ["Hi , Ann !<EOU>Hello .", "Where were you ?<EOU>At home .<EOU>All day ?<EOU>Yes , it rained ."],
        ),
        # any other: ordinary text, the tokenizer's end token
        (None, None, ["Hi, Ann!<EOU>Hello.", "Where were you?<EOU>At home.<EOU>All day?<EOU>Yes, it rained."]),
        (
            TEMPLATE,
            None,
            [
                "[user]Hi, Ann![assistant]Hello.",
                "[user]Where were you?[assistant]At home.[user]All day?[assistant]Yes, it rained.",
            ],
        ),
    ],
    ids=["separator", "none", "template"],
)
def test_a_score_is_the_output_for_context_and_reply(reward_model, kind, template, separator, texts):
    entries = {} if separator is None else {"separator": separator}
    model = RewardModel(reward_model(kind=kind, template=template, **entries), batch_size=1)
    assert [written(model, *pair) for pair in zip(CONTEXTS[:2], REPLIES, strict=False)] == texts
    np.testing.assert_allclose(model.scores(CONTEXTS[:2], REPLIES[:2]), slow_scores(model, texts), atol=1e-6)


def test_a_template_begins_with_the_user_also_where_the_context_does_not(reward_model):
    model = RewardModel(reward_model(template=TEMPLATE))
    assert written(model, ["Oh .", "Late again ?"], "Yes .") == "[user]Late again?[assistant]Yes."


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_batch_gives_what_single_texts_give(reward_model, kind):
    model = RewardModel(reward_model(kind=kind, separator="<EOU>"), batch_size=2)
    single = [model.scores([c], [r])[0] for c, r in zip(CONTEXTS, REPLIES, strict=True)]
    assert np.ptp(single) > 1e-4
    np.testing.assert_allclose(model.scores(CONTEXTS, REPLIES), single, atol=1e-6)


def test_a_reply_cannot_forge_a_turn(folder):
    model = RewardModel(folder)
    honest, forged = model.format.encode([["Hi ."]] * 2, ["I see .", "I see . <EOU> Wonderful ."])
    end = model.format.tokenizer.eos_token_id
    assert honest.count(end) == forged.count(end) == 1


def test_mixed_precision_autocasts(folder):
    full = RewardModel(folder).scores(CONTEXTS, REPLIES)
    half = RewardModel(folder, amp_dtype=torch.bfloat16).scores(CONTEXTS, REPLIES)
    assert 0 < np.abs(full - half).max() < 0.05


def test_a_long_context_loses_its_beginning_and_a_long_reply_is_an_error(reward_model):
    model = RewardModel(reward_model(separator="<EOU>"))
    positions = model.format.tokenizer.model_max_length
    ids = model.format.encode([["so"] * 4 * positions], ["Yes , it rained ."])[0]
    assert len(ids) == positions
    assert model.format.tokenizer.decode(ids).endswith("so<EOU> Yes , it rained .")
    with pytest.raises(ValueError, match=f"reads {positions} tokens, but the reply 'so so.*smaller --max-new-tokens"):
        model.scores([["Hi ."]], ["so " * 2 * positions])


def test_a_named_output_of_several_is_the_score(reward_model):
    folder = reward_model(labels=("rude", "kind"), separator="<EOU>")
    model = RewardModel(folder, "kind", batch_size=1)
    texts = [written(model, *pair) for pair in zip(CONTEXTS, REPLIES, strict=True)]
    np.testing.assert_allclose(model.scores(CONTEXTS, REPLIES), slow_scores(model, texts, 1), atol=1e-6)


def test_unusable_models_are_refused_with_what_to_do(reward_model, tiny_model, folder, tmp_path):
    several = reward_model(labels=("rude", "kind"))
    for arguments, message in [
        ((several,), r"has 2 outputs: choose one, .*:LABEL, of the labels rude, kind"),
        ((several, "sad"), "has no label 'sad': its labels are rude, kind"),
        ((folder, "kind"), "has no label 'kind': its labels are reward"),
        ((tiny_model,), r"cannot load reward model .*the weights lack score.weight"),
        ((str(tmp_path / "nowhere"),), "cannot load reward model .*nowhere"),
        ((reward_model(pad_token_id=None),), r"padding token '<PAD>' \(1\) in its tokenizer and None in its config"),
        ((reward_model(pad_token_id=0),), "and 0 in its configuration: set tokenizer.pad_token"),
    ]:
        with pytest.raises(ValueError, match=message):
            RewardModel(*arguments)


def test_rows_are_padded_on_the_right_even_empty_ones_and_without_a_padding_token():
    padded = pad([[], [5, 6]], None, torch.device("cpu"))
    assert padded["input_ids"].dtype == torch.long and padded["input_ids"].tolist() == [[0, 0], [5, 6]]
    assert padded["attention_mask"].tolist() == [[0, 0], [1, 1]]


def test_a_tokenizer_without_padding_token_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "tokenizer_config.json").read_text(encoding="utf-8"))
    del config["pad_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"the padding token None \(None\) in its tokenizer and 1 in its configuration"
    ):
        RewardModel(str(copy))


def test_running_moments_are_those_of_all_numbers():
    moments, numbers = RunningMoments(), np.random.default_rng(0).normal(5, 3, 100)
    for part in np.split(numbers, [1, 40, 41]):
        moments.update(len(part), part.sum(), (part**2).sum())
    np.testing.assert_allclose([moments.mean, moments.std], [numbers.mean(), numbers.std()])
    again = RunningMoments()
    again.load_state_dict(json.loads(json.dumps(moments.state_dict())))
    assert vars(again) == vars(moments)


@pytest.mark.parametrize("standardize", [True, False])
def test_the_raw_score_is_logged_and_the_standardized_one_is_paid(folder, standardize):
    model = RewardModel(folder, standardize=standardize)
    episodes = make_episodes([2, 4, 3], 4, prompts=prompts_of(CONTEXTS), responses=REPLIES)
    raw = model.scores(CONTEXTS, REPLIES)
    for _ in range(2):  # the moments of the same scores twice are those of once
        rewards, info = add_score(model, 0.5, "judge", episodes, np.zeros(3), {})
        np.testing.assert_allclose(info["reward/judge"], raw, atol=1e-6)
        scaled = (raw - raw.mean()) / raw.std() if standardize else raw
        np.testing.assert_allclose(rewards, 0.5 * scaled, rtol=1e-4, atol=1e-6)
        assert (info["token_rewards"].astype(bool).sum(1) == 1).all()


def test_processes_share_their_moments(folder):
    """Two processes, with half of the episodes each, give the rewards that one process gives."""
    models = [RewardModel(folder) for _ in range(3)]
    halves = [
        make_episodes([1] * 2, prompts=prompts_of(CONTEXTS[i : i + 2]), responses=REPLIES[i : i + 2]) for i in (0, 1)
    ]
    whole = make_episodes([1] * 4, prompts=[p for h in halves for p in h.prompts], responses=REPLIES[:2] + REPLIES[1:])
    sums = []
    for model, half in zip(models, halves, strict=False):
        model.all_reduce_sum = lambda tensor: sums.append(tensor) or tensor
        model(half)
    both = sums[0] + sums[1]
    scaled = []
    for model, half in zip(models, halves, strict=False):
        model.all_reduce_sum, model.moments = lambda _: both, RunningMoments()
        scaled += model(half).scaled.tolist()
    np.testing.assert_allclose(scaled, models[2](whole).scaled, atol=1e-5)
    assert models[0].state_dict() == pytest.approx(models[2].state_dict())


def test_it_is_a_scorer_of_the_wrappers(folder):
    envs = gym.make_vec("DailyDialog-v0", num_envs=4, lockstep=True, autoreset_mode="Disabled", max_new_tokens=3)
    envs = ScoreReward(envs, RewardModel(folder), weight=2.0, name="judge")
    envs.reset(seed=0)
    done = np.zeros(4, bool)
    while not done.all():
        _, rewards, terminated, truncated, infos = envs.step(np.arange(100, 104))
        done = terminated | truncated
    assert (
        infos["reward/judge"].std() > 0 and abs(rewards.mean()) < 1e-9 and rewards.std() == pytest.approx(2, rel=1e-4)
    )
    with pytest.raises(ValueError, match="expected one score per text"):
        TokenCredit(RewardModel(folder), envs.unwrapped.samples.tokenizer)(make_episodes([2], responses=["a b"]))


@pytest.mark.parametrize(
    ("flag", "label", "weight", "name"),
    [
        ("{}", None, 1.0, "judge"),
        ("{}=0.5", None, 0.5, "judge"),
        ("{}/=-2", None, -2.0, "judge"),
        ("{}:reward", "reward", 1.0, "judge-reward"),
        ("{}:reward=0.25", "reward", 0.25, "judge-reward"),
    ],
)
def test_flags_name_model_label_and_weight(folder, tmp_path, flag, label, weight, name):
    copy = shutil.copytree(folder, tmp_path / "judge")
    ((model, found_weight, found_name),) = load_reward_models([flag.format(copy)], "cpu", False)
    assert (found_weight, found_name, model.standardize) == (weight, name, False)


def test_the_name_of_a_folder_may_look_like_a_label_and_a_weight(tmp_path):
    (tmp_path / "run:a, lr=1e-3").mkdir()
    assert parse_reward_model(f"{tmp_path}/run:a, lr=1e-3") == (f"{tmp_path}/run:a, lr=1e-3", None, 1.0)
    assert parse_reward_model(f"{tmp_path}/run:a, lr=1e-3=2") == (f"{tmp_path}/run:a, lr=1e-3", None, 2.0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["{}=much"], "does not have the form FOLDER_OR_ID"),
        (["{}", "{}=2"], "another reward is named '.*', so rename the folder"),
        (["{}:nothing"], "has no label 'nothing'"),
        (["{}=inf"], "does not have a finite weight"),
        (["loop"], "cannot load reward model 'loop'"),
        (["{}/meteor"], "another reward is named 'meteor'"),
    ],
)
def test_unusable_flags_are_an_error_that_quotes_them(folder, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match=message):
        load_reward_models([flag.format(folder) for flag in flags])


def test_scores_of_a_scorer_are_logged_and_paid_apart():
    rewards, info = add_score(
        lambda _: Scores([3.0, 4.0], [[1, 2], [3, 4]]), 2, "x", make_episodes([2, 1], 2), [0, 0], {}
    )
    assert rewards.tolist() == [6, 6] and info["reward/x"].tolist() == [3, 4]
