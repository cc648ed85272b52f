"""Read the rows of a dataset: files, folders, DailyDialog's own archives, what `datasets` has saved, and the hub."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dailydialog_gym.embedded import asset
from dailydialog_gym.env.columns import (
    ACT_COLUMNS,
    ACT_NUMBERS,
    DIALOGUE_COLUMNS,
    EXPECTED,
    ID_COLUMNS,
    SPLIT_NAMES,
    SPLITS,
    UTTERANCE_COLUMNS,
    Notes,
    Row,
    check_acts,
    check_text,
    read_rows,
)
from dailydialog_gym.hub import hub_is_off

if TYPE_CHECKING:
    import datasets

# `daily_dialog` on the hub is a script dataset, which `datasets` no longer loads. This copy is stored as Parquet.
HUB_ALIASES = {"daily_dialog": "OpenRL/daily_dialog"}
_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_NO_DATA = {"dataset_info.json", "dataset_infos.json", "state.json"}  # what `datasets` keeps beside the data
_FORMATS = (
    "expected 'builtin'; a folder in DailyDialog's format (SPLIT.zip, SPLIT/dialogues_SPLIT.txt or "
    "dialogues_SPLIT.txt); a folder written by datasets.save_to_disk; a .jsonl, .json, .csv or .parquet file, or a "
    "folder of them; or a hub id such as 'daily_dialog'"
)


@dataclass(frozen=True)
class Source:
    """A dataset that has been found.

    Attributes:
        splits: by split, a function that reads its rows.
        is_original: it is in the format of DailyDialog's release, in which a missing split is a missing file.
        is_dailydialog: it is DailyDialog.
    """

    splits: dict[str, Callable[[Notes], list[Row]]]
    is_original: bool = False
    is_dailydialog: bool = False


def open_source(dataset: str) -> Source:
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


def _open_file(path: Path) -> Source:
    """A single file, whose rows may name their splits."""
    notes = Notes()
    by_split: dict[str, list[Row]] = {}
    for split, row in read_rows(_records(path), notes):
        by_split.setdefault(split, []).append(row)

    def read(split: str, to: Notes) -> list[Row]:
        to.columns, to.silent = notes.columns, notes.silent
        return by_split.get(split, [])

    return Source({split: partial(read, split) for split in SPLITS if split in by_split or not by_split})


def _open_folder(folder: Path) -> Source:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return _open_saved(folder)
    original = [split for split in SPLITS if any(path.exists() for path in _original_files(folder, split))]
    if original:
        splits = {split: partial(_read_original, folder, split) for split in original}
        return Source(splits, is_original=True, is_dailydialog=True)
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

    def read(split: str, paths: list[Path], notes: Notes) -> list[Row]:
        notes.unnamed = [str(path.relative_to(folder)) for path in unnamed]
        return [row for path in paths for _, row in read_rows(_records(path), notes, split)]

    names = {split or "train": paths for split, paths in by_split.items()}
    return Source({split: partial(read, split, names[split]) for split in SPLITS if split in names})


def _split_of_file(path: Path) -> str | None:
    """The split that is a word of a file's name, or else of its folder's: data/train-0000.parquet, train/0000.parquet.

    A name without such a word has no split.
    """
    for part in (path.stem, *reversed(path.parts[:-1])):
        for word in re.split(r"[^a-z0-9]+", part.lower()):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
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
        raise ValueError(f"{where}: {EXPECTED}, got lists in lists too deep to read") from error
    except ValueError as error:  # also a number of thousands of digits
        raise ValueError(f"{where}: {EXPECTED}, got {text[start : start + 80]!r} ({error})") from error


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


def _read_original(folder: Path, split: str, notes: Notes) -> list[Row]:
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


def _parse_original(text_where: str, text: str, act_where: str, act: str) -> Row:
    utterances = [check_text(text_where, utterance) for utterance in text.split("__eou__")]
    if utterances.pop() or not utterances:
        raise ValueError(f"{text_where}: expected __eou__ after every utterance, got {text[-60:]!r}")
    try:
        acts = [int(a) for a in act.split()]
    except ValueError as error:
        raise ValueError(f"{act_where}: expected numbers from 1 to 4, got {act[:60]!r}") from error
    return Row(utterances, check_acts(act_where, acts))


def _open_saved(folder: Path) -> Source:
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # errors come from three libraries and don't name the folder
        raise ValueError(f"cannot read {folder}, written by save_to_disk ({type(error).__name__}: {error})") from error
    return _open_tables(str(folder), {"train": saved} if isinstance(saved, datasets.Dataset) else saved)


def _open_hub(dataset: str) -> Source:
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


def _open_tables(name: str, tables: Mapping[str, datasets.Dataset], is_dailydialog: bool = False) -> Source:
    def read(split: str, table: datasets.Dataset, notes: Notes) -> list[Row]:
        records = enumerate(_records_of(table))
        return [
            row for _, row in read_rows(((f"{name}, {split}, row {i}", record) for i, record in records), notes, split)
        ]

    splits = {SPLIT_NAMES.get(split.lower(), split): partial(read, split, table) for split, table in tables.items()}
    return Source(splits, is_dailydialog=is_dailydialog)


def _records_of(table: datasets.Dataset | datasets.IterableDataset) -> Iterator[dict[str, Any]]:
    """The rows of a table, with names instead of numbers where a column's features name its labels after acts.

    Columns that are of no use, which may be pictures, are not read where the table knows its columns.
    """
    import datasets

    texts, others = {*DIALOGUE_COLUMNS, *UTTERANCE_COLUMNS}, {*ACT_COLUMNS, *ID_COLUMNS, "split"}
    columns = [column for column in table.column_names or () if column.lower() in texts | others]
    if texts & {column.lower() for column in columns}:  # otherwise the error shall show all columns
        table = table.select_columns(columns)
    names: dict[str, dict[int, str]] = {}
    for column, feature in (table.features or {}).items():
        label = feature.feature if isinstance(feature, datasets.List) else feature
        if isinstance(label, datasets.ClassLabel) and {name.lower() for name in label.names} <= ACT_NUMBERS.keys():
            names[column] = dict(enumerate(label.names))  # of no other number, such as -1 for an unknown label
    for record in table:
        for column, name_of in names.items():
            value = record[column]
            if isinstance(value, list):
                record[column] = [name_of.get(number) for number in value]
            else:
                record[column] = name_of.get(value)
        yield record
