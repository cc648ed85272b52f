"""Read the rows of a dataset: files, folders, DailyDialog's own archives, what `datasets` has saved, and the hub."""

from __future__ import annotations

import csv
import json
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from glob import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dailydialog_gym.embedded import asset
from dailydialog_gym.env.columns import (
    ACT_COLUMNS,
    DIALOGUE_COLUMNS,
    EXPECTED,
    ID_COLUMNS,
    SPLIT_NAMES,
    SPLITS,
    UTTERANCE_COLUMNS,
    Notes,
    Row,
    act_number,
    check_acts,
    check_text,
    read_rows,
)
from dailydialog_gym.extras import need
from dailydialog_gym.files import BOM, decode_lines
from dailydialog_gym.hub import hub_is_off, refuse_pointer

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

    splits: Mapping[str, Callable[[Notes], list[Row]]]
    is_original: bool = False
    is_dailydialog: bool = False


def open_source(dataset: str) -> Source:
    """Find a dataset, see `dailydialog_gym.env.dialogues.load_dialogues`, and read the file if it is a single one.

    Raises:
        ValueError: there is no such dataset, or it can't be read.
    """
    if dataset == "builtin":
        with asset("dialogues.jsonl") as path:
            return _open_file(path)
    shown, name = repr(dataset[:200]), os.path.expanduser(dataset)
    path = Path(name)
    if os.path.isfile(name):  # unlike Path's methods, those of os.path raise no error for names that no file can have
        if path.suffix.lower() not in _SUFFIXES:
            raise ValueError(f"dataset {shown} is a file, but none of {', '.join(_SUFFIXES)}: {_FORMATS}")
        return _open_file(path)
    if os.path.isdir(name):
        return _open_folder(path)
    if os.path.lexists(name):
        kind = "a pipe, a socket or a device" if os.path.exists(name) else "a symbolic link that leads to no file"
        raise ValueError(f"no such file or folder: {shown} is {kind}")
    looks_like_id = re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", dataset) and not dataset.startswith(".")
    if dataset in HUB_ALIASES or (looks_like_id and path.suffix.lower() not in (*_SUFFIXES, ".zip", ".txt")):
        return _open_hub(dataset)
    raise ValueError(f"no such file or folder: {shown}: {_FORMATS}")


def _open_file(path: Path, default: str = "train") -> Source:
    """A single file, whose rows may name their splits; rows that don't are of the split ``default``."""
    notes = Notes()
    by_split: dict[str, list[Row]] = {}
    for split, row in read_rows(_records(path), notes, default=default):
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
    files = _data_files(folder)
    if not files:
        raise ValueError(f"folder {str(folder)!r} holds no dataset: {_FORMATS}")
    if len(files) == 1:
        return _open_file(files[0], _split_of_name(files[0].relative_to(folder)) or "train")
    by_split: dict[str | None, list[Path]] = {}
    for path in files:
        by_split.setdefault(_split_of_name(path.relative_to(folder)), []).append(path)
    unnamed = [] if len(by_split) == 1 else by_split.pop(None, [])
    for split, paths in by_split.items():
        kinds = sorted({_kind_of_file(path.relative_to(folder)) for path in paths})
        if len(kinds) > 1:
            shown = ", ".join(kinds[:4]) + (f" and {len(kinds) - 4} more" if len(kinds) > 4 else "")
            raise ValueError(
                f"folder {str(folder)!r} holds several datasets, {split or 'train'} is in {shown}: name the folder or "
                "the file of one of them"
            )

    def read(split: str, paths: list[Path], notes: Notes) -> list[Row]:
        notes.unnamed = [str(path.relative_to(folder)) for path in unnamed]
        return [row for path in paths for _, row in read_rows(_records(path), notes, split)]

    names = {split or "train": paths for split, paths in by_split.items()}
    return Source({split: partial(read, split, names[split]) for split in SPLITS if split in names})


def _data_files(folder: Path) -> list[Path]:
    """The files in a folder and its subfolders that may hold rows, but for hidden ones. Symbolic links are followed."""

    def fail(error: OSError) -> None:
        raise error

    found, seen = [], set()
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = [] if os.path.realpath(root) in seen else sorted(n for n in folders if not n.startswith("."))
        if os.path.realpath(root) not in seen:
            found += [Path(root, name) for name in names if not name.startswith(".") and name not in _NO_DATA]
        seen.add(os.path.realpath(root))
    return sorted(path for path in found if path.suffix.lower() in _SUFFIXES and path.is_file())


def _split_of_name(path: Path) -> str | None:
    """The split that is a word of a file's name, or else of its folder's: data/train-0000.parquet, train/0000.parquet.

    A name without such a word has no split.
    """
    return next((split for part in (path.stem, *reversed(path.parts[:-1])) if (split := _split_in(part))), None)


