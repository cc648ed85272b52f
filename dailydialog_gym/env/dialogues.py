"""Load dialogues: the supported formats, the splits, and which training dialogues are left out."""

from __future__ import annotations

import json
import re
import reprlib
import sys
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from glob import escape
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dailydialog_gym.embedded import asset
from dailydialog_gym.hub import hub_is_off

if TYPE_CHECKING:
    import datasets

SPLITS = ("train", "validation", "test")
_SPLIT_NAMES = {**{name: name for name in SPLITS}, **dict.fromkeys(("valid", "val", "dev", "eval"), "validation")}
TEST_SHARE = 0.05
# The numbering of DailyDialog's readme.txt. 0 is an utterance without an act.
ACTS = {1: "inform", 2: "question", 3: "directive", 4: "commissive"}
_ACT_NUMBERS = {**{name: number for number, name in ACTS.items()}, "__dummy__": 0, "": 0}
# `daily_dialog` on the hub is a script dataset, which `datasets` no longer loads. This copy is stored as Parquet.
HUB_ALIASES = {"daily_dialog": "OpenRL/daily_dialog"}

# The names of columns, the first that is there counts; upper and lower case are the same.
_DIALOGUE_COLUMNS = ("dialog", "dialogue", "utterances", "messages", "conversations")
_ACT_COLUMNS = ("act", "acts", "labels", "act_label", "dialogue_act")
_UTTERANCE_COLUMNS = ("utterance", "text")  # of datasets with an utterance in a row
_ID_COLUMNS = ("dialog_id", "dialogue_id", "conversation_id")
# Roles of messages that nobody says to anybody
_SILENT_ROLES = ("system", "developer", "tool", "function")

_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_NO_DATA = {"dataset_info.json", "dataset_infos.json", "state.json"}  # what `datasets` keeps beside the data
_FORMATS = (
    "expected 'builtin'; a folder in DailyDialog's format (SPLIT.zip, SPLIT/dialogues_SPLIT.txt or "
    "dialogues_SPLIT.txt); a folder written by datasets.save_to_disk; a .jsonl, .json, .csv or .parquet file, or a "
    "folder of them; or a hub id such as 'daily_dialog'"
)


@dataclass(frozen=True)
class Dialogue:
    """One dialogue: its utterances in order, and the act of each: 1 to 4, see `ACTS`, or 0 where it is not known."""

    utterances: tuple[str, ...]
    acts: tuple[int, ...]


