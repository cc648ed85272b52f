"""The recipe of the embedded intent classifier, on the builtin dialogues and at toy size."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertModel, PreTrainedTokenizerFast

from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.env.dialogues import ACTS, Dialogue, load_dialogues
from dailydialog_gym.env.samples import format_prompt
from dailydialog_gym.recipes import intent, teachers
from dailydialog_gym.recipes.training import check_flags
from dailydialog_gym.rewards.intent import IntentMatch
from dailydialog_gym.text import convert_spacing

TOY = {"vocab_size": 1000, "layers": 1, "width": 64, "epochs": 2, "warmup_steps": 10, "soft_weight": 0.0}


def curve(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    intent.main(intent.Args(out=folder, dataset=dataset, test=True, **TOY))
    return folder


def test_the_result_is_a_float16_folder_that_scores_through_intent_match_what_the_recipe_says(whole, dataset):
    assert AutoModelForSequenceClassification.from_pretrained(whole, dtype="auto").dtype == torch.float16
    match = IntentMatch(str(whole))
    pairs = [
        (d.utterances[i - 1], d.utterances[i], d.acts[i])
        for d in load_dialogues(dataset, "test")
        for i in range(1, len(d.utterances))
    ]
    prompts, replies, acts = zip(*((format_prompt([last]), reply, act) for last, reply, act in pairs), strict=True)
    said = json.loads((whole / "scores.json").read_text(encoding="utf-8"))["test"]
    assert match.match(prompts, replies, acts).mean() == pytest.approx(said["accuracy"])
    assert sum(map(sum, said["confusion"])) == said["n"] == len(acts)


def test_a_second_run_can_begin_where_the_first_ended(whole, dataset, tmp_path):
    intent.main(
        intent.Args(out=tmp_path, dataset=dataset, start=str(whole), **{**TOY, "epochs": 1, "soft_weight": 0.6})
    )
    assert curve(tmp_path)[0]["train_loss"] < curve(whole)[0]["train_loss"]
    assert (tmp_path / "tokenizer.json").read_text(encoding="utf-8") == (whole / "tokenizer.json").read_text(
        encoding="utf-8"
    )


@pytest.fixture(scope="module")
def bert(dataset, tmp_path_factory):
    """A BERT as after pretraining: without a classification head, labels or a separator."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    texts = (utterance for dialogue in load_dialogues(dataset, "train") for utterance in dialogue.utterances)
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=500, special_tokens=special))
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {f"{name[1:-1].lower()}_token": name for name in special}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=500, **sizes)).save_pretrained(folder)
    return folder


def test_dropout_is_that_of_the_flag_and_not_that_of_the_start(whole, bert, tmp_path):
    for start in whole, bert:
        args = intent.Args(out=tmp_path, start=str(start), dropout=0.37)
        learner = intent.Learner(args, *intent.initial_model(args, ()))
        found = {module.p for module in learner.modules() if isinstance(module, torch.nn.Dropout)}
        assert found == {0.37}