def _split_in(name: str) -> str | None:
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def _kind_of_file(path: Path) -> str:
    """What the parts of one dataset have in common: their folder, their suffix, and a name but for its numbers.

    Files whose names have no split may have any.
    """
    name = re.sub(r"\d+(-of-\d+.*)?", "*", path.stem) if _split_in(path.stem) else "*"
    return str(path.with_name(name + path.suffix))


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a file, each with its place for error messages.

    Text is read by Python, not by `datasets`, which names no line. Its reader of JSON drops lone surrogates without a
    word, makes a number of 5,000 digits infinite, and crashes with deep nesting; its reader of CSV files guesses types,
    and shifts the columns where a row has too many.
    """
    refuse_pointer(path)
    with open(path, "rb") as file:
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            yield from _read_parquet(path)
        elif suffix == ".csv":
            yield from _read_csv(path, file)
        elif suffix == ".json" and file.read(4096).removeprefix(BOM).lstrip().startswith(b"["):
            file.seek(0)
            yield from _read_json_list(path, "".join(decode_lines(path, file)))
        else:
            file.seek(0)
            for number, line in enumerate(map(str.strip, decode_lines(path, file)), 1):
                where = f"{path}, line {number}"
                if line:
                    yield where, _parse_json(where, line, 0, json.loads)


def _read_json_list(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """The entries of a JSON list, each with the line in which it begins."""
    decoder, mark = json.JSONDecoder(), re.compile(r"\s*(\[\s*\]|[\[\],]?)\s*")
    before, position, line = "[", 0, 1
    while True:
        match = mark.match(text, position)
        assert match  # the pattern also matches an empty text
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


def _read_csv(path: Path, file: BinaryIO) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)  # otherwise 128 KiB, and a cell may be a whole dialogue
    reader = csv.reader(decode_lines(path, file), strict=True)
    line = 1
    try:
        header = next(reader, [])
        if twice := {column for column in header if column and header.count(column) > 1}:
            raise ValueError(f"{path}, line 1: expected columns of different names, got {', '.join(twice)} twice")
        for cells in reader:
            where, line = f"{path}, line {line + 1}", reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise ValueError(f"{where}: expected {len(header)} cells, as in the first line, got {len(cells)}")
            record = dict(zip(header, cells, strict=True))
            yield where, {column: _parse_cell(where, column, cell) for column, cell in record.items()}
    except csv.Error as error:
        raise ValueError(f"{path}, line {line + 1}: expected comma-separated values ({error})") from error


def _parse_cell(where: str, column: str, cell: str) -> Any:
    """A cell of a CSV file, in which a list is written as JSON."""
    if not (cell.startswith("[") and column.lower() in (*DIALOGUE_COLUMNS, *ACT_COLUMNS)):
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected a list as JSON, got {cell[:80]!r}") from error


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    need("datasets")
    import datasets

    try:
        # Streaming leaves no copy in the cache of `datasets`
        table = datasets.load_dataset("parquet", data_files=[escape(str(path))], split="train", streaming=True)
        for number, record in enumerate(_records_of(table)):
            yield f"{path}, row {number}", record
    except Exception as error:  # errors come from three libraries and don't name the file
        raise ValueError(f"cannot read {path} ({type(error).__name__}: {error})") from error


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
    text_name, act_name = (name for name, _ in contents)
    text_lines, act_lines = (
        [line.rstrip("\r\n") for line in decode_lines(name, BytesIO(content))] for name, content in contents
    )
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
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, NotImplementedError) as error:
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
    need("datasets")
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # errors come from three libraries and don't name the folder
        raise ValueError(f"cannot read {folder}, written by save_to_disk ({type(error).__name__}: {error})") from error
    return _open_tables(str(folder), {"train": saved} if isinstance(saved, datasets.Dataset) else saved)


def _open_hub(dataset: str) -> Source:
    need("datasets")
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
        records = ((f"{name}, {split}, row {i}", record) for i, record in enumerate(_records_of(table)))
        return [row for _, row in read_rows(records, notes, split)]

    by_split: dict[str, list[str]] = {}
    for table in tables:
        by_split.setdefault(_split_in(table) or table, []).append(table)
    splits = {}
    for split, found in by_split.items():
        found = [table for table in found if table.lower() in SPLIT_NAMES] or found
        if len(found) > 1:
            raise ValueError(
                f"dataset {name!r} has several splits for {split}, {', '.join(found)}: save the one that you want in a "
                "file of its own"
            )
        splits[split] = partial(read, split, tables[found[0]])
    return Source(splits, is_dailydialog=is_dailydialog)


def _records_of(table: datasets.Dataset | datasets.IterableDataset) -> Iterator[dict[str, Any]]:
    """The rows of a table, with names instead of numbers where a column's features name its labels after acts.

    A column of acts whose labels have other names, such as those of emotions, is left out.
    Columns that are of no use, which may be pictures, are not read where the table knows its columns.
    """
    import datasets

    texts, others = {*DIALOGUE_COLUMNS, *UTTERANCE_COLUMNS}, {*ACT_COLUMNS, *ID_COLUMNS, "split"}
    columns = [column for column in table.column_names or () if column.lower() in texts | others]
    if texts & {column.lower() for column in columns}:  # otherwise the error shall show all columns
        table = table.select_columns(columns)
    names: dict[str, dict[int, str]] = {}
    of_others: list[str] = []
    for column, feature in (table.features or {}).items():
        label = feature.feature if isinstance(feature, datasets.List) else feature
        if isinstance(label, datasets.ClassLabel) and column.lower() in ACT_COLUMNS:
            if any(act_number(name) is None for name in label.names):
                of_others.append(column)
            else:
                names[column] = dict(enumerate(label.names))  # of no other number, such as -1 for an unknown label
    for record in table:
        record = {column: value for column, value in record.items() if column not in of_others}
        for column, name_of in names.items():
            value = record[column]
            if isinstance(value, list):
                record[column] = [name_of.get(number) for number in value]
            else:
                record[column] = name_of.get(value)
        yield record