@lru_cache(maxsize=8)
def load_dialogues(
    dataset: str, split: str, raw_split: bool = False, test_share: float = TEST_SHARE
) -> tuple[Dialogue, ...]:
    """Load the dialogues of one split.

    Two kinds of dialogues are removed, and their numbers are printed to stderr: training dialogues that also occur in
    the validation or test split, and dialogues whose numbers of utterances and acts differ. Dialogues that differ in
    case, punctuation and blanks alone count as the same, except in DailyDialog itself, whose published numbers of
    dialogues are those of exact copies. The line on stderr also names the columns that are not ``dialog`` and ``act``,
    and tells that the dialogues have no acts. The result is cached.

    Args:
        dataset: ``"builtin"``; a file, ``.jsonl``, ``.json`` (a list, or lines), ``.csv`` or ``.parquet``; a folder of
            such files, whose splits are in their names; a folder in the original DailyDialog format (``SPLIT.zip``,
            ``SPLIT/`` or flat text files); a folder written by ``save_to_disk``; or the id of a dataset on the Hugging
            Face hub. ``"daily_dialog"`` is an alias of ``"OpenRL/daily_dialog"``.

            A row is a dialogue. Its utterances are in the column ``dialog``, ``dialogue``, ``utterances``, ``messages``
            or ``conversations``: texts, or messages with ``role`` and ``content``, or ``from`` and ``value``. Their
            acts, numbers or names, may be in ``act``, ``acts`` or ``labels``. In a single file a column ``split`` may
            name the split of each row, by default ``"train"``. Rows with one utterance each are joined, by
            ``dialogue_id`` or by ``act_label``.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        raw_split: keep the training dialogues that also occur in validation or test. Published results on DailyDialog
            use these uncleaned splits.
        test_share: where there is no validation or no test split, it is this share of the training dialogues, at least
            one of them. A hash of the dialogue decides, so that a dialogue stays where it is when others are added.
            With 0 a missing split is an error.

    Raises:
        ValueError: the dataset, the split or a line of a file cannot be read; the message says which and why.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    if not 0 <= test_share < 0.5:
        raise ValueError(f"test_share must be at least 0 and below 0.5, got {test_share}")
    source, notes = _open(dataset), _Notes()
    rows = _rows_of_split(source, split, test_share, notes)
    if rows is None:
        raise ValueError(f"dataset {dataset!r} has no split {split!r}: it has {', '.join(source.splits) or 'none'}")
    dialogues = [Dialogue(tuple(row.utterances), tuple(row.acts)) for row in rows if row.is_whole]
    notes.mismatched = len(rows) - len(dialogues)
    notes.has_acts = any(any(dialogue.acts) for dialogue in dialogues)
    if split == "train" and not raw_split:
        dialogues = _without_copies(source, dialogues, notes)
    if remarks := notes.remarks():
        print(f"{dataset}, {split}: {len(dialogues):,} dialogues ({'; '.join(remarks)})", file=sys.stderr)
    if not dialogues:
        raise ValueError(f"dataset {dataset!r}, split {split!r} contains no dialogue")
    return tuple(dialogues)


class _Row(NamedTuple):
    """A dialogue as it was read. The numbers of utterances and acts may differ."""

    utterances: list[str]
    acts: list[int]

    @property
    def is_whole(self) -> bool:
        return len(self.utterances) == len(self.acts)


@dataclass
class _Notes:
    """What is remarkable about a split, for the line that `load_dialogues` prints."""

    columns: dict[str, None] = field(default_factory=dict)  # an ordered set
    silent: int = 0  # messages that are no utterances
    unnamed: list[str] = field(default_factory=list)  # files whose names have no split, beside files whose names do
    held_out: str = ""
    mismatched: int = 0
    copies: int = 0  # training dialogues that are left out
    near_copies: int = 0  # training dialogues that are kept although they differ in case, punctuation and blanks alone
    has_acts: bool = True

    def remarks(self) -> list[str]:
        remarks = []
        if self.mismatched or self.copies:
            remarks = [
                f"{self.copies} left out because they are also in validation or test, "
                f"{self.mismatched} skipped because their numbers of utterances and acts differ"
            ]
        if self.near_copies:
            remarks.append(f"{self.near_copies} near-duplicates of validation or test kept, as in published numbers")
        if self.held_out:
            remarks.append(self.held_out)
        if not self.columns.keys() <= {"dialog", "act"}:
            remarks.append(f"from the columns {', '.join(self.columns)}")
        if not self.has_acts:
            remarks.append("no acts, so no intent reward")
        if self.silent:
            remarks.append(f"{self.silent} messages left out: of the system, of tools, or without text")
        if self.unnamed:
            remarks.append(f"files left out because their names have no split: {', '.join(self.unnamed)}")
        return remarks


@dataclass(frozen=True)
class _Source:
    """A dataset that has been found.

    Attributes:
        splits: by split, a function that reads its rows.
        is_original: it is in the format of DailyDialog's release, in which a missing split is a missing file.
        is_dailydialog: it is DailyDialog.
    """

    splits: dict[str, Callable[[_Notes], list[_Row]]]
    is_original: bool = False
    is_dailydialog: bool = False


def _open(dataset: str) -> _Source:
    if dataset == "builtin":
        with asset("dialogues.jsonl") as path:
            return _open_file(path)
    path = Path(dataset).expanduser()
    if path.is_file():
        if path.suffix.lower() not in _SUFFIXES:
            raise ValueError(f"dataset {dataset!r} is a file, but none of {', '.join(_SUFFIXES)}: {_FORMATS}")
        return _open_file(path)
    if path.is_dir():
        return _open_folder(path)
    if path.is_symlink() or path.exists():
        kind = "a pipe, a socket or a device" if path.exists() else "a symbolic link that leads to no file"
        raise ValueError(f"no such file or folder: {dataset!r} is {kind}")
    looks_like_id = re.fullmatch(r"[\w.-]+/[\w.-]+", dataset) and not dataset.startswith(".")
    if dataset in HUB_ALIASES or (looks_like_id and path.suffix.lower() not in (*_SUFFIXES, ".zip", ".txt")):
        return _open_hub(dataset)
    raise ValueError(f"no such file or folder: {dataset!r}: {_FORMATS}")


def _rows_of_split(source: _Source, split: str, test_share: float, notes: _Notes) -> list[_Row] | None:
    """The rows of a split, without those held out, or those held out for it; None if there is no such split."""
    missing = [name for name in ("test", "validation") if name not in source.splits]
    if source.is_original or test_share == 0 or "train" not in source.splits:
        missing = []
    if split not in (*source.splits, *missing):
        return None
    if not missing or split not in ("train", *missing):
        return source.splits[split](notes)
    rows = source.splits["train"](notes)
    keys = [_near_key(row.utterances) for row in rows]
    split_of = _hold_out(keys, missing, test_share)
    number = sum(split_of.get(key) is not None for key in keys)
    notes.held_out = f"{number} of {len(rows)} held out as {' and '.join(missing)}, see --test-share"
    return [row for key, row in zip(keys, rows, strict=True) if split_of.get(key, "train") == split]


def _hold_out(keys: Iterable[str], splits: Sequence[str], share: float) -> dict[str, str]:
    """The split of each dialogue that is held out of training.

    Each of the splits gets the dialogues whose hash is in a range of its own, and at least one, as training does. Where
    there are too few dialogues for that, none is held out.

    Args:
        keys: the dialogues, see `_near_key`.
        splits: the splits that are missing.
        share: the share of each.
    """
    ranked = sorted((blake2b(key.encode(), digest_size=8).digest(), key) for key in set(keys))
    if len(ranked) <= len(splits):
        return {}
    fractions = [int.from_bytes(digest) / 2**64 for digest, _ in ranked]
    split_of, start = {}, 0
    for number, split in enumerate(splits, 1):
        most = len(ranked) - (len(splits) - number) - 1  # the rest needs one for each later split and one for training
        end = min(max(start + 1, sum(fraction < number * share for fraction in fractions)), most)
        split_of |= dict.fromkeys([key for _, key in ranked[start:end]], split)
        start = end
    return split_of


def _without_copies(source: _Source, dialogues: list[Dialogue], notes: _Notes) -> list[Dialogue]:
    """The training dialogues that are not also in the source's validation or test split."""
    splits = [source.splits[name] for name in SPLITS[1:] if name in source.splits]
    others = [row.utterances for read in splits for row in read(_Notes())]
    exact, near = {tuple(utterances) for utterances in others}, {_near_key(utterances) for utterances in others}
    kept = [dialogue for dialogue in dialogues if dialogue.utterances not in exact]
    far = [dialogue for dialogue in kept if _near_key(dialogue.utterances) not in near]
    if source.is_dailydialog:
        notes.near_copies = len(kept) - len(far)
    else:
        kept = far
    notes.copies = len(dialogues) - len(kept)
    return kept