@pytest.fixture(scope="module")
def bert_classifier(bert, dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    intent.main(intent.Args(out=folder, dataset=dataset, start=str(bert), test=True, **{**TOY, "learning_rate": 5e-3}))
    return folder


def test_a_pretrained_encoder_becomes_a_classifier_that_scores_as_the_recipe_says(bert_classifier, dataset):
    rows = curve(bert_classifier)
    assert rows[1]["validation nll"] < rows[0]["validation nll"]
    pairs = [
        (last, reply, act)
        for d in load_dialogues(dataset, "test")
        for last, reply, act in zip(d.utterances, d.utterances[1:], d.acts[1:], strict=False)
    ]
    prompts, answers, acts = zip(*((format_prompt([last]), reply, act) for last, reply, act in pairs), strict=True)
    said = json.loads((bert_classifier / "scores.json").read_text(encoding="utf-8"))["test"]
    assert IntentMatch(str(bert_classifier)).match(prompts, answers, acts).mean() == pytest.approx(said["accuracy"])


def test_a_teacher_s_predictions_are_those_of_the_joined_texts(whole, dataset):
    dialogues = load_dialogues(dataset, "validation")
    found = teachers.predictions(str(whole), teachers.pairs_of(dialogues), amp=False)
    lasts = [last for d in dialogues for last in ("", *d.utterances[:-1])]
    texts = [
        f"{last}[END]{reply}" for last, reply in zip(lasts, (u for d in dialogues for u in d.utterances), strict=True)
    ]
    expected = torch.from_numpy(IntentMatch(str(whole)).classify(texts)).float()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"start": str(ASSETS / "policy")}, "no separator or no mask: choose an encoder"),
        ({"start": "nowhere"}, "cannot load intent classifier 'nowhere'"),
        ({"unlabelled": Path("nine.jsonl")}, "need --teachers"),
        ({"policy_replies": 30}, "need --teachers"),
        (
            {"unlabelled": Path("nine.jsonl"), "teachers": ("a",)},
            "has 9 replies, fewer than --unlabelled-replies 50,000",
        ),
        ({"policy_replies": 9_999, "teachers": ("a",)}, "fewer than --policy-replies 9,999"),
        ({"teachers": ("nowhere",)}, "cannot load intent classifier 'nowhere'"),
    ],
)
def test_a_wrong_flag_is_named_and_can_be_corrected(offline, flags, message, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unlabelled(tmp_path / "nine.jsonl", 9)
    with pytest.raises(ValueError, match=message):
        intent.main(intent.Args(out=tmp_path / "out", dataset=dataset, **flags, **TOY))
    check_flags(intent.Args(out=tmp_path / "out"))  # a failed run leaves nothing to resume


@pytest.mark.parametrize("by", ["soft labels", "teachers"])
def test_the_targets_are_a_mixture_of_the_labels_and_soft_labels_or_teachers(
    by, whole, bert_classifier, dataset, tmp_path, monkeypatch
):
    taught, losses = [], intent.Learner.losses
    monkeypatch.setattr(intent.Learner, "losses", lambda *args: taught.append(args[2]) or losses(*args))
    folders = (str(whole), str(bert_classifier)) if by == "teachers" else ()
    intent.main(
        intent.Args(out=tmp_path, dataset=dataset, **{**TOY, "epochs": 1, "soft_weight": 0.75, "teachers": folders})
    )
    dialogues = load_dialogues(dataset, "train")
    labels = torch.eye(4)[[act - 1 for dialogue in dialogues for act in dialogue.acts]]
    found = [teachers.predictions(folder, teachers.pairs_of(dialogues), amp=False) for folder in folders]
    soft = sum(found) / 2 if found else teachers.soft_labels(dialogues)
    torch.testing.assert_close(taught[0], 0.25 * labels + 0.75 * soft)


def unlabelled(path, n):
    """Write a file of ``n`` replies, each of which is a reply to the one before."""
    path.write_text(json.dumps({"dialog": [f"Here is number {i}." for i in range(n + 1)]}), encoding="utf-8")
    return path


def test_the_targets_of_unlabelled_replies_are_the_teachers_predictions(whole, dataset, tmp_path, monkeypatch):
    taught, losses = [], intent.Learner.losses
    monkeypatch.setattr(intent.Learner, "losses", lambda *args: taught.append(args[1:]) or losses(*args))
    flags = {**TOY, "epochs": 1, "teachers": (str(whole),)}
    path = unlabelled(tmp_path / "nine.jsonl", 9)
    intent.main(intent.Args(out=tmp_path / "out", dataset=dataset, unlabelled=path, unlabelled_replies=9, **flags))
    drawn = teachers.unlabelled_pairs(path, 9, 1, "spaced")
    assert sorted(drawn) == [(f"Here is number {i} .", f"Here is number {i + 1} .") for i in range(9)]
    pairs = teachers.sentence_pairs(load_dialogues(dataset, "train"), 1) + drawn
    targets = taught[0][1]
    torch.testing.assert_close(targets[-len(pairs) :], teachers.predictions(str(whole), pairs, amp=False))
    read = {i: rows[i] for rows, _, batch in taught for i in batch}
    assert sorted(read) == list(range(len(targets)))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    for i, (last, reply) in enumerate(pairs, len(targets) - len(pairs)):
        assert read[i] == tokenizer(f"{last}[END]{reply}", truncation=True)["input_ids"]


def test_pieces_are_whole_sentences_of_replies_that_have_several():
    dialogues = load_dialogues("builtin", "train")
    pieces = teachers.sentence_pairs((*dialogues, dialogues[0]), 1)
    assert pieces == teachers.sentence_pairs(dialogues, 1) != teachers.sentence_pairs(dialogues, 2)
    replies = {}
    for last, reply in teachers.pairs_of(dialogues):
        replies.setdefault(last, []).append(reply)
    for last, piece in pieces:
        assert piece[-1] in ".?!" or any(reply.endswith(piece) for reply in replies[last])
        assert any(
            piece != reply and (reply.startswith(f"{piece} ") or reply.endswith(f" {piece}") or f" {piece} " in reply)
            for reply in replies[last]
        )
    several = sum(any(mark + " " in reply for mark in ".?!") for _, reply in set(teachers.pairs_of(dialogues)))
    assert 1.8 * several < len(pieces) <= 2 * several


def test_the_targets_of_the_policy_s_replies_are_the_teachers_predictions(whole, dataset, tmp_path, monkeypatch):
    taught, losses = [], intent.Learner.losses
    monkeypatch.setattr(intent.Learner, "losses", lambda *args: taught.append(args[1:]) or losses(*args))
    flags = {"dataset": dataset, **TOY, "epochs": 1, "policy_replies": 30}
    intent.main(intent.Args(out=tmp_path, teachers=(str(whole),), **flags))
    pairs = teachers.policy_pairs(dataset, 0.05, 30, 1)
    contexts = [
        (d.utterances[i - 1], d.utterances[i])
        for d in load_dialogues(dataset, "train")
        for i in range(1, len(d.utterances))
    ]
    lasts = {last for last, _ in contexts}
    assert all(last in lasts for last, _ in pairs)
    assert len(set(pairs) - set(contexts)) > 20  # written by the policy, and not by the people of the dataset
    torch.testing.assert_close(taught[0][1][-30:], teachers.predictions(str(whole), pairs, amp=False))


def test_what_teachers_and_the_policy_get_has_the_spacing_that_they_know(tmp_path):
    spaced, ordinary = ("Can you help me , Ann ?", "Yes , of course ."), ("Can you help me, Ann?", "Yes, of course.")
    found = [
        teachers.predictions("builtin", [pair], False, s) for pair, s in ((spaced, "spaced"), (ordinary, "ordinary"))
    ]
    torch.testing.assert_close(*found)
    for name, pair in ("spaced", spaced), ("ordinary", ordinary):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"dialog": pair}), encoding="utf-8")
    written = {
        name: teachers.policy_pairs(str(tmp_path / f"{name}.jsonl"), 0.05, 1, 1) for name in ("spaced", "ordinary")
    }
    assert [(last, convert_spacing(reply, "spaced", "ordinary")) for last, reply in written["spaced"]] == [
        (spaced[0], reply) for _, reply in written["ordinary"]
    ]


