"""The recipe of the embedded intent classifier, on the builtin dialogues and at toy size."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from dailydialog_gym.data import ACTS, Dialogue, format_prompt, load_dialogues
from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.recipes import intent
from dailydialog_gym.rewards.intent import IntentMatch

TOY = {"vocab_size": 1000, "layers": 1, "width": 64, "epochs": 2, "warmup_steps": 10, "soft_weight": 0.0}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A fifth of the builtin dialogues."""
    path = tmp_path_factory.mktemp("data") / "dialogues.jsonl"
    path.write_text("".join((ASSETS / "dialogues.jsonl").read_text().splitlines(keepends=True)[::5]))
    return str(path)


def curve(folder):
    rows = [json.loads(line) for line in (folder / "intent.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows]


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    intent.main(intent.Args(out=folder, dataset=dataset, test=True, **TOY))
    return folder


def test_a_killed_run_goes_on_as_if_nothing_had_happened(whole, dataset, tmp_path):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TOY.items()]
    command = [
        sys.executable,
        "-m",
        "dailydialog_gym.recipes.intent",
        f"--out={tmp_path}",
        f"--dataset={dataset}",
        *flags,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "training_state.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    intent.main(intent.Args(out=tmp_path, dataset=dataset, **TOY))
    assert curve(tmp_path) == curve(whole)
    assert curve(whole)[1]["validation nll"] < curve(whole)[0]["validation nll"]
    assert "test" not in json.loads((tmp_path / "scores.json").read_text())


def test_the_result_is_a_float16_folder_that_scores_through_intent_match_what_the_recipe_says(whole, dataset):
    assert AutoModelForSequenceClassification.from_pretrained(whole, dtype="auto").dtype == torch.float16
    match = IntentMatch(str(whole))
    pairs = [
        (d.utterances[i - 1], d.utterances[i], d.acts[i])
        for d in load_dialogues(dataset, "test")
        for i in range(1, len(d.utterances))
    ]
    prompts, replies, acts = zip(*((format_prompt([last]), reply, act) for last, reply, act in pairs), strict=True)
    said = json.loads((whole / "scores.json").read_text())["test"]
    assert match.match(prompts, replies, acts).mean() == pytest.approx(said["accuracy"])
    assert sum(map(sum, said["confusion"])) == said["n"] == len(acts)


def test_a_second_run_can_begin_where_the_first_ended(whole, dataset, tmp_path):
    intent.main(intent.Args(out=tmp_path, dataset=dataset, start=whole, **{**TOY, "epochs": 1, "soft_weight": 0.6}))
    assert curve(tmp_path)[0]["train_loss"] < curve(whole)[0]["train_loss"]
    assert (tmp_path / "tokenizer.json").read_text() == (whole / "tokenizer.json").read_text()


def test_a_teacher_s_opinions_are_what_intent_match_finds(whole, dataset):
    dialogues = load_dialogues(dataset, "validation")
    found = intent.opinions(whole, dialogues, intent.Args(out=whole, max_length=96))
    pairs = [(last, reply) for d in dialogues for last, reply in zip((None, *d.utterances), d.utterances, strict=False)]
    after = torch.tensor([last is not None for last, _ in pairs])
    prompts, answers = zip(*((format_prompt([last]), reply) for last, reply in pairs if last is not None), strict=True)
    expected = torch.from_numpy(IntentMatch(str(whole)).probabilities(prompts, answers)).float()
    assert len(expected) < len(found)
    torch.testing.assert_close(found[after], expected, rtol=0, atol=1e-3)


def test_what_is_taught_is_the_label_soft_labels_and_teachers(whole, dataset, tmp_path, monkeypatch):
    taught, losses = [], intent.Learner.losses
    monkeypatch.setattr(intent.Learner, "losses", lambda *args: taught.append(args[2]) or losses(*args))
    flags = {**TOY, "epochs": 1, "soft_weight": 0.75, "teachers": (whole, whole)}
    intent.main(intent.Args(out=tmp_path, dataset=dataset, **flags))
    dialogues = load_dialogues(dataset, "train")
    labels = torch.eye(4)[[act - 1 for dialogue in dialogues for act in dialogue.acts]]
    opinions = intent.opinions(whole, dialogues, intent.Args(out=whole))
    expected = 0.25 * labels + 0.25 * intent.soft_labels(dialogues) + 0.5 * opinions
    torch.testing.assert_close(taught[0], expected)


def test_rows_are_what_the_tokenizer_makes_of_the_joined_text():
    dialogues = load_dialogues("builtin", "validation")
    tokenizer = intent.train_tokenizer(dialogues, 400, 30)
    long = " ".join(["and so on"] * 20)
    dialogues = (*dialogues[:5], Dialogue(("Hello , Ann \u2019 s friend .", long, "Go !"), (1, 2, 3)))
    examples = intent.replies(intent.encode(tokenizer, dialogues, 20))
    texts = [(last, reply) for d in dialogues for last, reply in zip(d.utterances[:-1], d.utterances[1:], strict=True)]
    cut = intent.cut_utterances([reply for _, reply in texts], 20)
    assert cut[-2] != long and long.startswith(cut[-2])
    for example, (last, reply), short in zip(examples, texts, cut, strict=True):
        for is_cut, text in ((False, f"{last}[END]{reply}"), (True, f"{last}[END]{short}")):
            assert intent.row(example, is_cut, 30).ids == tokenizer(text, truncation=True)["input_ids"]


def test_soft_labels_come_near_the_labels_of_dialogues_never_seen():
    dialogues = load_dialogues("builtin", "train")
    labels = torch.tensor([act - 1 for dialogue in dialogues for act in dialogue.acts])
    soft = intent.soft_labels((*dialogues, dialogues[0]))
    torch.testing.assert_close(soft.sum(1), torch.ones(len(soft)))
    found = soft[: len(labels)].argmax(1)
    assert 0.6 < (found == labels).double().mean() < 0.95  # by heart it would be 1.0
    twice = len(dialogues[0].acts)
    torch.testing.assert_close(soft[:twice], soft[-twice:])


def test_scores():
    logits = torch.tensor([[9.0, 0, 0, 0], [9.0, 0, 0, 0], [0, 9.0, 0, 0], [0, 0, 0, 9.0]])
    found = intent.scores(logits, torch.tensor([0, 1, 1, 3]))
    assert found["accuracy"] == 0.75
    assert found["confusion"] == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert found["f1"] == pytest.approx({"inform": 2 / 3, "question": 2 / 3, "directive": 0, "commissive": 1})
    assert found["calibration_error"] == pytest.approx(0.25, abs=0.001)  # sure of all, right in three of four
    assert list(found["f1"]) == list(ACTS.values())
