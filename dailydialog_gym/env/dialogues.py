"""Load dialogues: the supported formats, the splits, and which training dialogues are left out."""

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
# The numbering of DailyDialog's readme.txt.
ACTS = {1: "inform", 2: "question", 3: "directive", 4: "commissive"}
# `daily_dialog` on the hub is a script dataset, which `datasets` no longer loads. This copy is stored as Parquet.
HUB_ALIASES = {"daily_dialog": "OpenRL/daily_dialog"}

_FORMATS = (
    "expected 'builtin'; a folder in DailyDialog's format (SPLIT.zip, SPLIT/dialogues_SPLIT.txt or "
    "dialogues_SPLIT.txt); a folder written by datasets.save_to_disk; a .jsonl file; or a hub id such as 'daily_dialog'"
)


@dataclass(frozen=True)
class Dialogue:
    """One dialogue: its utterances in order, and the dialogue act (1 to 4, see `ACTS`) of each utterance."""

    utterances: tuple[str, ...]
    acts: tuple[int, ...]


@lru_cache(maxsize=8)
def load_dialogues(dataset: str, split: str, raw_split: bool = False) -> tuple[Dialogue, ...]:
    """Load the dialogues of one split.

    Two kinds of dialogues are removed, and their numbers are printed to stderr: training dialogues that also occur in
    the validation or test split, and dialogues whose numbers of utterances and acts differ. The result is cached.

    Args:
        dataset: ``"builtin"``; a folder in the original DailyDialog format (``SPLIT.zip``, ``SPLIT/`` or flat text
            files); a folder with a ``DatasetDict`` written by ``save_to_disk``; a ``.jsonl`` file with a line
            ``{"dialog": [...], "act": [...], "split": "test"}`` per dialogue, where ``"split"`` defaults to
            ``"train"``; or the id of a dataset on the Hugging Face hub. ``"daily_dialog"`` is an alias of
            ``"OpenRL/daily_dialog"``.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        raw_split: keep the training dialogues that also occur in validation or test. Published results on DailyDialog
            use these uncleaned splits.

    Raises:
        ValueError: the dataset, the split or a line of a file cannot be read; the message says which and why.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    rows = _read(dataset, split)
    if rows is None:
        available = [s for s in SPLITS if s != split and _read(dataset, s) is not None]
        raise ValueError(f"dataset {dataset!r} has no split {split!r}: it has {', '.join(available) or 'none'}")
    dialogues, num_mismatched = [], 0
    for where, utterances, acts in rows:
        if len(utterances) != len(acts):
            num_mismatched += 1
            continue
        if not set(acts) <= ACTS.keys():
            raise ValueError(f"{where}: expected acts from 1 to 4, got {acts}")
        dialogues.append(Dialogue(tuple(utterances), tuple(acts)))
    num_leaked = 0
    if split == "train" and not raw_split:
        held_out = {tuple(row[1]) for other in SPLITS[1:] for row in _read(dataset, other) or ()}
        kept = [dialogue for dialogue in dialogues if dialogue.utterances not in held_out]
        num_leaked = len(dialogues) - len(kept)
        dialogues = kept
    if num_mismatched or num_leaked:
        print(
            f"{dataset}, {split}: {len(dialogues):,} dialogues ({num_leaked} left out because they are also in "
            f"validation or test, {num_mismatched} skipped because their numbers of utterances and acts differ)",
            file=sys.stderr,
        )
    if not dialogues:
        raise ValueError(f"dataset {dataset!r}, split {split!r} contains no dialogue")
    return tuple(dialogues)


# A row is (location for error messages, utterances, acts). A reader returns None if the dataset lacks the split.
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
            utterances, acts, row_split = record["dialog"], record["act"], record.get("split", "train")
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{where}: expected {{"dialog": [...], "act": [...]}}, got {line[:80]!r}') from error
        if row_split not in SPLITS:
            raise ValueError(f"{where}: expected 'split' to be one of {', '.join(SPLITS)}, got {row_split!r}")
        if row_split == split:
            rows.append(_row(where, utterances, acts))
    return iter(rows) if rows else None


def _read_original(folder: Path, split: str) -> Rows | None:
    """Read the format of Li et al. (2017).

    The text file has one dialogue per line, with ``__eou__`` after every utterance. The lines of a second file hold
    the acts of the same dialogues.
    """
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
        # str.splitlines() would also split at U+2028 and form feeds, which occur inside utterances.
        return content.decode("utf-8").removesuffix("\n").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{name}, line {line}: expected UTF-8 text, got byte 0x{content[error.start]:02x}") from error


def _read_saved(folder: Path, split: str) -> Rows | None:
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # errors come from three libraries and don't name the folder
        raise ValueError(f"cannot read {folder}, written by save_to_disk ({type(error).__name__}: {error})") from error
    return _rows_of(saved[split], f"{folder}, {split}") if split in saved else None


def _read_hub(dataset: str, split: str) -> Rows | None:
    import datasets

    name = HUB_ALIASES.get(dataset, dataset)
    if hub_is_off():
        datasets.config.HF_HUB_OFFLINE = True  # makes `datasets` load from its cache without network retries
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the hub's client raises many types, and all of them mean the same to the user
        raise ValueError(
            f"dataset {name!r} is not a local file or folder, and it cannot be loaded from the Hugging Face hub "
            f"({type(error).__name__}: {error})"
        ) from error
    return _rows_of(loaded[split], f"{name}, {split}") if split in loaded else None


def _rows_of(split, where: str) -> Rows:
    if not {"dialog", "act"} <= set(split.column_names):
        raise ValueError(
            f"{where}: expected columns 'dialog' and 'act', got {split.column_names}: rename them with rename_columns"
        )
    return (
        _row(f"{where}, row {i}", row["dialog"], row["act"])
        for i, row in enumerate(split.select_columns(["dialog", "act"]))
    )


def _row(where: str, dialog: object, act: object) -> tuple[str, list[str], list[int]]:
    for name, value, kind, what in (("dialog", dialog, str, "texts"), ("act", act, int, "numbers")):
        if not (isinstance(value, list) and all(isinstance(item, kind) for item in value)):
            raise ValueError(f"{where}: expected {name!r} to be a list of {what}, got {str(value)[:80]!r}")
    return where, [utterance.strip() for utterance in dialog], act
