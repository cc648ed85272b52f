"""A run isn't resumed with other data or models than it began with."""

import json
import shutil
from dataclasses import dataclass
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


@pytest.fixture
def args(tmp_path) -> Args:
    for name in ("policy", "intent"):
        shutil.copytree(ASSETS / name, tmp_path / name)
    shutil.copytree(ASSETS / "intent", tmp_path / "judge")
    shutil.copy(ASSETS / "dialogues.jsonl", tmp_path)
    return Args(
        str(tmp_path / "policy"),
        str(tmp_path / "intent"),
        str(tmp_path / "dialogues.jsonl"),
        reward_model=(f"{tmp_path / 'judge'}:question=0.5",),
    )


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
    "intent model's model.safetensors": lambda folder: flip_the_last_bit(folder / "intent/model.safetensors"),
    "reward model's {}/judge/model.safetensors": lambda folder: flip_the_last_bit(folder / "judge/model.safetensors"),
    "dataset's train split": lambda folder: replace(folder / "dialogues.jsonl", " the ", " a "),
    "dataset's test split": lambda folder: change_act(folder / "dialogues.jsonl"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_what_changed_is_named(args, tmp_path, what):
    before = json.loads(json.dumps(fingerprint(args)))
    assert changes(before, fingerprint(args)) == ([], [])
    load_dialogues.cache_clear()
    CHANGED[what](tmp_path)
    assert changes(before, fingerprint(args)) == ([f"the {what.format(tmp_path)}"], [])


def test_notes_beside_a_model_are_no_change(args, tmp_path):
    before = fingerprint(args)
    for name in ("README.md", ".DS_Store", "notes.txt", "metrics.jsonl"):
        (tmp_path / "policy" / name).write_text("a note", encoding="utf-8")
    assert changes(before, fingerprint(args)) == ([], [])


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