def _near_key(utterances: Collection[str]) -> str:
    """What near-duplicates have in common: the letters and digits of each utterance, in lower case."""
    return "\n".join(re.sub(r"[\W_]+", "", text.casefold()) or text for text in utterances)


# Files


def _open_file(path: Path) -> _Source:
    """A single file, whose rows may name their splits."""
    notes = _Notes()
    by_split: dict[str, list[_Row]] = {}
    for split, row in _rows(_records(path), notes):
        by_split.setdefault(split, []).append(row)

    def read(split: str, to: _Notes) -> list[_Row]:
        to.columns, to.silent = notes.columns, notes.silent
        return by_split.get(split, [])

    return _Source({split: partial(read, split) for split in SPLITS if split in by_split or not by_split})


def _open_folder(folder: Path) -> _Source:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return _open_saved(folder)
    original = [split for split in SPLITS if any(path.exists() for path in _original_files(folder, split))]
    if original:
        splits = {split: partial(_read_original, folder, split) for split in original}
        return _Source(splits, is_original=True, is_dailydialog=True)
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _SUFFIXES
        and path.name not in _NO_DATA
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    if not files:
        raise ValueError(f"folder {str(folder)!r} holds no dataset: {_FORMATS}")
    if len(files) == 1:
        return _open_file(files[0])
    by_split: dict[str | None, list[Path]] = {}
    for path in files:
        by_split.setdefault(_split_of_file(path.relative_to(folder)), []).append(path)
    unnamed = [] if len(by_split) == 1 else by_split.pop(None, [])
    for split, paths in by_split.items():
        kinds = {str(path.parent.relative_to(folder) / f"*{path.suffix}") for path in paths}
        if len(kinds) > 1:
            raise ValueError(
                f"folder {str(folder)!r} holds several datasets, {split or 'train'} is in {', '.join(sorted(kinds))}: "
                "name the folder or the file of one of them"
            )

    def read(split: str, paths: list[Path], notes: _Notes) -> list[_Row]:
        notes.unnamed = [str(path.relative_to(folder)) for path in unnamed]
        return [row for path in paths for _, row in _rows(_records(path), notes, split)]

    names = {split or "train": paths for split, paths in by_split.items()}
    return _Source({split: partial(read, split, names[split]) for split in SPLITS if split in names})


