"""A run isn't resumed with other data or models than it began with."""

import json
import shutil
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from pathlib import Path

import pytest

from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.env.dialogues import load_dialogues
from dailydialog_gym.runs.fingerprint import changes, fingerprint


@dataclass
class Args:
    model: str
    intent_model: str
    dataset: str
    eval_split: str = "test"
    test_share: float = 0.05
    reward_model: tuple[str, ...] = ()
    gamma: float = 1.0
    run_name: str = "run"


@pytest.fixture
def args(tmp_path, tiny_model, tiny_intent_model) -> Args:
    for name, copy in {"policy": tiny_model, "intent": tiny_intent_model, "judge": tiny_intent_model}.items():
        shutil.copytree(copy, tmp_path / name)
    shutil.copy(ASSETS / "dialogues.jsonl", tmp_path)
    policy, intent, dialogues, judge = (
        str(tmp_path / name) for name in ("policy", "intent", "dialogues.jsonl", "judge")
    )
    return Args(policy, intent, dialogues, reward_model=(f"{judge}:question=0.5",))


def flip_the_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def change_act(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    row = next(row for row in rows if row["split"] == "test")
    row["act"][0] = row["act"][0] % 4 + 1
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


CHANGED = {
    "model's model.safetensors": lambda folder: flip_the_last_bit(folder / "policy/model.safetensors"),
    "model's config.json": lambda folder: replace(folder / "policy/config.json", "1e-05", "1e-06"),
    "model's tokenizer.json": lambda folder: replace(folder / "policy/tokenizer.json", "hello", "olleh"),
    "model's modeling.py": lambda folder: (folder / "policy/modeling.py").write_text("", encoding="utf-8"),
    "reward model's TMP/judge/config.json": lambda folder: replace(folder / "judge" / "config.json", "{", "{ "),
    "intent model's model.safetensors": lambda folder: flip_the_last_bit(folder / "intent/model.safetensors"),
    "dataset's train split": lambda folder: replace(folder / "dialogues.jsonl", " the ", " a "),
    "dataset's test split": lambda folder: change_act(folder / "dialogues.jsonl"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_what_changed_is_named(args, tmp_path, what):
    before = json.loads(json.dumps(fingerprint(args)))
    assert changes(before, fingerprint(args)) == ([], [])
    load_dialogues.cache_clear()
    CHANGED[what](tmp_path)
    assert changes(before, fingerprint(args)) == ([f"the {what.replace('TMP', str(tmp_path))}"], [])


def test_notes_beside_a_model_are_no_change(args, tmp_path):
    before = fingerprint(args)
    for name in ("README.md", ".DS_Store", "notes.txt", "metrics.jsonl"):
        (tmp_path / "policy" / name).write_text("a note", encoding="utf-8")
    assert changes(before, fingerprint(args)) == ([], [])


def test_a_flag_that_was_edited_is_named_but_not_where_the_same_dialogues_are(args, tmp_path):
    before = json.loads(json.dumps(fingerprint(args)))
    moved = shutil.copy(args.dataset, tmp_path / "moved.jsonl")
    assert changes(before, fingerprint(replace_fields(args, dataset=str(moved), run_name="other"))) == ([], [])
    assert changes(before, fingerprint(replace_fields(args, gamma=0.5))) == (["the flag gamma"], [])


def test_versions_and_threads_are_no_reason_to_refuse():
    args = Args("builtin", "builtin", "builtin")
    now, before = fingerprint(args), fingerprint(args)
    before["versions"]["torch"] = "1.0"
    before["threads"] = 99
    torch = now["versions"]["torch"]
    assert changes(before, now) == ([], [f"torch {torch} instead of 1.0", f"{now['threads']} threads instead of 99"])


def test_the_embedded_models_and_dialogues_have_one_too():
    found = fingerprint(Args("builtin", "builtin", "builtin", "validation"))
    assert set(found["dataset"]) == {"train split", "validation split"}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= found["model"].keys() & found[
        "intent model"
    ].keys()


def test_a_checkpoint_of_before_flags_were_recorded_goes_on_with_a_word(args):
    before, now = fingerprint(args), fingerprint(args)
    del before["flag"]
    assert changes(before, now) == ([], ["perhaps the flags, which an older version did not record"])


def test_a_flag_that_is_newer_than_the_checkpoint_is_no_reason_to_refuse(args):
    before, now = fingerprint(args), fingerprint(args)
    del before["flag"]["gamma"]
    assert changes(before, now) == ([], ["perhaps the flag gamma, which an older version did not have"])
