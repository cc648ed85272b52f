"""Where dialogues come from: formats, splits, and which training dialogues are left out."""

from __future__ import annotations

import json
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from dailydialog_gym.embedded import asset
from dailydialog_gym.hub import hub_is_off

SPLITS = ("train", "validation", "test")
# DailyDialog's own numbers (its readme.txt); 0 is no act.
ACTS = {1: "inform", 2: "question", 3: "directive", 4: "commissive"}
# The hub's `daily_dialog` is a script dataset, which `datasets` no longer loads; this copy is Parquet.
HUB_ALIASES = {"daily_dialog": "OpenRL/daily_dialog"}

_FORMATS = (
    "expected 'builtin'; a folder in DailyDialog's format (SPLIT.zip, SPLIT/dialogues_SPLIT.txt or "
    "dialogues_SPLIT.txt); a folder written by datasets.save_to_disk; a .jsonl file; or a hub id such as 'daily_dialog'"
)


@dataclass(frozen=True)
class Dialogue:
    """One dialogue: its utterances in turn, and the act (1 to 4, see `ACTS`) of each."""

    utterances: tuple[str, ...]
    acts: tuple[int, ...]


@lru_cache(maxsize=8)
def load_dialogues(dataset: str, split: str, raw_split: bool = False) -> tuple[Dialogue, ...]:
    """The dialogues of one split.

    Training dialogues that also stand in the dataset's validation or test split are left out, and a dialogue whose
    utterances and acts differ in number is skipped; how many of either is printed to stderr.

    Args:
        dataset: ``"builtin"``; a folder in the original DailyDialog format (``SPLIT.zip``, ``SPLIT/`` or flat text
            files); a folder written by ``datasets.save_to_disk`` (a ``DatasetDict``); a ``.jsonl`` file of
            ``{"dialog": [...], "act": [...]}``, with ``"split"`` in each line if it holds more than ``train``; or a
            hub id, with ``"daily_dialog"`` short for ``OpenRL/daily_dialog``.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        raw_split: keep the training dialogues that also stand in validation or test, as published numbers do.

    Raises:
        ValueError: the dataset, the split or a line of a file can't be read; the message says which and why.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    rows = _read(dataset, split)
    if rows is None:
        there = [s for s in SPLITS if s != split and _read(dataset, s) is not None]
        raise ValueError(f"dataset {dataset!r} has no split {split!r}: it has {', '.join(there) or 'none'}")
    dialogues, skipped = [], 0
    for where, utterances, acts in rows:
        if len(utterances) != len(acts):
            skipped += 1
            continue
        if not set(acts) <= ACTS.keys():
            raise ValueError(f"{where}: expected acts from 1 to 4, got {acts}")
        dialogues.append(Dialogue(tuple(utterances), tuple(acts)))
    left_out = 0
    if split == "train" and not raw_split:
        held_out = {tuple(row[1]) for other in SPLITS[1:] for row in _read(dataset, other) or ()}
        kept = [dialogue for dialogue in dialogues if dialogue.utterances not in held_out]
        left_out = len(dialogues) - len(kept)
        dialogues = kept
    if skipped or left_out:
        print(
            f"{dataset}, {split}: {len(dialogues):,} dialogues ({left_out} left out that also stand in validation or "
            f"test, {skipped} skipped whose utterances and acts differ in number)",
            file=sys.stderr,
        )
    if not dialogues:
        raise ValueError(f"dataset {dataset!r}, split {split!r}: no dialogue in it")
    return tuple(dialogues)


# A row is (where it stands, for errors; utterances; acts). A reader returns None where the source lacks the split.
Rows = Iterator[tuple[str, list[str], list[int]]]


def _read(dataset: str, split: str) -> Rows | None:
    if dataset == "builtin":
        with asset("dialogues.jsonl") as path:
            return _read_jsonl(path, split)
    path = Path(dataset).expanduser()
    if path.is_file():
        if path.suffix != ".jsonl":
            raise ValueError(f"dataset {dataset!r} is a file, but not a .jsonl: {_FORMATS}")
        return _read_jsonl(path, split)
    if path.is_dir():
        if (path / "dataset_dict.json").exists():
            return _read_saved(path, split)
        return _read_original(path, split)
    if dataset in HUB_ALIASES or (re.fullmatch(r"[\w.-]+/[\w.-]+", dataset) and not dataset.startswith(".")):
        return _read_hub(dataset, split)
    raise ValueError(f"unknown dataset {dataset!r}: {_FORMATS}")


def _read_jsonl(path: Path, split: str) -> Rows | None:
    rows = []
    for number, line in enumerate(_lines(path, path.read_bytes()), 1):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
            utterances, acts, belongs = record["dialog"], record["act"], record.get("split", "train")
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{where}: expected {{"dialog": [...], "act": [...]}}, got {line[:80]!r}') from error
        if belongs not in SPLITS:
            raise ValueError(f"{where}: expected 'split' to be one of {', '.join(SPLITS)}, got {belongs!r}")
        if belongs == split:
            rows.append(_row(where, utterances, acts))
    return iter(rows) if rows else None


def _read_original(folder: Path, split: str) -> Rows | None:
    """The release of Li et al. (2017): one dialogue a line, ``__eou__`` after every utterance, acts in a twin file."""
    texts, acts = f"dialogues_{split}.txt", f"dialogues_act_{split}.txt"
    archive = folder / f"{split}.zip"
    if archive.is_file():
        try:
            with zipfile.ZipFile(archive) as members:
                members = {Path(name).name: members.read(name) for name in members.namelist()}
            files = [(f"{archive}/{split}/{name}", members[name]) for name in (texts, acts)]
        except (zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{archive} is not a readable zip file: {error}") from error
        except KeyError as error:
            raise ValueError(f"{archive} lacks {error.args[0]}: expected {texts} and {acts} in it") from error
    else:
        inner = folder / split if (folder / split).is_dir() else folder
        missing = [name for name in (texts, acts) if not (inner / name).is_file()]
        if inner == folder and len(missing) == 2:
            if any((folder / name).exists() for s in SPLITS for name in (f"{s}.zip", s, f"dialogues_{s}.txt")):
                return None
            raise ValueError(f"folder {str(folder)!r} holds no dataset: {_FORMATS}")
        if missing:
            raise ValueError(f"{inner / missing[0]} is missing: expected {texts} and {acts} in {inner}")
        files = [(str(inner / name), (inner / name).read_bytes()) for name in (texts, acts)]
    (text_name, text), (act_name, act) = files
    text_lines, act_lines = _lines(text_name, text), _lines(act_name, act)
    if len(text_lines) != len(act_lines):
        raise ValueError(f"{act_name} has {len(act_lines)} lines: expected {len(text_lines)}, as {text_name} has")
    return _parse_original(text_name, text_lines, act_name, act_lines)


def _parse_original(text_name: str, text_lines: list[str], act_name: str, act_lines: list[str]) -> Rows:
    for number, (text, act) in enumerate(zip(text_lines, act_lines, strict=True), 1):
        utterances = [utterance.strip() for utterance in text.split("__eou__")]
        if utterances.pop() or not utterances:
            raise ValueError(f"{text_name}, line {number}: expected __eou__ after every utterance, got {text[-60:]!r}")
        try:
            acts = [int(a) for a in act.split()]
        except ValueError as error:
            raise ValueError(f"{act_name}, line {number}: expected numbers from 1 to 4, got {act[:60]!r}") from error
        yield f"{act_name}, line {number}", utterances, acts


def _lines(name: str | Path, content: bytes) -> list[str]:
    try:
        # Not splitlines(): an utterance may hold U+2028 or a form feed.
        return content.decode("utf-8").removesuffix("\n").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{name}, line {line}: expected UTF-8 text, got byte 0x{content[error.start]:02x}") from error


def _read_saved(folder: Path, split: str) -> Rows | None:
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # from three libraries, and none of them names the folder
        raise ValueError(f"cannot read {folder}, written by save_to_disk ({type(error).__name__}: {error})") from error
    return _rows_of(saved[split], f"{folder}, {split}") if split in saved else None


def _read_hub(dataset: str, split: str) -> Rows | None:
    import datasets

    name = HUB_ALIASES.get(dataset, dataset)
    if hub_is_off():
        datasets.config.HF_HUB_OFFLINE = True  # what was downloaded before still loads
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the hub's client raises a dozen kinds; each is the same news for the user
        raise ValueError(
            f"dataset {name!r} is no file or folder here, nor can it be had from the hub "
            f"({type(error).__name__}: {error})"
        ) from error
    return _rows_of(loaded[split], f"{name}, {split}") if split in loaded else None


def _rows_of(split, where: str) -> Rows:
    if not {"dialog", "act"} <= set(split.column_names):
        raise ValueError(f"{where}: expected columns 'dialog' and 'act', got {split.column_names}: rename_columns them")
    return (
        _row(f"{where}, row {i}", row["dialog"], row["act"])
        for i, row in enumerate(split.select_columns(["dialog", "act"]))
    )


def _row(where: str, dialog: object, act: object) -> tuple[str, list[str], list[int]]:
    for name, value, kind, what in (("dialog", dialog, str, "texts"), ("act", act, int, "numbers")):
        if not (isinstance(value, list) and all(isinstance(item, kind) for item in value)):
            raise ValueError(f"{where}: expected {name!r} to be a list of {what}, got {str(value)[:80]!r}")
    return where, [utterance.strip() for utterance in dialog], act