def _split_of_file(path: Path) -> str | None:
    """The split that is a word of a file's name, or else of its folder's: data/train-0000.parquet, train/0000.parquet.

    A name without such a word has no split.
    """
    for part in (path.stem, *reversed(path.parts[:-1])):
        for word in re.split(r"[^a-z0-9]+", part.lower()):
            if word in _SPLIT_NAMES:
                return _SPLIT_NAMES[word]
    return None


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a file, each with its place for error messages.

    JSON is read by Python, not by `datasets`: the reader of `datasets` names no line, drops lone surrogates without a
    word, makes a number of 5,000 digits infinite, and crashes with deep nesting.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _read_table(path, "parquet")
        return
    if suffix == ".csv":
        for where, record in _read_table(path, "csv"):
            yield where, {column: _parse_cell(where, cell) for column, cell in record.items()}
        return
    lines = _lines(path, path.read_bytes())
    if suffix == ".json" and next((line.lstrip()[0] for line in lines if line.strip()), "") == "[":
        yield from _read_json_list(path, "\n".join(lines))
        return
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if line.strip():
            yield where, _parse_json(where, line, 0, json.loads)


def _read_json_list(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """The entries of a JSON list, each with the line in which it begins."""
    decoder, mark = json.JSONDecoder(), re.compile(r"\s*(\[\s*\]|[\[\],]?)\s*")
    before, position, line = "[", 0, 1
    while True:
        match = mark.match(text, position)
        line += text.count("\n", position, match.end())
        where, position = f"{path}, line {line}", match.end()
        if match[1].endswith("]"):
            if position < len(text):
                raise ValueError(f"{where}: expected nothing after the list, got {text[position : position + 80]!r}")
            return
        if match[1] != before:
            raise ValueError(f"{where}: expected , or ] after an entry, got {text[position : position + 80]!r}")
        record, end = _parse_json(where, text, position, partial(decoder.raw_decode, idx=position))
        yield where, record
        line += text.count("\n", position, end)
        before, position = ",", end


def _parse_json(where: str, text: str, start: int, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except RecursionError as error:
        raise ValueError(f"{where}: {_EXPECTED}, got lists in lists too deep to read") from error
    except ValueError as error:  # also a number of thousands of digits
        raise ValueError(f"{where}: {_EXPECTED}, got {text[start : start + 80]!r} ({error})") from error


def _read_table(path: Path, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    options = {"keep_default_na": False} if kind == "csv" else {}  # pandas would take the utterance "None" for no text
    try:
        # Streaming leaves no copy in the cache of `datasets`
        table = datasets.load_dataset(kind, data_files=[escape(str(path))], split="train", streaming=True, **options)
        for number, record in enumerate(_records_of(table)):
            yield f"{path}, row {number}", record
    except Exception as error:  # errors come from three libraries and don't name the file
        raise ValueError(f"cannot read {path} ({type(error).__name__}: {error})") from error


def _parse_cell(where: str, cell: Any) -> Any:
    """A cell of a CSV file, in which a list is written as JSON."""
    if not (isinstance(cell, str) and cell.startswith("[")):
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected a list as JSON, got {cell[:80]!r}") from error


def _lines(name: str | Path, content: bytes) -> list[str]:
    try:
        # str.splitlines() would also split at U+2028 and form feeds, which occur inside utterances.
        text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
        return text.removesuffix("\n").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{name}, line {line}: expected UTF-8 text, got byte 0x{error.object[error.start]:02x}"
        ) from error


# DailyDialog's own format, and datasets


def _original_files(folder: Path, split: str) -> tuple[Path, ...]:
    texts, acts = f"dialogues_{split}.txt", f"dialogues_act_{split}.txt"
    return (folder / f"{split}.zip", *(inner / name for inner in (folder / split, folder) for name in (texts, acts)))


def _read_original(folder: Path, split: str, notes: _Notes) -> list[_Row]:
    """Read the format of Li et al. (2017).

    The text file has one dialogue per line, with ``__eou__`` after every utterance. The lines of a second file hold
    the acts of the same dialogues.
    """
    archive, *files = _original_files(folder, split)
    if archive.is_file():
        names = [path.name for path in files[:2]]
        contents = [(f"{archive}/{split}/{name}", content) for name, content in _unzip(archive, names).items()]
    else:
        pair = files[:2] if any(path.exists() for path in files[:2]) else files[2:]
        for path in pair:
            if not path.is_file():
                expected = " and ".join(each.name for each in pair)
                raise ValueError(f"{path} is missing: expected {expected} in {path.parent}")
        contents = [(str(path), path.read_bytes()) for path in pair]
    (text_name, text), (act_name, act) = contents
    text_lines, act_lines = _lines(text_name, text), _lines(act_name, act)
    if len(text_lines) != len(act_lines):
        raise ValueError(f"{act_name} has {len(act_lines)} lines: expected {len(text_lines)}, as {text_name} has")
    lines = enumerate(zip(text_lines, act_lines, strict=True), 1)
    return [_parse_original(f"{text_name}, line {n}", text, f"{act_name}, line {n}", act) for n, (text, act) in lines]


def _unzip(archive: Path, names: list[str]) -> dict[str, bytes]:
    """The contents of the members with these names, in whatever folder of the archive. Nothing else is unpacked."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [info for info in opened.infolist() if not info.is_dir()]
            contents = {}
            for name in names:
                found = [info for info in members if Path(info.filename).name == name]
                if not found:
                    raise ValueError(f"{archive} lacks {name}: expected {' and '.join(names)} in it")
                if len(found) > 1:
                    raise ValueError(f"{archive} has {len(found)} members named {name}: expected one")
                if found[0].flag_bits & 1:
                    raise ValueError(f"{archive} is encrypted: unpack it with its password, and name the folder")
                contents[name] = opened.read(found[0])
            return contents
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{archive} is not a readable zip file: {error}") from error


def _parse_original(text_where: str, text: str, act_where: str, act: str) -> _Row:
    utterances = [_check_text(text_where, utterance) for utterance in text.split("__eou__")]
    if utterances.pop() or not utterances:
        raise ValueError(f"{text_where}: expected __eou__ after every utterance, got {text[-60:]!r}")
    try:
        acts = [int(a) for a in act.split()]
    except ValueError as error:
        raise ValueError(f"{act_where}: expected numbers from 1 to 4, got {act[:60]!r}") from error
    return _Row(utterances, _check_acts(act_where, acts))


def _open_saved(folder: Path) -> _Source:
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # errors come from three libraries and don't name the folder
        raise ValueError(f"cannot read {folder}, written by save_to_disk ({type(error).__name__}: {error})") from error
    return _open_tables(str(folder), {"train": saved} if isinstance(saved, datasets.Dataset) else saved)


def _open_hub(dataset: str) -> _Source:
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
    return _open_tables(name, loaded, is_dailydialog=name in HUB_ALIASES.values())


def _open_tables(name: str, tables: Mapping[str, datasets.Dataset], is_dailydialog: bool = False) -> _Source:
    def read(split: str, table: datasets.Dataset, notes: _Notes) -> list[_Row]:
        records = enumerate(_records_of(table))
        return [row for _, row in _rows(((f"{name}, {split}, row {i}", record) for i, record in records), notes, split)]

    splits = {_SPLIT_NAMES.get(split.lower(), split): partial(read, split, table) for split, table in tables.items()}
    return _Source(splits, is_dailydialog=is_dailydialog)


def _records_of(table: datasets.Dataset | datasets.IterableDataset) -> Iterator[dict[str, Any]]:
    """The rows of a table, with names instead of numbers where a column's features name its labels after acts.

    Columns that are of no use, which may be pictures, are not read where the table knows its columns.
    """
    import datasets

    texts, others = {*_DIALOGUE_COLUMNS, *_UTTERANCE_COLUMNS}, {*_ACT_COLUMNS, *_ID_COLUMNS, "split"}
    columns = [column for column in table.column_names or () if column.lower() in texts | others]
    if texts & {column.lower() for column in columns}:  # otherwise the error shall show all columns
        table = table.select_columns(columns)
    names: dict[str, dict[int, str]] = {}
    for column, feature in (table.features or {}).items():
        label = feature.feature if isinstance(feature, datasets.List) else feature
        if isinstance(label, datasets.ClassLabel) and {name.lower() for name in label.names} <= _ACT_NUMBERS.keys():
            names[column] = dict(enumerate(label.names))  # of no other number, such as -1 for an unknown label
    for record in table:
        for column, name_of in names.items():
            value = record[column]
            if isinstance(value, list):
                record[column] = [name_of.get(number) for number in value]
            else:
                record[column] = name_of.get(value)
        yield record


# Rows


def _rows(records: Iterable[tuple[str, Any]], notes: _Notes, split: str | None = None) -> list[tuple[str, _Row]]:
    """The dialogues of a dataset's rows, each with its split: the one given, or the one that the row names."""
    rows: list[tuple[str, _Row]] = []
    by_id: dict[tuple[str, str], _Row] = {}
    for where, record in records:
        if not isinstance(record, dict):
            raise ValueError(f"{where}: {_EXPECTED}, got {_shown(record)}")
        row_split = split or _split_of(where, record)
        dialogue, act, key = (_find(record, names) for names in (_DIALOGUE_COLUMNS, _ACT_COLUMNS, _ID_COLUMNS))
        text = dialogue or _find(record, _UTTERANCE_COLUMNS)
        if key and text and isinstance(record[text], str):  # an utterance in each row
            notes.columns |= dict.fromkeys(column for column in (key, text, act) if column)
            row_id = (row_split, str(record[key]))
            if row_id not in by_id:
                by_id[row_id] = _Row([], [])
                rows.append((row_split, by_id[row_id]))
            row = by_id[row_id]
            row.utterances.append(_check_text(where, record[text]))
            row.acts.extend(_acts(where, act, [record[act]] if act else None, 1))
            continue
        if dialogue is None:
            raise ValueError(f"{where}: {_expected_columns(record)}")
        notes.columns |= dict.fromkeys(column for column in (dialogue, act) if column)
        utterances, is_said = _utterances(where, dialogue, record[dialogue])
        notes.silent += is_said.count(False)
        if act and act.lower() == "act_label":  # the dialogue so far in each row, with the act of its last utterance
            acts = _acts(where, act, [record[act]], 1)
            if rows and rows[-1][0] == row_split and rows[-1][1].utterances == utterances[:-1]:
                rows[-1][1].utterances.append(utterances[-1])
                rows[-1][1].acts.extend(acts)
            else:
                rows.append((row_split, _Row(utterances, [0] * (len(utterances) - 1) + acts)))
            continue
        acts = _acts(where, act, record[act] if act else None, len(is_said))
        if len(acts) == len(is_said):
            acts = [number for number, said in zip(acts, is_said, strict=True) if said]
        rows.append((row_split, _Row(utterances, acts)))
    return rows


def _find(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The column with the first of these names that is there."""
    columns = {column.lower(): column for column in record}
    return next((columns[name] for name in names if name in columns), None)


def _split_of(where: str, record: dict[str, Any]) -> str:
    split = record.get("split") or "train"
    if not (isinstance(split, str) and split.lower() in _SPLIT_NAMES):
        raise ValueError(f"{where}: expected 'split' to be one of {', '.join(_SPLIT_NAMES)}, got {_shown(split)}")
    return _SPLIT_NAMES[split.lower()]


def _utterances(where: str, column: str, entries: Any) -> tuple[list[str], list[bool]]:
    """The utterances of a dialogue, and for each of its entries whether it is one: messages of the system are none."""
    if not isinstance(entries, list):
        raise ValueError(f"{where}: expected {column!r} to be a list of texts, got {_shown(entries)}")
    utterances, is_said = [], []
    for entry in entries:
        role, text = "", entry
        if isinstance(entry, dict):
            role, text = (entry.get(a) or entry.get(b) for a, b in (("role", "from"), ("content", "value")))
            if not {"content", "value"} & entry.keys():
                text = entry  # an error below
        is_empty = isinstance(entry, dict) and (text is None or (isinstance(text, str) and not text.strip()))
        is_said.append(role not in _SILENT_ROLES and not is_empty)
        if is_said[-1]:
            if not isinstance(text, str):
                raise ValueError(f"{where}: expected {column!r} to be a list of texts, got {_shown(entries)}")
            utterances.append(_check_text(where, text))
    return utterances, is_said


def _check_text(where: str, text: str) -> str:
    """The text without blanks around it. Tokenizers refuse lone surrogates, and other programs NUL characters."""
    if bad := re.search("[\x00\ud800-\udfff]", text):
        raise ValueError(f"{where}: expected text, got the character U+{ord(bad[0]):04X} in {text[:80]!r}")
    return text.strip()


def _acts(where: str, column: str | None, acts: Any, count: int) -> list[int]:
    """Acts by number; ``count`` zeros if there are none."""
    if acts is None or acts == "":
        return [0] * count
    numbers = [_act_number(act) for act in acts] if isinstance(acts, list) else [None]
    if None in numbers:
        names = ", ".join(ACTS.values())
        raise ValueError(f"{where}: expected {column!r} to be a list of numbers or names ({names}), got {_shown(acts)}")
    return _check_acts(where, numbers)


def _act_number(act: Any) -> int | None:
    """The number of an act, 0 for a missing one, None for what is no act."""
    if act is None or act != act:  # NaN is what pandas makes of a missing number
        return 0
    if isinstance(act, str):
        name = act.strip().lower()
        return int(name) if name in {"0", *map(str, ACTS)} else _ACT_NUMBERS.get(name)
    if isinstance(act, bool) or not (isinstance(act, int) or (isinstance(act, float) and act.is_integer())):
        return None
    return int(act)


def _check_acts(where: str, acts: list[int]) -> list[int]:
    if not set(acts) <= {0, *ACTS}:
        raise ValueError(f"{where}: expected acts from 1 to 4, got {acts}")
    return acts


_EXPECTED = 'expected {"dialog": [...], "act": [...]}, of which "act" may be missing'


def _expected_columns(columns: Iterable[str]) -> str:
    wanted = f"expected a column {', '.join(_DIALOGUE_COLUMNS[:-1])} or {_DIALOGUE_COLUMNS[-1]}"
    return f"{wanted}, got {', '.join(map(str, columns)) or 'none'}"


def _shown(value: Any) -> str:
    return repr(value[:80]) if isinstance(value, str) else reprlib.repr(value)