def test_a_resumed_run_does_not_ask_the_teachers_again(whole, dataset, tmp_path):
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    shutil.copytree(whole, teacher)
    flags = {"out": out, "dataset": dataset, **TOY, "epochs": 1, "teachers": (str(teacher),)}
    intent.main(intent.Args(**flags))
    first = curve(out)
    shutil.rmtree(teacher)
    (out / "training_state.pt").unlink()  # as if the run had been killed in its first epoch
    intent.main(intent.Args(**flags, test=True))
    assert [row["train_loss"] for row in curve(out)] == [row["train_loss"] for row in first]
    assert "test" in json.loads((out / "scores.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["own", "bert"])
def test_rows_are_what_the_tokenizer_makes_of_the_joined_text(kind, bert):
    dialogues = load_dialogues("builtin", "validation")
    tokenizer = {
        "own": lambda: intent.train_tokenizer(dialogues, 400, 30),
        "bert": lambda: PreTrainedTokenizerFast.from_pretrained(bert, model_max_length=30, truncation_side="left"),
    }[kind]()
    separator = tokenizer.sep_token
    long = " ".join(["and so on"] * 20)
    dialogues = (*dialogues[:5], Dialogue(("Hello , Ann \u2019 s friend .", long, "Go !"), (1, 2, 3)))
    examples = intent.replies(intent.encode(tokenizer, dialogues, 20))
    texts = [(last, reply) for d in dialogues for last, reply in zip(d.utterances[:-1], d.utterances[1:], strict=True)]
    cut = intent.cut_utterances([reply for _, reply in texts], 20)
    assert cut[-2] != long and long.startswith(cut[-2])
    for example, (last, reply), short in zip(examples, texts, cut, strict=True):
        for is_cut, text in ((False, f"{last}{separator}{reply}"), (True, f"{last}{separator}{short}")):
            assert intent.input_ids(example, is_cut, tokenizer, 30) == tokenizer(text, truncation=True)["input_ids"]


def test_soft_labels_come_near_the_labels_of_dialogues_never_seen():
    dialogues = load_dialogues("builtin", "train")
    labels = torch.tensor([act - 1 for dialogue in dialogues for act in dialogue.acts])
    soft = teachers.soft_labels((*dialogues, dialogues[0]))
    torch.testing.assert_close(soft.sum(1), torch.ones(len(soft)))
    found = soft[: len(labels)].argmax(1)
    assert 0.6 < (found == labels).double().mean() < 0.95  # memorised labels would give 1.0
    twice = len(dialogues[0].acts)
    torch.testing.assert_close(soft[:twice], soft[-twice:])


@pytest.mark.parametrize("kind", ["albert", "bert", "distilbert", "electra", "modernbert", "roberta"])
def test_any_encoder_is_calibrated_by_its_last_layer(kind):
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    if kind == "distilbert":
        sizes = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1}
    config = AutoConfig.for_model(kind, vocab_size=50, num_labels=4, **sizes, **special)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    ids, acts = torch.randint(2, 50, (20, 6)), torch.randint(4, (20,))
    with torch.no_grad():
        before = model(ids).logits
        temperature = intent.calibrate(model, before, acts)
        torch.testing.assert_close(model(ids).logits, before / temperature)
    assert temperature != 1


def test_soft_labels_of_dialogues_in_which_an_act_is_missing():
    said = [Dialogue((f"Is it {i} ?", f"It is {i} .", f"Take {i} ."), (2, 1, 3)) for i in range(12)]
    found = intent.teachers.soft_labels(said)
    torch.testing.assert_close(found.sum(1), torch.ones(36))
    assert not found[:, 3].any()
    with pytest.raises(ValueError, match="the acts of 12 dialogues are too few or too alike"):
        intent.teachers.soft_labels([Dialogue(d.utterances, (1, 1, 1)) for d in said])


def test_a_dataset_without_acts_is_refused(tmp_path):
    file = tmp_path / "talk.jsonl"
    file.write_text('{"dialog": ["Hi .", "Hello ."]}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"talk\.jsonl', split 'train': the utterance 'Hi \.' has no act"):
        intent.load_labelled(str(file), "train", 0.05)


def test_sets_of_replies_without_a_new_one_have_no_score_of_new_ones(whole):
    model, tokenizer = intent.load_classifier(str(whole))
    args = intent.Args(out=whole)
    held_out = intent.replies(intent.encode(tokenizer, [Dialogue(("Hi .", "Hello .", "Go on ."), (1, 1, 3))], 20))
    names = [
        {*intent.report(model, tokenizer, {"some": held_out}, seen, args)}
        for seen in ({"Go on ."}, {"Hello .", "Go on ."})
    ]
    assert names == [{"some", "some, not in train", "some, cut"}, {"some", "some, cut"}]


def test_a_validation_split_without_replies_is_refused(tmp_path):
    file = tmp_path / "talk.jsonl"
    rows = [{"dialog": ["Hi ."], "act": [1], "split": "validation"}, {"dialog": ["Hi .", "Go ."], "act": [1, 3]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(ValueError, match=r"talk\.jsonl', split 'validation' contains no reply"):
        intent.main(intent.Args(out=tmp_path / "out", dataset=str(file), **TOY))


def test_scores():
    logits = torch.tensor([[9.0, 0, 0, 0], [9.0, 0, 0, 0], [0, 9.0, 0, 0], [0, 0, 0, 9.0]])
    found = intent.scores(logits, torch.tensor([0, 1, 1, 3]))
    assert found["accuracy"] == 0.75
    assert found["confusion"] == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert found["f1"] == pytest.approx({"inform": 2 / 3, "question": 2 / 3, "directive": 0, "commissive": 1})
    assert found["calibration_error"] == pytest.approx(0.25, abs=0.001)  # confidence 1 in all four, correct in three
    assert list(found["f1"]) == list(ACTS.values())
