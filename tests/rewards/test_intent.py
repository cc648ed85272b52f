import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_episodes import make_episodes
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from dailydialog_gym.env.dialogues import ACTS
from dailydialog_gym.rewards.intent import IntentMatch

WORDS = ["do", "you", "like", "tea", "?", "yes", "no", "I", "go", "now", ".", "please", "come", "late", "fine", "!"]
NAMES = list(ACTS.values())


def save_classifier(folder, labels, kind="bert", model_max_length=64):
    """A random classifier of `labels` (names or a number), with a tokenizer of whole words."""
    specials = ["<pad>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*specials, *WORDS])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", model_max_length=model_max_length
    ).save_pretrained(folder)
    named = {"num_labels": labels}
    if not isinstance(labels, int):
        named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 80,
        "initializer_range": 0.8,
        "pad_token_id": 0,
    }
    model = {
        "bert": lambda: BertForSequenceClassification(BertConfig(**sizes, **named)),
        "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**sizes, **named)),
    }[kind]()
    model.save_pretrained(folder)
    return str(folder)


def random_texts(count, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(count)]


@torch.no_grad()
def slow_labels(scorer, texts):
    """The index of the most probable label of each text, in a batch of one."""
    return [
        int(scorer.classifier(**scorer.tokenizer(text, return_tensors="pt")).logits.argmax(-1).item()) for text in texts
    ]


def found_acts(scorer, texts):
    return (scorer.classify(texts).argmax(1) + 1).tolist()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("labels", [NAMES, ["Commissive", "QUESTION", "inform", "directive"], NAMES[::-1]], ids=str)
def test_labels_are_found_by_name_in_any_order(tmp_path, kind, labels):
    scorer = IntentMatch(save_classifier(tmp_path, labels, kind))
    texts = random_texts(40)
    expected = [NAMES.index(labels[i].lower()) + 1 for i in slow_labels(scorer, texts)]
    assert len(set(expected)) >= 3
    assert found_acts(scorer, texts) == expected


def test_labels_without_names_are_the_acts_in_order(tmp_path):
    scorer = IntentMatch(save_classifier(tmp_path, 4))
    texts = random_texts(40)
    assert found_acts(scorer, texts) == [i + 1 for i in slow_labels(scorer, texts)]


@pytest.mark.parametrize(
    "labels", [2, 5, ["joy", "anger", "fear", "surprise"], [*NAMES, "none"], [*NAMES[:3], "inform"]], ids=str
)
def test_other_labels_are_an_error_that_names_the_model(tmp_path, labels):
    folder = save_classifier(tmp_path / "classifier", labels)
    with pytest.raises(ValueError, match=r"classifier '.*classifier' has the labels .*expected \['inform'"):
        IntentMatch(folder)


def test_missing_classifier_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"cannot load intent classifier .*nowhere"):
        IntentMatch(str(tmp_path / "nowhere"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("intent") / "classifier", NAMES)


@pytest.mark.parametrize("separator", [None, "<pad>", " | "])
def test_classifier_reads_the_last_utterance_its_separator_and_the_reply(classifier, tmp_path, separator):
    """The separator is a space if the classifier's configuration has none."""
    folder = shutil.copytree(classifier, tmp_path / "classifier")
    if separator is not None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | {"separator": separator}), encoding="utf-8")
    scorer = IntentMatch(str(folder))
    lasts, replies = random_texts(40, seed=1), random_texts(40, seed=2)
    replies[0] = ""
    prompts = [f"{earlier} <EOU> {last} <EOU>" for earlier, last in zip(random_texts(40, seed=3), lasts, strict=True)]
    prompts[1] = f"{lasts[1]} <EOU>"
    texts = [f"{last}{separator or ' '}{reply}" for last, reply in zip(lasts, replies, strict=True)]
    found = np.array([i + 1 for i in slow_labels(scorer, texts)])
    episodes = make_episodes([1] * 40, prompts=prompts, responses=replies, intents=found)
    scores = scorer(episodes)
    assert scores.shape == (40,) and (scores == 1.0).all()
    assert (scorer(replace(episodes, intents=found % 4 + 1)) == 0.0).all()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_batching_does_not_change_what_is_found(tmp_path, kind):
    folder = save_classifier(tmp_path, NAMES, kind)
    texts = random_texts(50)
    expected = found_acts(IntentMatch(folder, batch_size=1), texts)
    assert found_acts(IntentMatch(folder), texts) == expected
    assert found_acts(IntentMatch(folder, batch_size=7), texts) == expected


