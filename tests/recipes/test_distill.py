"""Dialogues of a teacher: what is written does not depend on kills, and what a student must not learn is left out."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from dailydialog_gym.env.dialogues import Dialogue, load_dialogues
from dailydialog_gym.models.decoding import Decoding, Reply
from dailydialog_gym.recipes import distill
from dailydialog_gym.recipes.training import read_unlabelled

HELD_OUT = [Dialogue(("Where is the old post office , please ?", "Hi !"), (2, 1))]


@pytest.mark.parametrize(
    ("dialogue", "reason"),
    [
        (["Hi !", "How do you do ?"], None),
        (["Where is the post office ?", "where is the OLD post office please"], "test split"),
        (["Hi ."], "too short"),
        (["Hi .", ""], "empty"),
        (["I have been to London twice .", "Me too .", "I have been to London , twice !"], "repeat"),
        (["Good day .", "Good day ."], None),
        (["A first dialogue .", "Yes ."], "before"),
    ],
)
def test_what_is_left_out(dialogue, reason):
    kept, reasons = distill.keep([["A first dialogue !", "yes"], dialogue], HELD_OUT)
    assert (dialogue in kept) == (reason is None)
    assert sum(reasons.values()) == (reason is not None)
    assert all(reason in text for text in reasons)


@pytest.fixture(scope="module")
def counts():
    """The numbers by which the progress bar of `written` moves."""
    return []


@pytest.fixture(scope="module")
def written(tmp_path_factory, counts):
    """By the embedded policy, which ends utterances; the random models never do."""
    out = tmp_path_factory.mktemp("distill") / "out"
    args = distill.Args("builtin", out, "builtin", dialogues=6, part=4, rows=3, max_new_tokens=100)
    update = distill.tqdm.update
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill.tqdm, "update", lambda bar, n: counts.append(n) or update(bar, n))
        distill.main(args)
    return args


def test_dialogues_begin_as_those_of_the_train_split_and_are_continued(written):
    lines = [line for file in sorted((written.out / "parts").iterdir()) for line in file.open(encoding="utf-8")]
    dialogues = [json.loads(line)["dialog"] for line in lines]
    assert len(dialogues) == 6
    lengths = {dialogue.utterances[0]: len(dialogue.utterances) for dialogue in load_dialogues("builtin", "train")}
    assert all(len(dialogue) <= lengths[dialogue[0]] for dialogue in dialogues)
    assert any(len(dialogue) == lengths[dialogue[0]] for dialogue in dialogues)
    assert sum(len(dialogue[2:]) for dialogue in dialogues) > 5  # at most two utterances are given
    kept = read_unlabelled(written.out / "dialogues.jsonl", "spaced")
    assert len(kept) > 3 and all(len(dialogue) > 1 for dialogue in kept)


def test_a_killed_run_writes_what_an_uninterrupted_one_does(written, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(written.out, out)
    (out / "parts/00000004.jsonl").unlink()
    (out / "dialogues.jsonl").unlink()
    distill.main(replace(written, out=out))
    for file in ("parts/00000004.jsonl", "dialogues.jsonl"):
        assert (out / file).read_bytes() == (written.out / file).read_bytes()


def test_rows_do_not_change_what_is_written(written, tmp_path):
    other = replace(written, out=tmp_path / "out", rows=10, dialogues=4)
    distill.main(other)
    assert (other.out / "parts/00000000.jsonl").read_bytes() == (written.out / "parts/00000000.jsonl").read_bytes()


def test_the_progress_bar_counts_the_dialogues_that_are_done(written, counts):
    assert min(counts) == 0
    assert sum(counts) == 6


def test_a_teacher_reads_and_writes_the_spacing_of_the_dialogues():
    for spacing, text in ("ordinary", "Hi! It's late, isn't it?"), ("spaced", "Hi ! It's late , isn't it ?"):
        teacher = distill.Teacher("builtin", torch.device("cpu"), torch.float32, 20, spacing)
        ids = teacher.encode([text])
        assert teacher.agent.tokenizer.backend.decode(ids[1:]).strip() == "Hi ! It's late , isn't it ?"
        assert teacher.utterances(Reply(ids, Decoding(False, 1.0, 0, 1.0, 5, 1), lambda ids: False)) == [text]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["Hi .", "Hello ."]] * 9, "has no split 'validation'"),
        ([[f"{i} ."] for i in range(9)], "has no training dialogue of two utterances"),
    ],
)
def test_what_the_end_would_lack_is_said_before_anything_is_written(rows, message, tmp_path):
    file = tmp_path / "chats.jsonl"
    splits = ["train"] * 9 if "split" in message else ["train"] * 7 + ["validation", "test"]
    lines = [json.dumps({"dialog": row, "split": split}) for row, split in zip(rows, splits, strict=True)]
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        distill.main(distill.Args("builtin", tmp_path / "out", str(file), test_share=0, max_new_tokens=20, dialogues=2))
    assert not list((tmp_path / "out").glob("parts/*"))


def test_a_teacher_with_too_few_positions_is_refused(tiny_model, tmp_path):
    with pytest.raises(ValueError, match=r"max_new_tokens 2000"):
        distill.main(distill.Args(tiny_model, tmp_path / "out", "builtin", max_new_tokens=2000))