def test_too_long_a_text_loses_its_beginning_not_the_reply(tmp_path):
    scorer = IntentMatch(save_classifier(tmp_path, NAMES, model_max_length=6))
    replies = random_texts(30)
    replies = [" ".join((reply.split() * 6)[:6]) for reply in replies]
    prompts = [" ".join(WORDS * 5) + " <EOU>"] * 30
    assert scorer.match(prompts, replies, found_acts(scorer, replies)).all()


@pytest.mark.parametrize(("kind", "positions"), [("bert", 80), ("roberta", 79)])  # RoBERTa's begin after padding's
def test_a_text_longer_than_the_classifier_reads_is_truncated_without_a_limit_of_the_tokenizer(
    tmp_path, kind, positions
):
    scorer = IntentMatch(save_classifier(tmp_path, NAMES, kind, model_max_length=None))
    (text,) = random_texts(1)
    long = " ".join(WORDS * 30 + text.split())
    read = " ".join(long.split()[-positions:])
    np.testing.assert_allclose(scorer.classify([long]), scorer.classify([read]), rtol=1e-6)
    assert scorer.tokenizer.model_max_length == positions


def test_labels_can_be_given_where_the_configuration_names_them_wrongly(tmp_path):
    folder = save_classifier(tmp_path, ["joy", "optimism", "anger", "sadness"])
    scorer = IntentMatch(folder, labels=["question", "inform", "directive", "commissive"])
    texts = random_texts(40)
    assert found_acts(scorer, texts) == [[2, 1, 3, 4][i] for i in slow_labels(scorer, texts)]
    with pytest.raises(ValueError, match="has 4 outputs, but labels are"):
        IntentMatch(folder, labels=NAMES[:3])
    with pytest.raises(ValueError, match="has the labels"):
        IntentMatch(folder, labels=["joy", *NAMES[1:]])


def test_the_probability_of_the_required_act_is_the_score_where_asked_for(classifier):
    prompts, replies = [f"{text} <EOU>" for text in random_texts(30, seed=1)], random_texts(30, seed=2)
    intents = np.arange(30) % 4 + 1
    scorer = IntentMatch(classifier, probability=True)
    scores = scorer(make_episodes([1] * 30, prompts=prompts, responses=replies, intents=intents))
    probabilities = scorer.probabilities(prompts, replies)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    assert scores.tolist() == [row[intent - 1] for row, intent in zip(probabilities, intents, strict=True)]


def test_amp_dtype_autocasts_the_classifier(classifier):
    texts = random_texts(20)
    full = IntentMatch(classifier).classify(texts)
    half = IntentMatch(classifier, amp_dtype=torch.bfloat16).classify(texts)
    assert 0 < np.abs(full - half).max() < 0.05


def test_a_causal_classifier_judges_a_batch_as_it_judges_single_texts(tiny_intent_model):
    match = IntentMatch(tiny_intent_model)
    texts = ["Yes .", "I am glad to see all of you in the garden .", "Where were you ?"]
    np.testing.assert_allclose(match.classify(texts), np.concatenate([match.classify([t]) for t in texts]), atol=1e-6)


@pytest.mark.parametrize("probability", [True, False])
def test_a_reply_to_a_reference_without_an_act_scores_zero(classifier, probability):
    episodes = make_episodes([1] * 3, responses=["yes", "no", "do you like tea ?"])
    match = IntentMatch(classifier, probability=probability)
    with_acts = match(replace(episodes, intents=np.array([1, 2, 4])))
    assert match(replace(episodes, intents=np.array([1, 0, 4]))).tolist() == [with_acts[0], 0, with_acts[2]]
    assert match(replace(episodes, intents=np.zeros(3, np.int64))).tolist() == [0, 0, 0]


def test_only_the_embedded_classifier_reads_ordinary_text_in_dailydialogs_spacing(classifier, monkeypatch):
    for model, read in (("builtin", "Hi , Ann ![END]I'm here ."), (classifier, "Hi, Ann! I'm here.")):
        match, texts = IntentMatch(model, spacing="ordinary"), []
        monkeypatch.setattr(match, "classify", texts.extend)
        match.probabilities(["Hi, Ann! <EOU>"], ["I'm here."])
        assert texts == [read]


def test_the_name_of_a_special_token_is_text_for_the_classifier(classifier, monkeypatch):
    match, texts = IntentMatch("builtin"), []
    monkeypatch.setattr(match, "classify", texts.extend)
    match.probabilities(["Hi . <EOU>"], ["No[END]I obey ."])
    assert texts == ["Hi .[END]No[ END]I obey ."]
